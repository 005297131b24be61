"""The mean over heads of a view, as a virtual array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limelight.contract import tracing
from limelight.errors import ArgumentError
from limelight.indexing import parse, parse_block
from limelight.masks.block import positions
from limelight.view.array import VirtualArray
from limelight.view.operator import as_operand
from limelight.view.sizes import DENSE_LIMIT, dense_bytes, guard, in_units

if TYPE_CHECKING:
    from limelight.view.attention import AttentionView


class MeanView(VirtualArray):
    """The mean of an attention matrix over some of its heads, [..., T, S], computed where it is looked at.

    Made by `view.mean(heads)`. `mean[...]` goes head by head, so that no more than two blocks are held, and so does
    `dense` where no kernel has the mean of all heads in one pass; products are those of all heads, of which the chosen
    ones are averaged. Differentiable as the view is.
    """

    __slots__ = ("_heads", "_view")

    def __init__(self, view: AttentionView, heads: int | Sequence[int] | None) -> None:
        chosen = slice(None) if heads is None else [heads] if isinstance(heads, int) else heads
        try:
            (axis,) = parse((chosen,), view.shape[-3:-2])
        except ArgumentError:
            count = view.shape[-3]
            raise ArgumentError(
                f"heads must be one or several of the {count} heads, from 0 to {count - 1}; it is {heads!r}. None: all."
            ) from None
        if not axis.size:
            raise ArgumentError(f"mean(heads): heads must name one head at least; it is {heads!r}. None: all of them.")
        self._view = view
        every = range(axis.size)  # for a graph: a tensor's numbers would be names there
        self._heads: list[int] = list(
            every if heads is None else positions(axis.selector, torch.device("cpu")).tolist()
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., T, S)."""
        shape = self._view.shape
        return shape[:-3] + shape[-2:]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 for float64 inputs."""
        return self._view.dtype

    @property
    def device(self) -> torch.device:
        """Where the view computes."""
        return self._view.device

    def __repr__(self) -> str:
        dense = in_units(dense_bytes(self.shape, self.dtype))
        return f"MeanView(shape={list(self.shape)}, of {len(self._heads)} heads, dense would be {dense})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        """That block of the mean, indexed as a view is.

        Errors: ArgumentError for an index that does not fit; DenseSizeError if the block is above 1 GiB.
        """
        axes, shape = parse_block(index, self.shape)
        guard([axis.size for axis in axes], self.dtype, DENSE_LIMIT)
        return self._mean(tuple(axis.selector for axis in axes)).reshape(shape)

    def dense(self, *, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The whole mean, [..., T, S].

        Errors: DenseSizeError, which names the bytes, if it is larger than `limit` bytes; None for no limit.
        """
        guard(self.shape, self.dtype, limit)
        if self._heads != list(range(self._view.shape[-3])):
            return self.by_heads()
        if tracing():  # one operation of a graph instead of one for each head
            return self._view.dense(limit=None).mean(-3)
        known = self._view.mean_of_heads()
        if known is None:
            return self.by_heads()
        found: Any = _Late.apply(known, self._view.detach(), *self._view.tensors())
        return found

    def __matmul__(self, x: Any) -> Tensor:
        """W x, [..., T, M] of x [..., S, M], or [..., T] of x [S]; as `view @ x`."""
        x = self._operand(x)
        return self._chosen(self._view @ x, -2 if x.ndim == 1 else -3)

    def __rmatmul__(self, x: Any) -> Tensor:
        """X W, [..., M, S] of x [..., M, T], or [..., S] of x [T]; as `x @ view`."""
        x = self._operand(x)
        return self._chosen(x @ self._view, -2 if x.ndim == 1 else -3)

    def _operand(self, x: Any) -> Tensor:
        """The operand with a head axis for its leading axes to line up with those of the view."""
        x = as_operand(x, self.dtype, self.device)
        return x if x.ndim == 1 else x.unsqueeze(-3)

    def _chosen(self, product: Tensor, axis: int) -> Tensor:
        if len(self._heads) < product.shape[axis] or self._heads != list(range(product.shape[axis])):
            product = product.index_select(axis, torch.tensor(self._heads, device=product.device))
        return product.mean(axis)

    def by_heads(self) -> Tensor:
        """The whole mean, head by head."""
        return self._mean((slice(None),) * len(self.shape))

    def _mean(self, index: tuple[Any, ...]) -> Tensor:
        """The block with every axis kept."""
        lead, last = index[:-2], index[-2:]
        total = self._view[(*lead, self._heads[0], *last)]
        for head in self._heads[1:]:
            total = total + self._view[(*lead, head, *last)]
        return total / len(self._heads)


class _Late(torch.autograd.Function):
    """The mean of all heads, known already: how it depends on the view's tensors is worked out if it is asked for."""

    @staticmethod
    def forward(ctx: Any, known: Tensor, view: AttentionView, *tensors: Tensor | None) -> Tensor:
        ctx.view = view
        ctx.save_for_backward(*tensors)
        return known.view_as(known)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        once_more = torch.is_grad_enabled()
        with torch.enable_grad():
            # Each by itself: the threshold depends on the others, and autograd follows that on its own.
            apart = [None if one is None else one.view_as(one) for one in ctx.saved_tensors]
            wanted = [one for one in apart if one is not None and one.requires_grad]
            mean = MeanView(ctx.view.of(apart), None).by_heads()
            found = iter(torch.autograd.grad(mean, wanted, grad_outputs, create_graph=once_more, allow_unused=True))
        return None, None, *(next(found) if one is not None and one.requires_grad else None for one in apart)
