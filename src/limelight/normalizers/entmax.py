"""Entmax-1.5: between softmax and sparsemax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.normalizers.newton import solved, sorted_support
from limelight.normalizers.protocol import Normalizer, Rows, peaks, with_sink


@dataclass(frozen=True)
class Entmax15(Normalizer):
    """See `entmax15`. f(x) = max(x / 2, 0)²."""

    @property
    def name(self) -> str:
        """Its name."""
        return "entmax-1.5"

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
        """The square of half the positive part."""
        return excess.clamp_min(0.0).mul_(0.5).square()

    def log_weights(self, excess: Tensor) -> Tensor:
        """2 log(excess / 2)."""
        inside = ~(excess <= 0.0)
        return (2.0 * (0.5 * excess.where(inside, 1.0)).log()).where(inside, -torch.inf)

    def slopes(self, weights: Tensor) -> Tensor:
        """The root of the weight."""
        return weights.sqrt()

    def threshold(self, rows: Rows) -> Tensor:
        """By Newton's method."""
        return solved(self, 0.5, rows)

    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """By sorting: algorithm 2 of the paper."""
        row = with_sink(scores, sink)
        base, empty = peaks(row)
        row = 0.5 * (row - base)
        inside = sorted_support(row, _threshold)
        size = inside.sum(-1, keepdim=True).clamp(min=1)
        mean = row.where(inside, 0.0).sum(-1, keepdim=True) / size
        spread = (row - mean).where(inside, 0.0).square().sum(-1, keepdim=True)
        # NaN scores have no support, and show.
        threshold = mean - ((1.0 - spread) / size).sqrt() + 0.0 * base
        weights = (row - threshold).clamp(min=0.0).square()[..., : scores.shape[-1]]
        return weights, (2.0 * threshold + base).masked_fill(empty, -torch.inf).squeeze(-1)


def _threshold(ordered: Tensor, count: Tensor) -> Tensor:
    """The smaller root of Σ (z - τ)² = 1 over the first k numbers; where there is none, the numbers' mean."""
    mean = ordered.cumsum(-1) / count
    spread = ordered.square().cumsum(-1) - count * mean.square()
    return mean - ((1.0 - spread) / count).clamp(min=0.0).sqrt()


def entmax15() -> Normalizer:
    """w_j = max((s_j - τ) / 2, 0)², τ such that the weights of a row sum to 1.

    Peters, Niculae, Martins 2019 (Sparse Sequence-to-Sequence Models, arXiv 1905.05702, equation 9 with alpha = 1.5):
    smooth as a softmax is, with exact zeros as sparsemax has them, though fewer. τ is at least the greatest score less
    2; the paper's threshold is half of ours. A `sink` takes part as one more key without value. The threshold is found
    without sorting, in linear memory (`normalizers/newton.py`).

    Example: `attend(q, k, v, normalizer=entmax15())`.
    """
    return Entmax15()
