"""Beam search with a length penalty, for whole batches, n best."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.hypothesis import Hypothesis, SearchLimits
from limelight.decoding.vocabulary import Vocabulary
from limelight.errors import ArgumentError
from limelight.models.protocol import TranslationModel


def length_penalty(length: Tensor | int, alpha: float) -> Tensor:
    """((5 + length) / 6)^alpha, what log probabilities are divided by. Wu et al. (2016), equation 14.

    `length` counts the produced tokens, eos among them; alpha 0 is no penalty.
    """
    return ((5.0 + torch.as_tensor(length)) / 6.0) ** alpha


@torch.inference_mode()
def beam_search(
    model: TranslationModel,
    source: Tensor,
    source_lengths: Tensor,
    limits: SearchLimits,
    *,
    beam: int = 5,
    alpha: float = 1.0,
    n_best: int = 1,
    observe: bool = False,
) -> list[list[Hypothesis]]:
    """Translate a batch by beam search.

    At each step the 2 · beam best continuations of a sentence are looked at: of the best `beam` those that end enter
    the sentence's list of finished hypotheses, and of all those that do not end the best `beam` live on. A sentence is
    done when its `beam` finished hypotheses all score at least as well as its best live one would if it ended next, at
    no cost, or when its length limit is reached.

    Args:
        model: in evaluation mode.
        source: int64 [B, S], padded.
        source_lengths: int64 [B].
        limits: special tokens and lengths.
        beam: K, the number of live hypotheses per sentence.
        alpha: exponent of the length penalty.
        n_best: how many hypotheses to return per sentence; at most `beam`.
        observe: also keep the attention of each produced token.

    Returns:
        per sentence up to `n_best` hypotheses, the best first.

    Raises:
        ArgumentError: beam < 1, n_best not in [1, beam], or a negative alpha.
    """
    if beam < 1:
        raise ArgumentError(f"beam: must be at least 1, got {beam}")
    if not 1 <= n_best <= beam:
        raise ArgumentError(f"n_best: must be in [1, beam = {beam}], got {n_best}; widen the beam")
    if alpha < 0:
        raise ArgumentError(f"alpha: must be at least 0 (no length penalty), got {alpha}")
    search = _Search.begin(len(source), beam, alpha, limits, source_lengths)
    vocabulary = Vocabulary(model.output, limits.banned)
    state = model.start(source, source_lengths)
    while len(search.rows):
        features, weights, state = model.step(search.last, state, observe=observe)
        # The best 2K of a sentence are among the best 2K of each of its hypotheses.
        parents = search.advance(*vocabulary.best(features, min(2 * beam, len(vocabulary))), weights)
        state = state.reorder(parents)
        keep = search.leave()
        if keep is not None:
            state = state.keep(keep)
    return search.results(n_best)


@dataclass
class _Search:
    """The tables of a search. Rows are the sentences still searched; B' of them, K hypotheses each."""

    beam: int
    alpha: float
    limits: SearchLimits
    lengths: list[int]  # source lengths of all sentences
    rows: Tensor  # [B'] which sentence a row is
    most: Tensor  # [B'] length limits
    last: Tensor  # [B', K] the last token of each live hypothesis
    live: Tensor  # [B', K] log probabilities
    history: Tensor  # [B', K, t] tokens so far
    seen: Tensor | None  # [B', K, t, S] attention so far
    ended: Tensor  # [B', K] the best scores of finished hypotheses, the best first, -inf where there are none
    finished: list[list[Hypothesis]]  # per sentence

    @classmethod
    def begin(cls, count: int, beam: int, alpha: float, limits: SearchLimits, source_lengths: Tensor) -> "_Search":
        device = source_lengths.device
        return cls(
            beam=beam,
            alpha=alpha,
            limits=limits,
            lengths=source_lengths.tolist(),
            rows=torch.arange(count, device=device),
            most=limits.most(source_lengths),
            last=torch.full((count, 1), limits.bos, device=device),
            live=torch.zeros(count, 1, device=device),
            history=torch.empty(count, 1, 0, dtype=torch.int64, device=device),
            seen=None,
            ended=torch.full((count, beam), -torch.inf, device=device),
            finished=[[] for _ in range(count)],
        )

    def advance(self, token: Tensor, log_prob: Tensor, weights: Tensor | None) -> Tensor:
        """Extend every hypothesis by one of its best tokens, [B', K, 2K]: the parents [B', K] of the new live ones."""
        if weights is not None and self.seen is None:
            self.seen = weights.new_empty(*weights.shape[:2], 0, weights.shape[-1], dtype=torch.float32)
        width = token.shape[-1]
        total = self.live.unsqueeze(-1) + log_prob
        total, flat = total.flatten(1).topk(min(2 * self.beam, total[0].numel()), -1)  # [B', 2K]
        parent, token = flat // width, token.flatten(1).gather(1, flat)
        length = self.history.shape[-1] + 1

        ends = (token == self.limits.eos) & (total > -torch.inf)
        self._finish(ends, total, parent, length)
        # The best `beam` that go on, in their order; -inf where too few do.
        going = total.masked_fill(token == self.limits.eos, -torch.inf)
        self.live, order = going.topk(min(self.beam, going.shape[1]), -1)
        parents, self.last = parent.gather(1, order), token.gather(1, order)
        at = torch.arange(len(parents), device=parents.device)[:, None]
        self.history = torch.cat([self.history[at, parents], self.last.unsqueeze(-1)], -1)
        if weights is not None and self.seen is not None:
            self.seen = torch.cat([self.seen, weights.float().unsqueeze(2)], 2)[at, parents]
        return parents

    def leave(self) -> Tensor | None:
        """Drop the sentences that are done; the rows that stay, or None when all do."""
        length = self.history.shape[-1]
        hope = self.live[:, 0] / length_penalty(length + 1, self.alpha).to(self.live)
        cut = length >= self.most
        done = cut | (self.ended[:, -1] >= hope)
        if not bool(done.any()):
            return None
        for row in (cut & torch.isneginf(self.ended[:, 0])).nonzero().flatten().tolist():
            self._cut_off(row, length)
        keep = (~done).nonzero().squeeze(1)
        self.rows, self.most, self.last, self.live = self.rows[keep], self.most[keep], self.last[keep], self.live[keep]
        self.history, self.ended = self.history[keep], self.ended[keep]
        self.seen = None if self.seen is None else self.seen[keep]
        return keep

    def results(self, n_best: int) -> list[list[Hypothesis]]:
        """Per sentence the best hypotheses, the best first."""
        return [sorted(found, key=lambda h: -h.score)[:n_best] for found in self.finished]

    def _finish(self, ends: Tensor, total: Tensor, parent: Tensor, length: int) -> None:
        # An end counts only among the best `beam` continuations, as if the beam had room for it.
        ends = ends.clone()
        ends[:, self.beam :] = False
        penalty = length_penalty(length, self.alpha).to(total)
        scores = torch.where(ends, total / penalty, -torch.inf)
        self.ended = torch.cat([self.ended, scores], 1).topk(self.beam, -1)[0]
        # Those that the list has no room for any more are not worth keeping.
        row, column = (ends & (scores >= self.ended[:, -1:])).nonzero(as_tuple=True)
        beam = parent[row, column]
        found = zip(
            row.tolist(),
            beam.tolist(),
            self.rows[row].tolist(),
            self.history[row, beam].tolist(),
            total[row, column].tolist(),
            scores[row, column].tolist(),
            strict=True,
        )
        for at, k, sentence, tokens, log_prob, score in found:
            seen = self._weights(at, k, self.lengths[sentence])
            self.finished[sentence].append(Hypothesis(tokens, log_prob, score, seen))

    def _cut_off(self, row: int, length: int) -> None:
        """The length limit came before any end: the best live hypothesis stands as it is."""
        sentence, total = int(self.rows[row]), float(self.live[row, 0])
        score = total / float(length_penalty(length, self.alpha))
        seen = self._weights(row, 0, self.lengths[sentence])
        self.finished[sentence].append(Hypothesis(self.history[row, 0].tolist(), total, score, seen))

    def _weights(self, row: int, beam: int, source_length: int) -> Tensor | None:
        return None if self.seen is None else self.seen[row, beam, :, :source_length].cpu().clone()
