"""Translating with a trained model: text in, text and attention out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from limelight.allocator import keep_freed_memory
from limelight.data.batches import collate
from limelight.data.tokenization import Pieces, Tokenizer
from limelight.decoding import Hypothesis, SearchLimits, beam_search, greedy_search
from limelight.devices import find_device
from limelight.errors import ArgumentError, RunFolderError
from limelight.models import TranslationModel
from limelight.pharaoh import Link
from limelight.run_folder import RunFolder
from limelight.translation import END, Translation


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
        batch_tokens: int = 8192,
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
            ArgumentError: there is no such device, or `weights` is another word.
        """
        find_device(device)
        keep_freed_memory()
        folder = RunFolder(Path(run))
        model = folder.load_model(weights)
        tokenizers = _matching_tokenizers(folder)
        return cls(model, *tokenizers, device=device)

    @cached_property
    def attends(self) -> bool:
        """Whether the model has attention to look at; False for one that was trained with attention="none"."""
        with torch.inference_mode():
            source = torch.tensor([[Tokenizer.eos]], device=self.device)
            start = torch.full_like(source, Tokenizer.bos)
            return self.model(source, torch.ones_like(source[0]), start, observe=True).weights is not None

    def translate(
        self, texts: Iterable[str], *, beam: int = 1, alpha: float = 1.0, observe: bool = True
    ) -> list[Translation]:
        """The best translation of each text, in order. A blank text gives a blank translation.

        Args:
            texts: sentences.
            beam: 1 is greedy search, more is beam search with that many hypotheses.
            alpha: exponent of the length penalty of beam search.
            observe: keep the attention.

        Raises:
            ArgumentError: as `translate_n_best`.
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

        Returns:
            For each text 1 to `n_best` translations; a blank text has one, which is blank.

        Raises:
            ArgumentError: a single string instead of a list of them; beam, n_best or alpha out of range.
        """
        texts = _checked(texts)
        _check_search(beam, alpha, n_best)
        results: list[list[Translation]] = [[_blank(text)] for text in texts]
        sources = self.source_tokenizer.analyse_batch(texts)
        lengths = [len(source.ids) for source in sources]
        done = lengths.count(0)
        for rows in self._batches(lengths, self.batch_tokens // beam):
            batch = collate([sources[row].ids[: self.longest] for row in rows]).to(self.device)
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
                results[row] = [self._translation(texts[row], sources[row], one) for one in hypotheses]
            done += len(rows)
            if progress is not None:
                progress(done)
        return results

    @torch.inference_mode()
    def attention(
        self, pairs: Iterable[tuple[str, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[Translation]:
        """Forced decoding: the attention of given translations, as `Translation`s, in order.

        Args:
            pairs: (source, translation). Where a side is blank, nothing is attended to.
            progress: called after each batch with the number of pairs done so far.

        Raises:
            ArgumentError: the model has no attention.
        """
        if not self.attends:
            raise ArgumentError(
                "run: this model was trained without attention, so it aligns nothing; train one that has attention"
            )
        pairs = list(pairs)
        sources = self.source_tokenizer.analyse_batch(source for source, _ in pairs)
        targets = self.target_tokenizer.analyse_batch(target for _, target in pairs)
        results = [_blank(*pair) for pair in pairs]
        longer = [max(len(s.ids), len(t.ids)) if s.ids and t.ids else 0 for s, t in zip(sources, targets, strict=True)]
        done = longer.count(0)
        for rows in self._batches(longer, self.batch_tokens):
            kept = [targets[row].ids[: self.longest] for row in rows]
            batch = collate([sources[row].ids[: self.longest] for row in rows], kept).to(self.device)
            features, weights = self.model(batch.source, batch.source_lengths, batch.target[:, :-1], observe=True)
            log_probs = self._reference_log_probs(features, batch.target[:, 1:], batch.target_lengths)
            for i, (row, ids) in enumerate(zip(rows, kept, strict=True)):
                seen = weights[i, : len(ids), : int(batch.source_lengths[i])].float().cpu()
                source, text = pairs[row]
                forced = Hypothesis(ids, log_probs[i], log_probs[i], seen)
                results[row] = self._translation(source, sources[row], forced, text, targets[row])
            done += len(rows)
            if progress is not None:
                progress(done)
        return results

    def align(
        self, pairs: Iterable[tuple[str, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[frozenset[Link]]:
        """Word alignments of given translations by forced decoding: (source word, target word), counted from 0.

        Words are what `str.split` gives. Arguments and errors as `attention`.
        """
        return [translation.links() for translation in self.attention(pairs, progress=progress)]

    def _reference_log_probs(self, features: Tensor, target: Tensor, target_lengths: Tensor) -> list[float]:
        """The rows' log p(target | source), the end mark counted; [B, T, C] and [B, T] -> B numbers."""
        real = torch.arange(target.shape[1], device=target.device) < target_lengths[:, None]
        # Only real positions reach the output layer, the largest product of all.
        log_probs = self.model.output(features[real]).float().log_softmax(-1)
        found = torch.zeros(target.shape, device=target.device)
        found[real] = log_probs.gather(-1, target[real].unsqueeze(-1)).squeeze(-1)
        return found.sum(-1).tolist()

    def _batches(self, lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
        """Rows of similar length, longest first, empty ones left out; rows x longest <= tokens where one row fits."""
        rows = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
        while rows:
            width = min(lengths[rows[0]], self.longest) + 1
            count = max(1, tokens // width)
            yield rows[:count]
            rows = rows[count:]

    def _translation(
        self, source: str, pieces: Pieces, hypothesis: Hypothesis, text: str | None = None, target: Pieces | None = None
    ) -> Translation:
        """What the user gets for a hypothesis, or for a translation that was given: `text`, its pieces `target`."""
        cut = max(0, len(pieces.ids) - self.longest)
        count = len(hypothesis.tokens)
        if text is None or target is None:
            text = self.target_tokenizer.decode(hypothesis.tokens)
            tokens = self.target_tokenizer.surface(hypothesis.tokens)
            words = self.target_tokenizer.pieces_to_words(hypothesis.tokens)
        else:
            tokens, words = target.tokens[:count], target.words[:count]
            cut += len(target.ids) - count
        return Translation(
            source=source,
            text=text,
            log_prob=hypothesis.log_prob,
            score=hypothesis.score,
            source_tokens=[*pieces.tokens[: self.longest], END],
            target_tokens=tokens,
            weights=hypothesis.weights if count else None,
            source_words=[*pieces.words[: self.longest], -1],
            target_words=words,
            unknown=pieces.lost(),
            truncated=cut,
        )


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise ArgumentError('texts: must be a list of sentences, got one string; write ["..."]')
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentError(
                f"texts: must be strings, got {type(text).__name__} at index {number}; convert it first"
            )
    return texts


def _check_search(beam: int, alpha: float, n_best: int) -> None:
    if beam < 1:
        raise ArgumentError(f"beam: must be at least 1 (greedy search), got {beam}")
    if not 1 <= n_best <= beam:
        raise ArgumentError(f"n_best: must be in [1, beam = {beam}], got {n_best}; widen the beam")
    if not alpha >= 0:
        raise ArgumentError(f"alpha: must be at least 0 (no length penalty), got {alpha}")


def _blank(source: str, text: str = "") -> Translation:
    return Translation(source, text, 0.0, 0.0, [END], [], None, [-1], [], [], 0)


def _matching_tokenizers(folder: RunFolder) -> tuple[Tokenizer, Tokenizer]:
    """The folder's tokenizers, when they are those of its model."""
    tokenizers, model = folder.read_tokenizers(), folder.read_config()["model"]
    for side, tokenizer in zip(("source", "target"), tokenizers, strict=True):
        expected = model[f"{side}_vocabulary"]
        if len(tokenizer) != expected:
            raise RunFolderError(
                f"{folder.tokenizer(side)} has {len(tokenizer)} tokens and the model {expected}: it belongs to another "
                "run; restore it from a copy, or train again"
            )
    return tokenizers
