"""Which part of the attention matrix a mask, a score or a view is asked for."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Selector = slice | Tensor
"""Positions along one axis: a slice with integer start and stop and step 1, or an index tensor (int64, one axis)."""


class Block(NamedTuple):
    """A block of the attention matrix [N, H, T, S], N being the leading axes folded into one.

    Arguments:
        lead: sizes of the leading axes, before folding.
        heads, queries, keys: H, T, S of the whole call.
        batch, head, rows, columns: the positions wanted along N, H, T and S.
        device: where tensors are to be built.
    """

    lead: tuple[int, ...]
    heads: int
    queries: int
    keys: int
    batch: Selector
    head: Selector
    rows: Selector
    columns: Selector
    device: torch.device

    def row_index(self) -> Tensor:
        """The rows wanted, int64 [t]."""
        return positions(self.rows, self.device)

    def column_index(self) -> Tensor:
        """The columns wanted, int64 [s]."""
        return positions(self.columns, self.device)

    @property
    def whole(self) -> bool:
        """Whether the block is the whole matrix."""
        return (
            self.rows == slice(0, self.queries)
            and self.columns == slice(0, self.keys)
            and self.batch == slice(0, math.prod(self.lead))
            and self.head == slice(0, self.heads)
        )


def whole_block(n: int, heads: int, queries: int, keys: int, device: torch.device) -> Block:
    """The whole of a matrix [n, heads, queries, keys]."""
    everything = slice(0, n), slice(0, heads), slice(0, queries), slice(0, keys)
    return Block((n,), heads, queries, keys, *everything, device)


def positions(selector: Selector, device: torch.device) -> Tensor:
    """The positions a selector names, int64."""
    if isinstance(selector, slice):
        return torch.arange(selector.start, selector.stop, device=device)
    return selector.to(device)


def bounds(selector: Selector) -> tuple[int, int]:
    """The interval [first, last] of positions a selector names; (0, -1) when it names none."""
    if isinstance(selector, slice):
        return (selector.start, selector.stop - 1) if selector.stop > selector.start else (0, -1)
    if selector.numel() == 0:
        return 0, -1
    low, high = torch.aminmax(selector)
    return int(low), int(high)


def pick(tensor: Tensor, axis: int, selector: Selector) -> Tensor:
    """The selected positions along `axis` (counted from the front); an axis of size 1 stands for every position."""
    size = tensor.shape[axis]
    if size == 1:
        return tensor
    if isinstance(selector, slice):
        count = selector.stop - selector.start
        return tensor if count == size else tensor.narrow(axis, selector.start, count)
    return tensor.index_select(axis, selector.to(tensor.device))


def pick_block(tensor: Tensor, block: Block) -> Tensor:
    """That block of a tensor [N or 1, H or 1, T or 1, S or 1]."""
    for axis, selector in enumerate((block.batch, block.head, block.rows, block.columns)):
        tensor = pick(tensor, axis, selector)
    return tensor


def fold_lead(tensor: Tensor, lead: tuple[int, ...], trailing: int) -> Tensor:
    """Fold the leading axes [..., trailing axes] into one: N, or 1 where the tensor is the same along all of them.

    The tensor broadcasts to `lead` in front of its last `trailing` axes. A view, except where two or more leading axes
    are broadcast in part.
    """
    if len(lead) == 1 and tensor.ndim == trailing + 1:
        return tensor  # as most are
    missing = trailing - tensor.ndim
    if missing > 0:
        tensor = tensor.reshape((1,) * missing + tuple(tensor.shape))
    tail = tuple(tensor.shape[tensor.ndim - trailing :])
    front = tuple(tensor.shape[: tensor.ndim - trailing])
    if all(size == 1 for size in front):
        return tensor.reshape((1, *tail))
    return tensor.expand(lead + tail).reshape((math.prod(lead), *tail))
