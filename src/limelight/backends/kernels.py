"""How a call reaches the C++ kernels of csrc/: as a flat tuple of numbers, in the order of csrc/bindings.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends import extension
from limelight.backends.pooling import mean_of_sums
from limelight.backends.protocol import NOTHING, OWN_TENSORS, Call, Gather, Gathered, Result
from limelight.backends.sinks import row_products, sink_gradient
from limelight.masks.form import EVERYTHING, Form

MOST_KEYS = 2**31 - 1
MOST_WIDTH = 2**16
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOTHING = (0, 0, 0, 0, 0)
"""A tensor that is not there: no address, no strides."""

UNMASKED = (EVERYTHING.low, EVERYTHING.high, 0, 0, 0, *_NOTHING)
"""A mask that allows everything."""

NOTHING_SEEN = Gathered()


class Kept(NamedTuple):
    """What the backward pass wants of each row: m and 1 / l, [N, H, T, 2], and the output as it was before rounding."""

    rows: Tensor
    output: Tensor


def forward(call: Call, tracked: bool) -> tuple[Result, Kept | None] | None:
    """The forward pass, and if `tracked` what the backward pass wants; None where it met NaN or inf."""
    query, gather = call.query, call.gather
    n, heads, queries, _ = query.shape
    output = room(query, call.value.shape[3])
    lse = query.new_empty(n, heads, queries, dtype=torch.float32) if call.wants_lse or tracked else None
    rows = query.new_empty(n, heads, queries, 2, dtype=torch.float32) if tracked else None
    exact = None
    if tracked and query.dtype is not torch.float32:
        exact = query.new_empty(n, heads, queries, call.value.shape[3], dtype=torch.float32)
    seen = NOTHING_SEEN if gather is NOTHING else room_for(call)
    numbers, kept_alive = _common(call)
    observed = () if gather is NOTHING else seen_place(seen, gather, kept_alive)
    module = extension.native()
    assert module is not None
    kernel = module.dot_forward if call.score.tanh_vector() is None else module.additive_forward
    if not kernel((*numbers, *_place(output), _address(lse), _address(rows), _address(exact), *observed)):
        return None
    del kept_alive
    finish(seen, call)
    kept = None if rows is None else Kept(rows, output if exact is None else exact)
    return Result(output, lse, None, seen), kept


def with_mean_of_heads(call: Call) -> tuple[Tensor, Tensor] | None:
    """Output of a dot product, and the mean over the heads of the weights, [N, T, S]; None where it met NaN or inf."""
    n, _, queries, _ = call.query.shape
    output = room(call.query, call.value.shape[3])
    mean = call.query.new_zeros(n, queries, call.key.shape[2], dtype=torch.float32)
    numbers, kept_alive = _common(call)
    module = extension.native()
    assert module is not None
    observed = seen_place(NOTHING_SEEN, NOTHING, kept_alive)
    done = module.dot_forward((*numbers, *_place(output), 0, 0, 0, *observed, mean.data_ptr()))
    del kept_alive
    return (output, mean) if done else None


def backward(
    call: Call,
    kept: Kept,
    lse: Tensor,
    to_output: Tensor,
    to_lse: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...] | None:
    """Gradients to the call's tensors, a bias only if `wanted`, in their order; None where it met NaN or inf.

    What is kept of a narrow output is fp32: of one that was rounded the sums over its rows would be off by much more.
    """
    grads = [room(one, one.shape[3]) for one in (call.query, call.key, call.value)]
    if to_lse is not None:
        to_lse = to_lse.contiguous()
    numbers, kept_alive = _common(call)
    vector = call.score.tanh_vector()
    to_bias = None if call.bias is None or not wanted[3] else torch.zeros(call.bias.shape, dtype=torch.float32)
    to_distances = None
    if call.distances is not None and wanted[5]:
        to_distances = torch.zeros_like(call.distances, memory_format=torch.contiguous_format)
    to_vector = None if vector is None else torch.zeros(vector.shape, dtype=torch.float32)
    module = extension.native()
    assert module is not None
    kernel = module.dot_backward if vector is None else module.additive_backward
    done = kernel(
        (
            *numbers,
            *_place(kept.output),
            *_place(to_output),
            lse.data_ptr(),
            kept.rows.data_ptr(),
            _address(to_lse),
            *_place(grads[0]),
            *_place(grads[1]),
            *_place(grads[2]),
            *_bias_place(call, to_bias, to_distances),
            _address(to_vector),
        )
    )
    del kept_alive
    if not done:
        return None
    if to_bias is not None and call.bias is not None:
        to_bias = to_bias.to(call.bias.dtype)
    to_sink = None if call.sink is None else _sink_gradient(call.sink, kept, to_output, to_lse)
    if vector is None or to_vector is None:
        return *grads, to_bias, to_sink, to_distances
    return *grads, to_bias, to_sink, to_distances, to_vector.to(vector.dtype)


def room(like: Tensor, width: int) -> Tensor:
    """Room for [N, heads, rows, width], laid out as `like`, whose heads layers leave side by side within each row.

    Nothing then has to be copied where the heads are joined again, as torch's own attention has it.
    """
    n, heads, rows, _ = like.shape
    _, between_heads, between_rows, _ = like.stride()
    beside = heads > 1 and 0 < between_heads < between_rows
    head, row = (width, heads * width) if beside else (rows * width, width)
    return like.new_empty_strided((n, heads, rows, width), (heads * rows * width, head, row, 1))


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor [N, heads, rows, width] in the layout of `room`."""
    place = room(like, tensor.shape[3])
    return tensor if tensor.stride() == place.stride() else place.copy_(tensor)


