"""Any score, favouring keys near a place that each query names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.contract import float_dtypes
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector, pick
from limelight.scores.protocol import Score, TileGradient


@dataclass(frozen=True, eq=False)
class Gaussian(Score):
    """See `gaussian`. The inner score is prepared already once `prepare` has run."""

    inner: Score
    centre: Tensor
    deviation: float

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The centre, then those of the inner score."""
        return (self.centre, *self.inner.parameters)

    def check(self, query: Tensor, key: Tensor) -> None:
        """The inner score fits, and there is a centre for each query."""
        self.inner.check(query, key)
        want = (*query.shape[:-3], query.shape[-2])
        # A view keeps the query with its leading axes folded into one.
        fits = self.centre.shape[-1:] == want[-1:] and self.centre.numel() == math.prod(want)
        if not fits or self.centre.device != query.device:
            raise ArgumentError(
                f"score gaussian(centre): centre must have one place per query, {list(want)} on {query.device}; it is "
                f"{list(self.centre.shape)} on {self.centre.device}."
            )

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As the inner score."""
        return self.inner.prepare(query, key)

    def plain_scale(self, width: int) -> float | None:
        """Not a dot product alone."""
        return None

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Score:
        """Another centre, and another inner score."""
        return Gaussian(self.inner.with_parameters(parameters[1:]), parameters[0], self.deviation)

    def pair_cost(self, width: int) -> int:
        """The inner score and the distance."""
        return self.inner.pair_cost(width) + 1

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """The centre is that of all heads."""
        inner = self.inner.of_heads(parameters[1:], head)
        return None if inner is None else (parameters[0], *inner)

    def proves_finite(self) -> bool:
        """As the inner score."""
        return self.inner.proves_finite()

    def saturates(self) -> bool:
        """As the inner score."""
        return self.inner.saturates()

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The inner tile - (j - p)² / 2σ²; keeps what the inner score keeps."""
        scores, kept = self.inner.tile(query, key, parameters[1:], block)
        away = self._away(parameters[0], block)
        return scores - away.square().mul(0.5 / self.deviation**2), kept

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """D p = Σ_j g (j - p) / σ²; the rest as the inner score."""
        rows = (gradient * self._away(parameters[0], block)).sum((1, 3)) / self.deviation**2  # [n, t]
        centre = parameters[0]
        count = math.prod(block.lead)
        whole = rows.new_zeros(count, block.queries)
        batch, places = (
            torch.arange(one.start, one.stop, device=rows.device) if isinstance(one, slice) else one.to(rows.device)
            for one in (block.batch, block.rows)
        )
        whole[batch[:, None], places] = rows
        inner = self.inner.tile_gradient(query, key, parameters[1:], block, kept, gradient)
        return TileGradient(inner.query, inner.key, (whole.view(centre.shape), *inner.parameters))

    def _away(self, centre: Tensor, block: Block) -> Tensor:
        """J - p, [n, 1, t, s]."""
        places = pick(pick(centre.reshape(math.prod(block.lead), block.queries), 0, block.batch), 1, block.rows)
        return block.column_index().to(places.dtype) - places[:, None, :, None]


def gaussian(score: Score, centre: Tensor, deviation: float) -> Score:
    """score(q_i, k_j) - (j - p_i)² / 2σ²: keys near a place p_i, which each query names, weigh more.

    exp of it is the score's exp times the Gaussian of Luong, Pham, Manning 2015 (arXiv 1508.04025, equation 10); here
    the softmax comes after it. `LocalPredictiveAttention` has the order of the paper. Gradients flow to the centre.

    Arguments:
        score: how query and key meet, from `limelight.scores`.
        centre: p, float [..., T], one place per query, counted as the keys are, from 0: its leading axes are those of
            the query. The same for all heads.
        deviation: σ, in positions.

    Errors: ArgumentError if the score is none, centre no float tensor, the deviation no finite number above 0 and, when
    used, if there is not one centre for each query.

    Example: `attend(q, k, v, score=gaussian(dot(), centre, 5.0))` with q [B, H, T, D] and centre [B, T].
    """
    if not isinstance(score, Score):
        raise ArgumentError(f"gaussian(score): score must be one of limelight.scores, such as dot(); it is {score!r}.")
    centre = as_tensor(centre)
    if not isinstance(centre, Tensor) or centre.dtype not in float_dtypes:
        have = centre.dtype if isinstance(centre, Tensor) else type(centre).__name__
        raise ArgumentError(f"gaussian(centre): centre must be a float tensor [..., T]; it is {have}.")
    if isinstance(deviation, bool) or not isinstance(deviation, (int, float)) or not 0 < deviation < math.inf:
        raise ArgumentError(f"gaussian(deviation): must be a finite number above 0, in positions; it is {deviation!r}.")
    return Gaussian(score, centre, float(deviation))
