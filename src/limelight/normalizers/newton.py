"""The threshold of the sparse normalizers by Newton's method: no sorting, a few passes over the rows, linear memory.

Sparsemax and entmax-1.5 are the family f(x) = (c x)^(1/c) for x > 0, else 0, with c = 1 and c = 1/2 (Peters, Niculae,
Martins 2019, arXiv 1905.05702, equation 9, where c = alpha - 1). The threshold τ of a row solves W(τ) = Σ f(s - τ) = 1.

The root is sought in N(τ) = W^c, which is c times a norm of the positive parts of s - τ and so convex and falling.
Newton's steps from the left of the root, where N >= 1, never pass it, and where all scores of the support are equal
N is a straight line and one step ends there. With c = 1 it is the algorithm of Michelot (1986), which ends exactly
after a finite number of steps. In general the products of N - 1 and the slope fall fourfold or faster from step to
step, whatever the scores are.

We start at the greatest score less 1 / c, where that key alone has the weight 1.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from limelight.normalizers.protocol import Normalizer, Rows, joined, peaks, with_sink

_MOST_STEPS = 200
"""Never reached; a loop that does not depend on how numbers round."""


def solved(normalizer: Normalizer, c: float, rows: Rows) -> Tensor:
    """The thresholds of the rows [n, H, t, 1], which are shifted by their greatest scores; -inf where there is none."""
    peak = rows.filled(-torch.inf)
    for tile in rows:
        peak = torch.maximum(peak, tile.amax(-1, keepdim=True))
    empty = peak == -torch.inf
    rows.shift(peak.masked_fill(empty, 0.0))
    offset = rows.filled(-1.0 / c)
    # What the sum of a row may be off by before the last step; a bound on the steps would not see thousands of them.
    most = 1.0 + 16.0 * torch.finfo(offset.dtype).eps
    for _ in range(_MOST_STEPS):
        total, slope = rows.filled(0.0), rows.filled(0.0)
        for tile in rows:
            weights = normalizer.weights(tile - offset)
            total += weights.sum(-1, keepdim=True)
            slope += normalizer.slopes(weights).sum(-1, keepdim=True)
        # (N - 1) / -N', with N = W^c and N' = -c W^(c - 1) Σ f'. An empty row gives 0 / 0.
        step = (total - total.pow(1.0 - c)) / (c * slope)
        before, offset = offset, offset + step
        if not bool(((total > most) & (offset > before)).any()):
            break
    return offset.masked_fill_(empty, -torch.inf)


class SparseNormalizer(Normalizer):
    """What sparsemax and entmax-1.5 have in common: all but f and the formula of the threshold."""

    __slots__ = ()

    @property
    @abstractmethod
    def c(self) -> float:
        """The c of f(x) = (c x)^(1/c)."""

    @abstractmethod
    def offsets(self, ordered: Tensor, count: Tensor) -> Tensor:
        """What the threshold would be if the first k numbers of rows [..., S], falling, were the support; k = count."""

    @abstractmethod
    def offset(self, row: Tensor, inside: Tensor, size: Tensor) -> Tensor:
        """The threshold [..., 1] of rows [..., S] whose support of that size is `inside`; in ordinary autograd."""

    @property
    def competes(self) -> bool:
        """They do."""
        return True

    @property
    def sparse(self) -> bool:
        """It is."""
        return True

    def check(self, sink: Tensor | None) -> None:
        """A sink takes part."""

    def threshold(self, rows: Rows) -> Tensor:
        """By Newton's method."""
        return solved(self, self.c, rows)

    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """By sorting."""
        row = with_sink(scores, sink)
        base, empty = peaks(row)
        row = row - base
        inside = self._support(row)
        # NaN scores have no support, and show.
        offset = self.offset(row, inside, inside.sum(-1, keepdim=True).clamp(min=1)) + 0.0 * base
        weights = self.weights(row - offset)[..., : scores.shape[-1]]
        return weights, joined(base, offset).masked_fill(empty, -torch.inf).squeeze(-1)

    def _support(self, row: Tensor) -> Tensor:
        """Which numbers of each row [..., S], the greatest being 0, lie above its threshold; without a graph."""
        with torch.no_grad():
            # No threshold is below -2.
            ordered = row.clamp(min=-3.0).sort(-1, descending=True).values
            count = torch.arange(1, row.shape[-1] + 1, dtype=row.dtype, device=row.device)
            offsets = self.offsets(ordered, count)
            size = (ordered > offsets).sum(-1, keepdim=True)
            return row > offsets.gather(-1, (size - 1).clamp(min=0))
