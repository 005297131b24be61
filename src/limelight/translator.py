"""Translating with a trained model: text in, text and attention out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limelight.allocator import keep_freed_memory
from limelight.data.batches import collate
from limelight.data.tokenization import Tokenizer
from limelight.decoding import Hypothesis, SearchLimits, beam_search, greedy_search
from limelight.devices import find_device
from limelight.errors import ArgumentError
from limelight.evaluation.alignment import Link, links_from_weights, word_weights
from limelight.models import TranslationModel
from limelight.run_folder import RunFolder

END = "</s>"
"""How the end of the source, which can be attended to, is named in pictures."""


@dataclass(frozen=True)
class Translation:
    """One translation of one sentence.

    Attributes:
        source: the sentence that was given.
        text: its translation.
        log_prob: log p(text | source) in nats.
        score: what the n best are ranked by; log_prob over the length penalty.
        source_tokens: the S tokens that the model read, the end mark last.
        target_tokens: the T tokens that it produced, without the end mark.
        weights: fp32 [T, S]: how much each produced token attended to each source token; None when not asked for, without
            attention, or when nothing was produced.
        source_words: for each source token its word in `source.split()`; -1 for none.
        target_words: for each target token its word in `text.split()`; -1 for none.
        unknown: pieces of the source that the vocabulary lacks.
        truncated: how many source tokens were left out because the sentence is longer than `Translator.longest`.
    """

    source: str
    text: str
    log_prob: float
    score: float
    source_tokens: list[str]
    target_tokens: list[str]
    weights: Tensor | None
    source_words: list[int]
    target_words: list[int]
    unknown: list[str]
    truncated: int

    def links(self) -> frozenset[Link]:
        """Word alignment (source word, target word): each target word with the source word it attends to most."""
        return _word_links(self.weights, self.source_words, self.target_words)


class Translator:
    """A model and its two tokenizers.

    Args:
        model: a translation model; it is put into evaluation mode and moved to `device`.
        source_tokenizer: of the language it reads.
        target_tokenizer: of the language it writes.
        device: "auto", "cpu", "cuda", ...
        batch_tokens: the most tokens, padding included, that are translated at a time; divided by the beam's width.
        longest: the most source tokens that are read of a sentence; the rest is left out, and counted in the result.

    Example:
        >>> translator = Translator.open("runs/demo")
        >>> translator.translate(["3 hours"])[0].text
        '3 Stunden'
    """

    def __init__(
        self,
        model: TranslationModel,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        device: str = "auto",
        batch_tokens: int = 4096,
        longest: int = 512,
    ):
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.batch_tokens = batch_tokens
        self.longest = longest
        self.limits = SearchLimits(Tokenizer.bos, Tokenizer.eos, banned=(Tokenizer.pad, Tokenizer.bos, Tokenizer.unk))

    @classmethod
    def open(cls, run: str | Path, *, device: str = "auto", weights: str = "best") -> "Translator":
        """The translator of a run folder.

        Args:
            run: the folder that training wrote.
            device: "auto", "cpu", "cuda", ...
            weights: "best" or "last".

        Raises:
            RunFolderError: a file is missing, damaged or does not belong.
            ArgumentError: there is no such device.
        """
        keep_freed_memory()
        folder = RunFolder(Path(run))
        model = folder.load_model(weights)
        return cls(model, *folder.read_tokenizers(), device=device)

    def translate(
        self, texts: Iterable[str], *, beam: int = 1, alpha: float = 1.0, observe: bool = True
    ) -> list[Translation]:
        """The best translation of each text, in order. A blank text gives a blank translation.

        Args:
            texts: sentences.
            beam: 1 is greedy search, more is beam search with that many hypotheses.
            alpha: exponent of the length penalty of beam search.
            observe: keep the attention.
        """
        return [found[0] for found in self.translate_n_best(texts, beam=beam, alpha=alpha, observe=observe)]

    def translate_n_best(
        self,
        texts: Iterable[str],
        *,
        beam: int = 5,
        alpha: float = 1.0,
        n_best: int = 1,
        observe: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The `n_best` best translations of each text, the best first.

        Args:
            texts: sentences.
            beam: number of hypotheses; at least `n_best`.
            alpha: exponent of the length penalty.
            n_best: how many to return at most.
            observe: keep the attention.
            progress: called after each batch with the number of sentences translated so far.

        Raises:
            ArgumentError: a single string instead of a list of them; beam, n_best or alpha out of range.
        """
        if isinstance(texts, str):
            raise ArgumentError('texts: must be a list of sentences, got one string; write ["..."]')
        if beam == 1 and n_best != 1:
            raise ArgumentError(f"n_best: must be in [1, beam = 1], got {n_best}; widen the beam")
        texts = list(texts)
        results: list[list[Translation]] = [[_blank(text)] for text in texts]
        encoded = self.source_tokenizer.encode_batch(texts)
        done = 0
        for rows in self._batches(encoded, self.batch_tokens // beam):
            batch = collate([encoded[row][: self.longest] for row in rows]).to(self.device)
            if beam == 1:
                greedy = greedy_search(self.model, batch.source, batch.source_lengths, self.limits, observe=observe)
                found = [[hypothesis] for hypothesis in greedy]
            else:
                found = beam_search(
                    self.model,
                    batch.source,
                    batch.source_lengths,
                    self.limits,
                    beam=beam,
                    alpha=alpha,
                    n_best=n_best,
                    observe=observe,
                )
            for row, hypotheses in zip(rows, found, strict=True):
                results[row] = [self._translation(texts[row], hypothesis) for hypothesis in hypotheses]
            done += len(rows)
            if progress is not None:
                progress(done)
        return results

    @torch.inference_mode()
    def attention(self, pairs: Iterable[tuple[str, str]]) -> list[Translation]:
        """Forced decoding: the attention of given translations, as `Translation`s, in order.

        Raises:
            ArgumentError: the model has no attention.
        """
        pairs = list(pairs)
        sources = self.source_tokenizer.encode_batch(source for source, _ in pairs)
        targets = self.target_tokenizer.encode_batch(target for _, target in pairs)
        results = [_blank(*pair) for pair in pairs]
        lengths = [s if s and t else [] for s, t in zip(sources, targets, strict=True)]  # a blank side has no alignment
        for rows in self._batches(lengths, self.batch_tokens):
            batch = collate(
                [sources[row][: self.longest] for row in rows], [targets[row][: self.longest] for row in rows]
            ).to(self.device)
            read = batch.target[:, :-1]
            features, weights = self.model(batch.source, batch.source_lengths, read, observe=True)
            if weights is None:
                raise ArgumentError("run: this model was trained without attention, so it aligns nothing; train another")
            log_probs = self._reference_log_probs(features, batch.target[:, 1:], batch.target_lengths)
            for i, row in enumerate(rows):
                ids = targets[row][: self.longest]
                seen = weights[i, : len(ids), : int(batch.source_lengths[i])].float().cpu()
                results[row] = self._translation(
                    pairs[row][0], Hypothesis(ids, log_probs[i], log_probs[i], seen), text=pairs[row][1]
                )
        return results

    def align(self, pairs: Iterable[tuple[str, str]]) -> list[frozenset[Link]]:
        """Word alignments of given translations by forced decoding: (source word, target word), counted from 0.

        Words are what `str.split` gives. Raises ArgumentError when the model has no attention.
        """
        return [translation.links() for translation in self.attention(pairs)]

    def _reference_log_probs(self, features: Tensor, target: Tensor, target_lengths: Tensor) -> list[float]:
        log_prob = self.model.output(features).float().log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        real = torch.arange(target.shape[1], device=target.device) < target_lengths[:, None]
        return (log_prob * real).sum(-1).tolist()

    def _batches(self, encoded: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        """Rows of similar length, longest first, blank ones left out; rows x longest <= tokens, but at least one row."""
        rows = sorted((row for row, ids in enumerate(encoded) if ids), key=lambda row: -len(encoded[row]))
        while rows:
            width = min(len(encoded[rows[0]]), self.longest) + 1
            count = max(1, tokens // width)
            yield rows[:count]
            rows = rows[count:]

    def _translation(self, source: str, hypothesis: Hypothesis, text: str | None = None) -> Translation:
        pieces = self.source_tokenizer.analyse(source)
        given = text is not None
        target = self.target_tokenizer.analyse(text) if text is not None else None
        count = len(hypothesis.tokens)
        return Translation(
            source=source,
            text=text if text is not None else self.target_tokenizer.decode(hypothesis.tokens),
            log_prob=hypothesis.log_prob,
            score=hypothesis.score,
            source_tokens=[*pieces.tokens[: self.longest], END],
            target_tokens=target.tokens[:count] if target else self.target_tokenizer.surface(hypothesis.tokens),
            weights=hypothesis.weights if given or count else None,
            source_words=[*pieces.words[: self.longest], -1],
            target_words=target.words[:count] if target else self.target_tokenizer.pieces_to_words(hypothesis.tokens),
            unknown=self.source_tokenizer.unknown(source) if any(pieces.unknown) else [],
            truncated=max(0, len(pieces.ids) - self.longest),
        )


def _blank(source: str, text: str = "") -> Translation:
    return Translation(source, text, 0.0, 0.0, [END], [], None, [-1], [], [], 0)


def _word_links(weights: Tensor | None, source_words: list[int], target_words: list[int]) -> frozenset[Link]:
    if weights is None or max(source_words) < 0 or max(target_words, default=-1) < 0:
        return frozenset()
    return links_from_weights(word_weights(weights, source_words, target_words))
