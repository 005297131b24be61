"""Entmax-1.5: between softmax and sparsemax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.normalizers.newton import SparseNormalizer
from limelight.normalizers.protocol import Normalizer


@dataclass(frozen=True)
class Entmax15(SparseNormalizer):
    """See `entmax15`. f(x) = max(x / 2, 0)²."""

    @property
    def name(self) -> str:
        """Its name."""
        return "entmax-1.5"

    @property
    def c(self) -> float:
        """1/2."""
        return 0.5

    def weights(self, excess: Tensor) -> Tensor:
        """The square of half the positive part."""
        return excess.clamp_min(0.0).mul_(0.5).square()

    def log_weights(self, excess: Tensor) -> Tensor:
        """2 log(excess / 2)."""
        inside = ~(excess <= 0.0)
        return (2.0 * (0.5 * excess.where(inside, 1.0)).log()).where(inside, -torch.inf)

    def slopes(self, weights: Tensor) -> Tensor:
        """The root of the weight."""
        return weights.sqrt()

    def offsets(self, ordered: Tensor, count: Tensor) -> Tensor:
        """The smaller root of Σ ((s - τ) / 2)² = 1 over the first k: algorithm 2 of the paper; no root: their mean."""
        mean = ordered.cumsum(-1) / count
        spread = 0.25 * (ordered.square().cumsum(-1) - count * mean.square())
        return mean - 2.0 * ((1.0 - spread) / count).clamp(min=0.0).sqrt()

    def offset(self, row: Tensor, inside: Tensor, size: Tensor) -> Tensor:
        """The same over the support, with the spread summed around the mean."""
        mean = row.where(inside, 0.0).sum(-1, keepdim=True) / size
        spread = 0.25 * (row - mean).where(inside, 0.0).square().sum(-1, keepdim=True)
        return mean - 2.0 * ((1.0 - spread) / size).sqrt()


def entmax15() -> Normalizer:
    """w_j = max((s_j - τ) / 2, 0)², τ such that the weights of a row sum to 1.

    Peters, Niculae, Martins 2019 (Sparse Sequence-to-Sequence Models, arXiv 1905.05702, equation 9 with alpha = 1.5):
    smooth as a softmax is, with exact zeros as sparsemax has them, though fewer. τ is at least the greatest score less
    2; the paper's threshold is half of ours. A `sink` takes part as one more key without value. The threshold is found
    without sorting, in linear memory (`normalizers/newton.py`).

    Example: `attend(q, k, v, normalizer=entmax15())`.
    """
    return Entmax15()
