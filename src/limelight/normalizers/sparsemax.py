"""Sparsemax: weights that sum to 1, most of them exactly 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.normalizers.newton import SparseNormalizer
from limelight.normalizers.protocol import Normalizer


@dataclass(frozen=True)
class Sparsemax(SparseNormalizer):
    """See `sparsemax`. f(x) = max(x, 0)."""

    @property
    def name(self) -> str:
        """Its name."""
        return "sparsemax"

    @property
    def c(self) -> float:
        """1: Newton's method is Michelot's here."""
        return 1.0

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

    def offsets(self, ordered: Tensor, count: Tensor) -> Tensor:
        """(Σ of the first k - 1) / k: algorithm 1 of the paper."""
        return (ordered.cumsum(-1) - 1.0) / count

    def offset(self, row: Tensor, inside: Tensor, size: Tensor) -> Tensor:
        """(Σ of the support - 1) / its size."""
        return (row.where(inside, 0.0).sum(-1, keepdim=True) - 1.0) / size


def sparsemax() -> Normalizer:
    """w_j = max(s_j - τ, 0), τ such that the weights of a row sum to 1: the point of the simplex nearest to the scores.

    Martins and Astudillo 2016 (From Softmax to Sparsemax, arXiv 1602.02068, equations 2 and 3). Keys whose score lies
    below τ get exactly 0; τ is at least the greatest score less 1. A `sink` takes part as one more key without value.
    The threshold is found without sorting, in linear memory (`normalizers/newton.py`). The gradient is that of the
    paper's section 2.5: that of the weights less its mean over the support, and 0 outside.

    Example: `attend(q, k, v, normalizer=sparsemax())`.
    """
    return Sparsemax()
