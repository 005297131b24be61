"""NumPy-like indices of a virtual array, axis by axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limelight.contract import integer_dtypes
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
    False. Several of the latter are taken as the block of all their combinations, as those of `numpy.ix_` are.

    Errors: ArgumentError for too many indices, a position out of range, or an index of another kind.
    """
    parts = _flat_mesh(list(index) if isinstance(index, tuple) else [index])
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


def parse_block(index: Any, shape: tuple[int, ...]) -> tuple[tuple[Axis, ...], list[int]]:
    """The axes of a block, as `parse`, and its shape; the index may hold None as well, a new axis of size 1."""
    parts = index if isinstance(index, tuple) else (index,)
    kept = tuple(part for part in parts if part is not None)
    axes = parse(kept, shape)
    skipped = len(shape) - len(kept) + 1  # axes that Ellipsis stands for
    sizes, axis = [], 0
    for part in parts:
        if part is None:
            sizes.append(1)
            continue
        count = skipped if part is Ellipsis else 1
        sizes += [one.size for one in axes[axis : axis + count] if one.stays]
        axis += count
    return axes, sizes + [one.size for one in axes[axis:] if one.stays]


def _flat_mesh(parts: list[Any]) -> list[Any]:
    """The parts; arrays of several axes as `numpy.ix_` makes them, each along an axis of its own, made flat."""
    arrays = [place for place, part in enumerate(parts) if getattr(part, "ndim", 0) > 1]
    for order, place in enumerate(arrays):
        shape = tuple(parts[place].shape)
        if len(shape) != len(arrays) or any(size != 1 for axis, size in enumerate(shape) if axis != order):
            return parts
    return [part.reshape(-1) if place in arrays else part for place, part in enumerate(parts)]


def _axis(part: Any, size: int, axis: int) -> Axis:
    if isinstance(part, slice):
        try:
            start, stop, step = part.indices(size)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"view[...]: axis {axis}: {part!r} names no positions: {error}.") from None
        if step == 1:
            return Axis(slice(start, max(start, stop)), max(0, stop - start), True)
        return _places(torch.arange(size)[torch.tensor(range(start, stop, step), dtype=torch.int64)], size, axis)
    if isinstance(part, bool) or part is None or isinstance(part, (str, float)):
        raise ArgumentError(f"view[...]: axis {axis} takes integers, slices, and sequences of integers; not {part!r}.")
    if getattr(part, "ndim", 0):
        # A tensor with one element would pass for an integer.
        return _places(part, size, axis)
    try:
        one = operator.index(part)
    except (TypeError, ValueError):
        return _places(part, size, axis)
    if not -size <= one < size:
        raise ArgumentError(f"view[...]: axis {axis} has positions [0, {size}); {one} is out of range.")
    one %= size
    return Axis(slice(one, one + 1), 1, False)


def _places(part: Any, size: int, axis: int) -> Axis:
    try:
        places = torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArgumentError(
            f"view[...]: axis {axis} takes integers, slices, and sequences of integers; not {part!r} ({error})."
        ) from None
    if places.ndim != 1:
        raise ArgumentError(
            f"view[...]: an index array has one axis; the one for axis {axis} has {places.ndim}. Several of them are "
            f"taken as all their combinations, as from numpy.ix_."
        )
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


def as_places(pairs: Any, shape: tuple[int, ...]) -> Tensor:
    """Single places of an array, int64 [P, axes], counted from the front.

    Errors: ArgumentError for another shape, for what is not an integer, or for an index out of range.
    """
    try:
        places = torch.as_tensor(pairs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"pairs must be integers [P, {len(shape)}], one index for each axis ({error}).") from None
    if not places.numel():
        return places.new_zeros(0, len(shape), dtype=torch.int64)
    if places.ndim != 2 or places.shape[1] != len(shape) or places.dtype not in integer_dtypes:
        raise ArgumentError(
            f"pairs must be integers [P, {len(shape)}], one index for each axis of {list(shape)}; they are "
            f"{places.dtype} {list(places.shape)}."
        )
    places = places.to(torch.int64)
    sizes = torch.tensor(shape, device=places.device)
    bad = ((places < -sizes) | (places >= sizes)).nonzero()
    if len(bad):
        pair, axis = bad[0].tolist()
        raise ArgumentError(
            f"pairs: axis {axis} has positions [0, {shape[axis]}); {int(places[pair, axis])}, in pair {pair}, is out "
            f"of range."
        )
    return torch.where(places < 0, places + sizes, places)


def folded_places(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Places [P, axes] of several axes as places [P] of these axes folded into one."""
    total = places.new_zeros(len(places))
    for place, size in zip(places.unbind(-1), sizes, strict=True):
        total = total * size + place
    return total


def as_region(region: Any, shape: tuple[int, ...]) -> tuple[Axis, Axis]:
    """The run of rows and the run of columns that a region names.

    Errors: ArgumentError unless it is None or two runs of positions.
    """
    if region is None:
        region = (slice(None), slice(None))
    if not isinstance(region, (tuple, list)) or len(region) != 2:
        raise ArgumentError(f"region must be (queries, keys), two slices, or None for all; it is {region!r}.")
    rows, columns = parse(tuple(region), shape)
    for axis in (rows, columns):
        if not isinstance(axis.selector, slice):
            raise ArgumentError(
                f"region must be runs of positions: slices with step 1, or integers; it is {region!r}. For other "
                f"positions take the block, view[..., queries, keys]."
            )
    return rows, columns
