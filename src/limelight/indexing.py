"""NumPy-like indices of a virtual array, axis by axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limelight.errors import ArgumentError
from limelight.masks.block import Selector


class Axis(NamedTuple):
    """What is wanted along one axis: the positions, how many, and whether the axis stays in the result."""

    selector: Selector
    size: int
    stays: bool


def parse(index: Any, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """One `Axis` for each axis of the shape.

    The index may hold integers, slices, Ellipsis, and sequences, ranges, arrays or tensors of integers or of True and
    False. Several of the latter are taken as the block of all their combinations (as with `numpy.ix_`).

    Errors: ArgumentError for too many indices, a position out of range, or an index of another kind.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    ellipses = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(ellipses) > 1:
        raise ArgumentError("view[...]: an index may hold one Ellipsis at most.")
    if len(parts) - len(ellipses) > len(shape):
        raise ArgumentError(
            f"view[...]: there are {len(shape)} axes, {list(shape)}, and {len(parts) - len(ellipses)} indices. "
            f"The last two are queries and keys."
        )
    missing = [slice(None)] * (len(shape) - len(parts) + len(ellipses))
    place = ellipses[0] if ellipses else len(parts)
    parts[place : place + len(ellipses)] = missing
    return tuple(_axis(part, size, axis) for axis, (part, size) in enumerate(zip(parts, shape, strict=True)))


def _axis(part: Any, size: int, axis: int) -> Axis:
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step == 1:
            return Axis(slice(start, max(start, stop)), max(0, stop - start), True)
        return _places(torch.arange(size)[torch.tensor(range(start, stop, step), dtype=torch.int64)], size, axis)
    if isinstance(part, bool) or part is None or isinstance(part, (str, float)):
        raise ArgumentError(f"view[...]: axis {axis} takes integers, slices, and sequences of integers; not {part!r}.")
    if getattr(part, "ndim", 0):
        # A tensor with one element would pass for an integer.
        return _places(torch.as_tensor(part), size, axis)
    try:
        one = operator.index(part)
    except (TypeError, ValueError):
        return _places(torch.as_tensor(part), size, axis)
    if not -size <= one < size:
        raise ArgumentError(f"view[...]: axis {axis} has positions [0, {size}); {one} is out of range.")
    one %= size
    return Axis(slice(one, one + 1), 1, False)


def _places(places: Tensor, size: int, axis: int) -> Axis:
    if places.ndim != 1:
        raise ArgumentError(f"view[...]: an index array has one axis; the one for axis {axis} has {places.ndim}.")
    if places.dtype is torch.bool:
        if places.numel() != size:
            raise ArgumentError(f"view[...]: axis {axis} has {size} positions; the bool index has {places.numel()}.")
        places = places.nonzero().squeeze(-1)
    elif places.numel() and (places.is_floating_point() or places.is_complex()):
        raise ArgumentError(f"view[...]: an index array holds integers; the one for axis {axis} is {places.dtype}.")
    places = places.to(torch.int64)
    bad = (places < -size) | (places >= size)
    if bool(bad.any()):
        raise ArgumentError(f"view[...]: axis {axis} has positions [0, {size}); {int(places[bad][0])} is out of range.")
    return Axis(torch.where(places < 0, places + size, places), places.numel(), True)


def folded(axes: Sequence[Axis], sizes: Sequence[int]) -> Selector:
    """One selector over several axes folded into one (the leading axes into N)."""
    if not axes:
        return slice(0, 1)
    if len(axes) == 1:
        return axes[0].selector
    total = torch.zeros(1, dtype=torch.int64)
    for axis, size in zip(axes, sizes, strict=True):
        one = axis.selector
        places = torch.arange(one.start, one.stop) if isinstance(one, slice) else one.cpu()
        total = (total[:, None] * size + places).flatten()
    return total
