"""The cosine score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limelight.contract import accumulation_dtype, float_dtypes
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector
from limelight.scores.dot import Dot
from limelight.scores.protocol import Score, TileGradient, require_same_width

_INNER = Dot(1.0)


@dataclass(frozen=True, eq=False)
class Cosine(Score):
    """See `cosine`."""

    scale: float | Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """None: the scale is used up in `prepare`."""
        return ()

    def check(self, query: Tensor, key: Tensor) -> None:
        """One width, and one scale or one per head."""
        require_same_width("cosine", query, key)
        scale = self.scale
        if isinstance(scale, Tensor) and (scale.numel() not in (1, query.shape[-3]) or scale.device != query.device):
            raise ArgumentError(
                f"score cosine(scale): scale must be one number, or one per head, [{query.shape[-3]}], on "
                f"{query.device}; it is {list(scale.shape)} on {scale.device}."
            )

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key at length 1, the query times the scale, so that what is left is a dot product."""
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.reshape(-1, 1, 1).to(query.dtype)
        return unit(query) * scale, unit(key)

    def plain_scale(self, width: int) -> float | None:
        """1: the scale is in the query."""
        return 1.0

    def pair_cost(self, width: int) -> int:
        """The score alone."""
        return _INNER.pair_cost(width)

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """There are none."""
        return parameters

    def proves_finite(self) -> bool:
        """As the dot product."""
        return _INNER.proves_finite()

    def saturates(self) -> bool:
        """As the dot product."""
        return False

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As the dot product."""
        return _INNER.tile(query, key, parameters, block)

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
        return _INNER.tile_gradient(query, key, parameters, block, kept, gradient)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulation_dtype(x.dtype))
        inverse = torch.where(length > 0, 1.0 / length, 0.0 * length)
        found = (x * inverse).to(x.dtype)
        ctx.save_for_backward(found, inverse)
        return found

    # The decorator's own signature is narrower than what it wraps.
    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, inverse = ctx.saved_tensors
        (gradient,) = grad_outputs
        wide, along = gradient.to(inverse.dtype), found.to(inverse.dtype)
        slope = (wide - along * (wide * along).sum(-1, keepdim=True)) * inverse
        # What took no part, a key behind a mask, may be NaN: its gradient is 0.
        none = (gradient == 0).all(-1, keepdim=True)
        return slope.masked_fill(none, 0.0).to(gradient.dtype)


def unit(x: Tensor) -> Tensor:
    """X / |x| along the last axis, with the gradient; a vector of length 0 stays 0 and gets the gradient 0."""
    return _Unit.apply(x)  # pyright: ignore[reportReturnType]


def cosine(scale: float | Tensor = 1.0) -> Score:
    """The cosine score: scale · q·k / (|q| |k|), in [-scale, scale].

    Content-based addressing of Graves, Wayne, Danihelka 2014 (arXiv 1410.5401, equations 5 and 6). With a learned
    scale: QK-norm, Henry et al. 2020 (arXiv 2010.04245, section 3); start it at `qk_norm_start(length)`.

    Arguments:
        scale: a finite number, or a float tensor of one number, or [H]; gradients flow to a tensor.

    A query or key of length 0 has the score 0.

    Errors: ArgumentError for a scale that is neither and, when used, for widths that differ or another number of heads.

    Example: `attend(q, k, v, score=cosine(torch.tensor(10.0, requires_grad=True)))`.
    """
    if isinstance(scale, Tensor):
        if scale.dtype not in float_dtypes or scale.ndim > 1 or not scale.numel():
            raise ArgumentError(
                f"cosine(scale): a tensor must be float, one number or [H]; it is {scale.dtype} {list(scale.shape)}."
            )
        return Cosine(scale)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ArgumentError(f"cosine(scale): scale must be a finite number or a tensor; it is {scale!r}.")
    return Cosine(float(scale))


def qk_norm_start(length: int) -> float:
    """Where the scale of QK-norm starts: log2(L² - L), L a usual length of the sequences. Henry et al. 2020, section 3.

    Errors: ArgumentError if the length is below 2.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 2:
        raise ArgumentError(f"qk_norm_start(length): length must be an integer of at least 2; it is {length!r}.")
    return math.log2(length * length - length)
