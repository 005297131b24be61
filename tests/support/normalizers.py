"""The normalizers of one row in float64, not as the library finds them: by trying every size of the support."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.support.oracle import Normalize
from torch import Tensor

import limelight


def _first_that_holds(scores: Tensor, threshold_of: Callable[[Tensor], Tensor | None], weigh: Callable) -> Tensor:
    """The threshold whose own support it was worked out from: the size for which the weights sum to 1 and fit it."""
    order = scores.detach().argsort(descending=True)
    best, distance = None, torch.inf
    for size in range(1, len(scores) + 1):
        threshold = threshold_of(scores[order[:size]])
        if threshold is None:
            continue
        away = abs(float(weigh(scores.detach() - threshold.detach()).sum()) - 1.0)
        # A key at the threshold itself may be counted or not: the threshold is the same.
        if away < distance - 1e-13:
            best, distance = threshold, away
    assert best is not None
    assert distance < 1e-6
    return best


def by_sparsemax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """max(s - τ, 0), τ = (Σ of the support - 1) / its size."""
    threshold = _first_that_holds(scores, lambda some: (some.sum() - 1) / len(some), lambda x: x.clamp(min=0))
    return (scores - threshold).clamp(min=0), threshold


def by_entmax15(scores: Tensor) -> tuple[Tensor, Tensor]:
    """max((s - τ) / 2, 0)², τ the smaller root of Σ over the support of ((s - τ) / 2)² = 1."""

    def root(some: Tensor) -> Tensor | None:
        spread = (some - some.mean()).square().sum() / 4
        return None if float(spread.detach()) > 1.0 else some.mean() - 2 * ((1 - spread) / len(some)).sqrt()

    threshold = _first_that_holds(scores, root, lambda x: (x / 2).clamp(min=0).square())
    return ((scores - threshold) / 2).clamp(min=0).square(), threshold


def by_sigmoid(scores: Tensor) -> tuple[Tensor, Tensor]:
    """1 / (1 + exp(log n - s)) for n scores."""
    threshold = torch.tensor(float(len(scores)), dtype=torch.float64).log()
    return torch.exp(-torch.logaddexp(torch.zeros_like(scores), threshold - scores)), threshold


NORMALIZERS: dict[str, tuple[limelight.normalizers.Normalizer, Normalize]] = {
    "sparsemax": (limelight.sparsemax(), by_sparsemax),
    "entmax15": (limelight.entmax15(), by_entmax15),
    "sigmoid": (limelight.sigmoid(), by_sigmoid),
}
COMPETING = ("sparsemax", "entmax15")
