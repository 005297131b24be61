"""The dot-product score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector
from limelight.scores.protocol import Score, TileGradient, require_same_width


def scaled_product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The matrix scale · query keyᵀ, [n, H, t, s]: the scale is applied to the smaller of query and scores."""
    if scale == 1.0:
        return torch.matmul(query, key.mT)
    if key.shape[2] < query.shape[3]:
        return torch.matmul(query, key.mT).mul_(scale)
    return torch.matmul(query * scale, key.mT)


@dataclass(frozen=True)
class Dot(Score):
    """See `dot`."""

    scale: float | None = None
    cap: float | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def check(self, query: Tensor, key: Tensor) -> None:
        """Query and key have the same width."""
        require_same_width("dot", query, key)

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing to do."""
        return query, key

    def plain_scale(self, width: int) -> float | None:
        """The scale, 1/sqrt(width) unless given."""
        if self.scale is not None:
            return self.scale
        return 1.0 / math.sqrt(width) if width else 1.0

    def soft_cap(self) -> float | None:
        """The cap."""
        return self.cap

    def pair_cost(self, width: int) -> int:
        """The score alone; with a cap the tanh too."""
        return 1 if self.cap is None else 2

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """There are none."""
        return parameters

    def proves_finite(self) -> bool:
        """NaN and inf show in the product, unless the scale is 0 or a cap makes inf a number."""
        return self.scale != 0.0 and self.cap is None

    def saturates(self) -> bool:
        """It gives inf or NaN; under a cap the slope is 0, but it meets the inf again in the product."""
        return False

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The scores scale · q·k, capped; the tanh is kept."""
        scale = self.plain_scale(query.shape[-1])
        assert scale is not None
        scores = scaled_product(query, key, scale)
        if self.cap is None:
            return scores, ()
        tanh = scores.div_(self.cap).tanh_()
        return tanh * self.cap, (tanh,)

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """With g the gradient, times 1 - tanh² under a cap: d q = scale · g k, d k = scale · gᵀ q."""
        scale = self.plain_scale(query.shape[-1])
        if self.cap is not None:
            (tanh,) = kept
            gradient = torch.ops.aten.tanh_backward(gradient, tanh)
        if scale is not None and scale != 1.0:
            gradient = gradient * scale
        # With one query the product is an outer one, which torch multiplies three times as fast as it "matmuls".
        to_key = gradient.mT * query if query.shape[2] == 1 else torch.matmul(gradient.mT, query)
        return TileGradient(torch.matmul(gradient, key), to_key, ())


def dot(scale: float | None = None, cap: float | None = None) -> Score:
    """The dot-product score: s = scale · q·k, or with a cap c: c tanh(s / c).

    With the default scale 1/sqrt(D), D the width of the query: scaled dot-product attention (Vaswani et al. 2017, arXiv
    1706.03762, eq. 1). With `dot(1.0)`: the *dot* score of Luong, Pham, Manning 2015 (arXiv 1508.04025). The soft cap
    keeps scores in (-c, c): Gemma 2 (2024, arXiv 2408.00118, section 2, c = 50). It comes before bias and mask.

    Errors: ArgumentError if the scale is not a finite number, if the cap is not a finite number above 0 and, when used,
    if query and key differ in width.

    Example: `attend(q, k, v, score=dot(cap=50.0))`.
    """
    if scale is not None and not _is_finite(scale):
        raise ArgumentError(f"dot(scale): scale must be a finite number, or None for 1/sqrt(D); it is {scale!r}.")
    if cap is not None and not (_is_finite(cap) and cap > 0):
        raise ArgumentError(f"dot(cap): cap must be a finite number above 0, or None for no cap; it is {cap!r}.")
    return Dot(None if scale is None else float(scale), None if cap is None else float(cap))


def _is_finite(number: object) -> bool:
    """Whether it is one, also in float32."""
    return isinstance(number, Real) and not isinstance(number, bool) and abs(float(number)) < 2.0**128
