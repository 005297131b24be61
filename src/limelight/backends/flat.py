"""A call as the operators of torch take it: tensors and numbers one after the other, and the rules for them.

Compiled code keeps these rules, which `attend` checked when it was traced; what only the numbers can tell, and calls of
the operators by their names, are checked here, before a kernel reads memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from limelight.backends.kernels import TYPES
from limelight.backends.protocol import OWN_TENSORS, Gather
from limelight.contract import check_dropout, check_inputs, require_broadcast, require_choice
from limelight.errors import ArgumentError


class Flat(NamedTuple):
    """A call: folded, the mask as its form. The first `OWN_TENSORS` + 1 have gradients."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    sink: Tensor | None
    distances: Tensor | None
    vector: Tensor | None
    lengths: Tensor | None
    dense: Tensor | None
    first: Tensor | None
    last: Tensor | None
    low: int
    high: int
    scale: float
    cap: float
    dropout: float
    seed: Tensor


DIFFERENTIABLE = OWN_TENSORS + 1


def check(flat: Flat, gather: Gather | None = None) -> None:
    """Errors: ArgumentError for what the kernels could not read, or would read wrongly."""
    query, key, value = flat[:3]
    check_inputs(query, key, value)
    n, heads, queries, width = query.shape if query.ndim == 4 else _refuse("query", "[N, H, T, D]", query)
    keys = key.shape[2]
    if query.dtype not in TYPES:
        _refuse("query", "float32, bfloat16 or float16", query)
    if key.shape[3] != width:
        _refuse("key", f"of the width of query, {width}", key)
    full = (n, heads, queries, keys)
    for name, one, shape in (("bias", flat.bias, full), ("dense", flat.dense, full), ("sink", flat.sink, full[:2])):
        if one is not None:
            require_broadcast(name, one, shape)
    if flat.dense is not None and flat.dense.dtype is not torch.bool:
        _refuse("dense", "bool", flat.dense)
    _shaped("distances", flat.distances, ((1, queries + keys - 1), (heads, queries + keys - 1)))
    _shaped("vector", flat.vector, ((width,), (1, width), (heads, width)))
    _shaped("lengths", flat.lengths, ((n,),), torch.int64)
    if (flat.first is None) != (flat.last is None):
        raise ArgumentError("first and last: the runs of keys need both ends; one of them is None.")
    for name, one in (("first", flat.first), ("last", flat.last)):
        _shaped(name, one, ((1, queries), (n, queries)), torch.int32)
    check_dropout(flat.dropout)
    if flat.lengths is not None and flat.lengths.numel():
        low, high = (int(one) for one in torch.aminmax(flat.lengths))
        if low < 0 or high > keys:
            raise ArgumentError(
                f"lengths(count): every length must be in [0, S], S = {keys}; they are in [{low}, {high}]."
            )
    if gather is not None:
        _check_gather(gather, full)


def check_kept(flat: Flat, output: Tensor, lse: Tensor, rows: Tensor, to_output: Tensor, to_lse: Tensor) -> None:
    """Of the backward pass: what the forward pass left, and the gradients of its results."""
    lines = tuple(flat.query.shape[:3])
    wide = (*lines, flat.value.shape[3])
    _shaped("output", output, (wide,), torch.float32)
    _shaped("lse", lse, (lines,), torch.float32)
    _shaped("rows", rows, ((*lines, 2),), torch.float32)
    _shaped("to_output", to_output, (wide,), flat.query.dtype)
    _shaped("to_lse", to_lse, (lines,), torch.float32)


def _check_gather(gather: Gather, full: tuple[int, ...]) -> None:
    queries, keys = full[2:]
    _shaped("row_weight", gather.row_weight, (full[:3],), torch.float32)
    require_choice("reduce", gather.reduce, ("mean", "max"))
    places = list(gather.rows)
    if places != sorted(set(places)) or (places and not 0 <= places[0] <= places[-1] < queries):
        raise ArgumentError(f"rows: they must be in [0, {queries}), ascending, each once; they are {places}.")
    cells = tuple(gather.cells)
    if cells and not (len(cells) == 2 and 1 <= cells[0] <= queries and 1 <= cells[1] <= keys):
        raise ArgumentError(f"cells: two numbers in [1, {queries}] and [1, {keys}], or none; they are {cells}.")
    if not 0 <= gather.top <= keys:
        raise ArgumentError(f"top: it must be in [0, {keys}]; it is {gather.top}.")


def _shaped(
    name: str, tensor: Tensor | None, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype | None = None
) -> None:
    fits = tensor is None or (tuple(tensor.shape) in shapes and dtype in (None, tensor.dtype))
    if not fits:
        kind = "" if dtype is None else f"{dtype} "
        _refuse(name, f"{kind}{' or '.join(str(list(one)) for one in shapes)}", tensor)


def _refuse(name: str, rule: str, tensor: Tensor | None) -> NoReturn:
    have = "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
    raise ArgumentError(f"{name} must be {rule}; it is {have}.")
