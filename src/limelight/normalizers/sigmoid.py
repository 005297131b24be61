"""Sigmoid: each key for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from limelight.errors import ArgumentError
from limelight.normalizers.protocol import Normalizer, Rows


@dataclass(frozen=True)
class Sigmoid(Normalizer):
    """See `sigmoid`. f is the logistic function, and τ is -b, or log n."""

    bias: float | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return "sigmoid"

    @property
    def competes(self) -> bool:
        """What one key gets is not taken from another."""
        return False

    @property
    def sparse(self) -> bool:
        """Every allowed key has a weight above 0."""
        return False

    def check(self, sink: Tensor | None) -> None:
        """There is nothing of which a sink could take a share."""
        if sink is not None:
            raise ArgumentError(
                "sink: with normalizer=sigmoid() the keys share nothing that a sink could take a part of. Leave it "
                "out, or use softmax(), sparsemax() or entmax15()."
            )

    def weights(self, excess: Tensor) -> Tensor:
        """1 / (1 + exp(-excess))."""
        return torch.sigmoid(excess)

    def log_weights(self, excess: Tensor) -> Tensor:
        """-log(1 + exp(-excess)), without loss where the weight is tiny."""
        forbidden = excess == -torch.inf
        return functional.logsigmoid(excess.masked_fill(forbidden, 0.0)).masked_fill(forbidden, -torch.inf)

    def slopes(self, weights: Tensor) -> Tensor:
        """W (1 - w)."""
        return weights * (1.0 - weights)

    def threshold(self, rows: Rows) -> Tensor:
        """-b, or the log of how many keys each row may attend to."""
        if self.bias is not None:
            return rows.filled(-self.bias)
        count = rows.filled(0.0)
        for tile in rows:
            count += (tile != -torch.inf).sum(-1, keepdim=True)
        return count.log_()

    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """Element by element."""
        allowed = scores != -torch.inf
        if self.bias is None:
            threshold = allowed.sum(-1, keepdim=True).to(scores.dtype).log()
        else:
            threshold = scores.new_full((*scores.shape[:-1], 1), -self.bias)
        weights = torch.sigmoid(scores - threshold.masked_fill(threshold == -torch.inf, 0.0))
        return weights, threshold.squeeze(-1)


def sigmoid(bias: float | None = None) -> Normalizer:
    """w_j = 1 / (1 + exp(-(s_j + b))): each key for itself, so that the weights of a row sum to anything in (0, S).

    Ramapuram et al. 2024 (Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431), where
    b = -log n for sequences of n keys: with it, scores of 0 give each key 1 / (n + 1), nearly what a softmax gives.

    Arguments:
        bias: b, a finite number. None: -log n with n the number of keys that the query may attend to, so that padding
            changes nothing and a decoder that adds key after key computes what the whole sequence gives. (The paper
            has one n for all rows: `sigmoid(-math.log(n))`.) For learned or other b, `sigmoid(0.0)` and the `bias` of
            `attend`, to which gradients flow.

    Errors: ArgumentError if the bias is not a finite number and, when used, for a sink.

    Example: `attend(q, k, v, normalizer=sigmoid())`.
    """
    if bias is not None and (isinstance(bias, bool) or not isinstance(bias, (int, float)) or not math.isfinite(bias)):
        raise ArgumentError(f"sigmoid(bias): bias must be a finite number, or None for -log n; it is {bias!r}.")
    return Sigmoid(None if bias is None else float(bias))
