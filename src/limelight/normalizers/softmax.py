"""Softmax: positive weights that sum to 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.normalizers.protocol import Normalizer, Rows, peaks, with_sink


@dataclass(frozen=True)
class Softmax(Normalizer):
    """See `softmax`. f = exp, and τ is the lse."""

    @property
    def name(self) -> str:
        """Its name."""
        return "softmax"

    @property
    def is_softmax(self) -> bool:
        """It is."""
        return True

    @property
    def competes(self) -> bool:
        """They do."""
        return True

    @property
    def sparse(self) -> bool:
        """Every allowed key has a weight above 0, though it may round to 0."""
        return False

    def check(self, sink: Tensor | None) -> None:
        """A sink takes part."""

    def weights(self, excess: Tensor) -> Tensor:
        """exp(s - lse)."""
        return torch.exp(excess)

    def log_weights(self, excess: Tensor) -> Tensor:
        """The excess itself."""
        return excess

    def slopes(self, weights: Tensor) -> Tensor:
        """The weights themselves."""
        return weights

    def threshold(self, rows: Rows) -> Tensor:
        """The log of the sum, after the greatest score was taken off."""
        peak = rows.filled(-torch.inf)
        for tile in rows:
            peak = torch.maximum(peak, tile.amax(-1, keepdim=True))
        rows.shift(peak.masked_fill(peak == -torch.inf, 0.0))
        total = rows.filled(0.0)
        for tile in rows:
            total += torch.exp(tile).sum(-1, keepdim=True)
        return total.log()

    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """exp(s - peak) over its sum."""
        row = with_sink(scores, sink)
        base, empty = peaks(row)
        weights = torch.exp(row - base)
        total = weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
        lse = (base + total.log()).masked_fill(empty, -torch.inf)
        return (weights / total)[..., : scores.shape[-1]], lse.squeeze(-1)


def softmax() -> Normalizer:
    """w_j = exp(s_j) / Σ_k exp(s_k) over the keys that a query may attend to: the default.

    One number per row is kept, lse = log Σ exp(s). With a `sink` the sum has one more term.
    """
    return Softmax()
