"""The interval mask: each query sees one run of keys of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.contract import integer_dtypes, tracing
from limelight.errors import ArgumentError
from limelight.masks.block import Block, bounds, pick
from limelight.masks.form import Form
from limelight.masks.protocol import Mask


@dataclass(frozen=True, eq=False)
class Interval(Mask):
    """See `interval`. Both are int64 [..., T], of one shape."""

    first: Tensor
    last: Tensor

    def tile(self, block: Block) -> Tensor:
        """Bool [n or 1, 1, t, s]."""
        first, last = (
            pick(pick(self._folded(one.to(block.device), block), 0, block.batch), 1, block.rows)[:, None, :, None]
            for one in (self.first, self.last)
        )
        place = block.column_index()
        return (place >= first) & (place <= last)

    def rules_out(self, block: Block) -> bool:
        """The keys lie before or behind the intervals of all its queries."""
        if tracing():
            return False
        (first, last), (low, high) = self._host_of(block), bounds(block.columns)
        return bool(first.size) and bool(last.max() < low or first.min() > high)

    def allows_all(self, block: Block) -> bool:
        """The keys lie in the interval of every query."""
        if tracing():
            return False
        (first, last), (low, high) = self._host_of(block), bounds(block.columns)
        return bool(first.size) and bool(first.max() <= low and last.min() >= high)

    def reach(self, block: Block) -> tuple[int, int]:
        """From where the first interval of its queries begins to where the last one ends."""
        if tracing():
            return bounds(block.columns)
        (first, last), (low, high) = self._host_of(block), bounds(block.columns)
        return (max(low, int(first.min())), min(high, int(last.max()))) if first.size else (low, high)

    def check(self, block: Block) -> None:
        """The bounds line up with the first leading axes and with the queries."""
        *lead, queries = self.first.shape
        if tuple(lead) != block.lead[: len(lead)] or queries != block.queries:
            raise ArgumentError(
                f"mask interval(...): the bounds must be [..., T] with T = {block.queries} queries and, in front, the "
                f"leading axes of the query {list(block.lead)}, the first of them, or none; they are "
                f"{list(self.first.shape)}."
            )

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """With other bounds."""
        return Interval(change(self.first), change(self.last))

    def form(self, whole: Block) -> Form:
        """The run of keys of each query, [S, 0) where it has none."""
        first = self._folded(self.first.to(whole.device), whole).clamp(0, whole.keys)
        end = (self._folded(self.last.to(whole.device), whole) + 1).clamp(0, whole.keys)
        none = first >= end
        first, end = first.masked_fill(none, whole.keys), end.masked_fill(none, 0)
        return Form(first=first.to(torch.int32), last=end.to(torch.int32))

    @cached_property
    def _host(self) -> tuple[np.ndarray, np.ndarray]:
        return self.first.cpu().numpy(), self.last.cpu().numpy()

    def _host_of(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of the block's queries; of all between where those are chosen one by one, or of all sequences."""
        shape, (low, high) = self.first.shape, bounds(block.rows)
        start, stop = 0, math.prod(shape[:-1])
        if isinstance(block.batch, slice) and len(shape) > 1:
            inner = math.prod(block.lead[len(shape) - 1 :])
            start, stop = block.batch.start // inner, (block.batch.stop - 1) // inner + 1
        first, last = (one.reshape(-1, shape[-1])[start:stop, low : high + 1] for one in self._host)
        return first, last

    @staticmethod
    def _folded(places: Tensor, block: Block) -> Tensor:
        """[N or 1, T]."""
        lead = places.ndim - 1
        if not lead:
            return places[None]
        inner = math.prod(block.lead[lead:])
        places = places.reshape(-1, places.shape[-1])
        return places if inner == 1 else places.repeat_interleave(inner, 0)


def interval(first: Tensor, last: Tensor) -> Mask:
    """Keys in [first_i, last_i] for query i: a run of keys that each query names.

    The window of local attention where its centre is computed: Luong, Pham, Manning 2015 (arXiv 1508.04025, section
    3.2). What lies outside [0, S - 1] is cut off; where last_i < first_i the query may attend to nothing.

    Arguments:
        first: integers [..., T]: the axes in front are the leading axes of the query, the first of them, or none.
        last: integers of the same shape. Both are copied.

    Errors: ArgumentError for a dtype that is not an integer, for two shapes and, when used, for a shape that does not
    fit the query.

    Example: `attend(q, k, v, mask=interval(centre - 5, centre + 5))` with q [B, H, T, D] and centre [B, T].
    """
    first, last = as_tensor(first), as_tensor(last)
    for name, one in (("first", first), ("last", last)):
        if not isinstance(one, Tensor) or one.dtype not in integer_dtypes or one.ndim < 1:
            have = f"{one.dtype} {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise ArgumentError(
                f"interval({name}): {name} must be an integer tensor [..., T]; it is {have}. For a real centre c use "
                f"(c - w).ceil().long() and (c + w).floor().long()."
            )
    if first.shape != last.shape:
        raise ArgumentError(
            f"interval(first, last): both must have one shape; they have {list(first.shape)} and {list(last.shape)}. "
            f"Use torch.broadcast_tensors(first, last)."
        )
    return Interval(*(one.detach().to(torch.int64, copy=True) for one in (first, last)))
