"""The general (bilinear) score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from limelight.arrays import as_tensor
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector
from limelight.scores.dot import Dot
from limelight.scores.projection import project
from limelight.scores.protocol import Score, TileGradient, require_weight


@dataclass(frozen=True, eq=False)
class General(Score):
    """See `general`."""

    weight: Tensor
    inner: Dot

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """None: the weight is used up in `prepare`."""
        return ()

    def check(self, query: Tensor, key: Tensor) -> None:
        """The weight is [D of the query, D of the key]."""
        require_weight("general(weight)", self.weight, (query.shape[-1], key.shape[-1]), query)

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The query times W, so that what is left is a dot product."""
        return project(query, self.weight.mT), key

    def plain_scale(self, width: int) -> float | None:
        """The scale."""
        return self.inner.plain_scale(width)

    def pair_cost(self, width: int) -> int:
        """The score alone."""
        return self.inner.pair_cost(width)

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """There are none."""
        return parameters

    def proves_finite(self) -> bool:
        """As the dot product."""
        return self.inner.proves_finite()

    def saturates(self) -> bool:
        """As the dot product."""
        return False

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As the dot product."""
        return self.inner.tile(query, key, parameters, block)

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """As the dot product."""
        return self.inner.tile_gradient(query, key, parameters, block, kept, gradient)


def general(weight: Tensor, scale: float = 1.0) -> Score:
    """The general score: scale · qᵀ W k, W [width of query, width of key] (or one per head, [H, ., .]).

    The *general* score of Luong, Pham, Manning 2015 (arXiv 1508.04025, section 3.1). W is applied once per query.

    Errors: ArgumentError for a scale that is not a finite number and, when used, for a weight of another shape.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ArgumentError(f"general(weight, scale): scale must be a finite number; it is {scale!r}.")
    weight = as_tensor(weight)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        shape = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ArgumentError(f"general(weight): weight must be a tensor [D of query, D of key]; it is {shape}.")
    return General(weight, Dot(float(scale)))