def _distance_place(by_distance: Tensor, queries: int) -> tuple[int, ...]:
    """A bias by distance as a tensor: a row further on is one number back."""
    heads, size = by_distance.shape
    return by_distance.data_ptr() + 4 * (queries - 1), 0, size if heads > 1 else 0, -1, 1


def _bias_place(call: Call, to_bias: Tensor | None, to_distances: Tensor | None) -> tuple[int, ...]:
    """Where the gradient of the bias lies, how many numbers it has, and which of them is that of pair (0, 0)."""
    if to_distances is not None:
        queries = call.query.shape[2]
        return *_distance_place(to_distances, queries), to_distances.numel(), queries - 1
    if to_bias is None:
        return *_NOTHING, 0, 0
    return *_place(to_bias.expand(*call.query.shape[:3], call.key.shape[2])), to_bias.numel(), 0


def _sink_gradient(sink: Tensor, kept: Kept, to_output: Tensor, to_lse: Tensor | None) -> Tensor:
    """The sinks' weights are worked out from the rows' m and 1 / l: the lse would bring its own rounding."""
    share = torch.exp(sink.float().unsqueeze(-1) - kept.rows[..., 0]) * kept.rows[..., 1]
    delta = row_products(kept.output, to_output, torch.float32)
    return sink_gradient(sink, share, delta if to_lse is None else delta - to_lse)


def careful_forward(call: Call, careful: Callable[[Call], Result]) -> Result:
    """The forward pass by the careful backend, its output laid out as that of the kernels."""
    result = careful(call)
    return result._replace(output=laid_out(result.output, call.query))


