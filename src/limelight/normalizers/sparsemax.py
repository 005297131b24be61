"""Sparsemax: weights that sum to 1, most of them exactly 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.normalizers.newton import solved, sorted_support
from limelight.normalizers.protocol import Normalizer, Rows, peaks, with_sink


@dataclass(frozen=True)
class Sparsemax(Normalizer):
    """See `sparsemax`. f(x) = max(x, 0)."""

    @property
    def name(self) -> str:
        """Its name."""
        return "sparsemax"

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

    def weights(self, excess: Tensor) -> Tensor:
        """The positive part."""
        return excess.clamp_min(0.0)

    def log_weights(self, excess: Tensor) -> Tensor:
        """The log of the positive part."""
        inside = ~(excess <= 0.0)
        return excess.where(inside, 1.0).log().where(inside, -torch.inf)

    def slopes(self, weights: Tensor) -> Tensor:
        """1 in the support, 0 outside."""
        return weights.sign()

    def threshold(self, rows: Rows) -> Tensor:
        """By Newton's method, which is Michelot's here."""
        return solved(self, 1.0, rows)

    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """By sorting: algorithm 1 of the paper."""
        row = with_sink(scores, sink)
        base, empty = peaks(row)
        row = row - base
        inside = sorted_support(row, lambda ordered, count: (ordered.cumsum(-1) - 1.0) / count)
        size = inside.sum(-1, keepdim=True).clamp(min=1)
        threshold = (row.where(inside, 0.0).sum(-1, keepdim=True) - 1.0) / size
        # NaN scores have no support, and show.
        threshold = threshold + 0.0 * base
        weights = (row - threshold).clamp(min=0.0)[..., : scores.shape[-1]]
        return weights, (threshold + base).masked_fill(empty, -torch.inf).squeeze(-1)


def sparsemax() -> Normalizer:
    """w_j = max(s_j - τ, 0), τ such that the weights of a row sum to 1: the point of the simplex nearest to the scores.

    Martins and Astudillo 2016 (From Softmax to Sparsemax, arXiv 1602.02068, equations 2 and 3). Keys whose score lies
    below τ get exactly 0; τ is at least the greatest score less 1. A `sink` takes part as one more key without value.
    The threshold is found without sorting, in linear memory (`normalizers/newton.py`). The gradient is that of the
    paper's section 2.5: that of the weights less its mean over the support, and 0 outside.

    Example: `attend(q, k, v, normalizer=sparsemax())`.
    """
    return Sparsemax()