def careful_backward(
    call: Call,
    careful: Callable[[Call], Result],
    tensors: list[Tensor | None],
    to_output: Tensor,
    to_lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients by the careful backend, which does the forward pass again; laid out as those of the kernels."""
    with torch.enable_grad():
        leaves = [None if one is None else one.detach().requires_grad_() for one in tensors]
        parameters = tuple(one for one in leaves[OWN_TENSORS:] if one is not None)
        again = call.with_tensors(*leaves[:OWN_TENSORS]).with_parameters(parameters)
        result = careful(again)
        outputs, gradients = [result.output], [to_output]
        if to_lse is not None and result.lse is not None:
            outputs.append(result.lse)
            gradients.append(to_lse)
        wanted = [one for one in leaves if one is not None]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
        grads = [None if one is None else next(found) for one in leaves]
    inputs = [
        None if one is None else laid_out(one, like)
        for one, like in zip(grads, tensors[:3], strict=False)
        if like is not None
    ]
    return *inputs, *grads[3:]


def room_for(call: Call) -> Gathered:
    """Where the kernels put what `call.gather` asks for."""
    gather = call.gather
    n, heads, queries, _ = call.query.shape
    keys = call.key.shape[2]
    empty, zeros, wide = call.query.new_empty, call.query.new_zeros, torch.float32
    top = None
    if gather.top:
        shape = (n, heads, queries, gather.top)
        top = empty(shape, dtype=torch.int64), empty(shape, dtype=wide)
    return Gathered(
        zeros(n, heads, keys, dtype=wide) if gather.received else None,
        empty(n, heads, queries, dtype=wide) if gather.entropy else None,
        top,
        empty(n, heads, queries, dtype=wide) if gather.distance else None,
        zeros(n, heads, len(gather.rows), keys, dtype=wide) if gather.rows else None,
        zeros(n, heads, *gather.cells, dtype=wide) if gather.cells else None,
    )


def finish(seen: Gathered, call: Call) -> None:
    """What the kernels leave to be done, in place."""
    if seen.pooled is not None and call.gather.reduce == "mean":
        mean_of_sums(seen.pooled, call.query.shape[2], call.key.shape[2])


def seen_place(seen: Gathered, gather: Gather, alive: list[Tensor]) -> tuple[int, ...]:
    """Where what is observed goes; a call that observes nothing ends before these numbers."""
    indices, weights = (None, None) if seen.top is None else seen.top
    places = (seen.entropy, seen.distance, seen.received, gather.row_weight, indices, weights)
    chosen = torch.tensor(gather.rows, dtype=torch.int64, device="cpu") if gather.rows else None
    alive.extend(() if chosen is None else (chosen,))
    return (
        *(*map(_address, places), gather.top),
        *(_address(chosen), len(gather.rows), _address(seen.rows)),
        *(_address(seen.pooled), *(gather.cells or (0, 0)), int(gather.reduce == "max")),
    )


def _address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Where a tensor lies: its address and its strides."""
    return tensor.data_ptr(), *tensor.stride()


def _common(call: Call) -> tuple[tuple[int | float, ...], list[Tensor]]:
    """The numbers that every kernel takes, as csrc/bindings.cpp reads them, and the tensors that they point to."""
    query, value, score = call.query, call.value, call.score
    n, heads, queries, width = query.shape
    _, groups, keys, value_width = value.shape
    scale = score.plain_scale(width)
    alive: list[Tensor] = []
    numbers = (
        *(n, heads, groups, queries, keys, width, value_width, TYPES[query.dtype], torch.get_num_threads()),
        *(1.0 if scale is None else scale, score.soft_cap() or 0.0, call.dropout, call.seed),
        *_place(query),
        *_place(call.key),
        *_place(value),
        *_added(call, alive),
        *allowed(call.form(), query.shape, keys, alive),
        *_vector(call, alive),
        *_sink(call, alive),
    )
    return numbers, alive


def _added(call: Call, alive: list[Tensor]) -> tuple[int, ...]:
    """Where the bias lies."""
    if call.distances is not None:
        wide = call.distances.to(torch.float32).contiguous()
        place = _distance_place(wide, call.query.shape[2])
    elif call.bias is not None:
        wide = call.bias.to(torch.float32).expand(*call.query.shape[:3], call.key.shape[2])
        place = _place(wide)
    else:
        return _NOTHING
    alive.append(wide)
    return place


def allowed(form: Form | None, query: torch.Size, keys: int, alive: list[Tensor]) -> tuple[int, ...]:
    """The band of a mask, and where its lengths, runs and dense pattern lie, in tensors that `alive` takes."""
    if form is EVERYTHING:
        return UNMASKED
    assert form is not None
    n, heads, queries, _ = query
    lengths, runs, dense = 0, [0, 0], _NOTHING
    if form.lengths is not None:
        counts = form.lengths.contiguous()
        alive.append(counts)
        lengths = counts.data_ptr()
    for place, ends in enumerate((form.first, form.last)):
        if ends is not None:
            wide = ends.expand(n, queries).contiguous()
            alive.append(wide)
            runs[place] = wide.data_ptr()
    if form.dense is not None:
        wide = form.dense.expand(n, heads, queries, keys)
        alive.append(wide)
        dense = _place(wide)
    return form.low, form.high, lengths, *runs, *dense


def _vector(call: Call, alive: list[Tensor]) -> tuple[int, int]:
    """Where the vector of additive scores lies, and its stride along the heads."""
    vector = call.score.tanh_vector()
    if vector is None:
        return 0, 0
    wide = vector.to(torch.float32).contiguous()
    alive.append(wide)
    return wide.data_ptr(), wide.shape[-1] if wide.ndim == 2 and wide.shape[0] > 1 else 0


def _sink(call: Call, alive: list[Tensor]) -> tuple[int, ...]:
    """Where the sinks lie."""
    if call.sink is None:
        return 0, 0, 0
    wide = call.sink.to(torch.float32).expand(*call.query.shape[:2])
    alive.append(wide)
    return _place(wide)
