"""How a call reaches the C++ kernels of csrc/: as a flat tuple of numbers, in the order of csrc/bindings.cpp."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limelight.backends import extension
from limelight.backends.protocol import NOTHING, OWN_TENSORS, Call, Gather, Gathered, Result
from limelight.backends.sinks import row_products, sink_gradient
from limelight.masks.form import Form

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOTHING = (0, 0, 0, 0, 0)
"""A tensor that is not there: no address, no strides."""

_NOTHING_SEEN = Gathered()


def forward(call: Call, tracked: bool) -> tuple[Result, Tensor | None] | None:
    """The forward pass, and if `tracked` what the backward pass wants of each row; None where it met NaN or inf."""
    query, gather = call.query, call.gather
    n, heads, queries, _ = query.shape
    output = query.new_empty(n, heads, queries, call.value.shape[-1])
    lse = query.new_empty(n, heads, queries, dtype=torch.float32) if call.wants_lse or tracked else None
    rows = query.new_empty(n, heads, queries, 2, dtype=torch.float32) if tracked else None
    seen = _NOTHING_SEEN if gather is NOTHING else _room(call, gather)
    numbers, kept_alive = _common(call)
    top = seen.top
    address = (
        _address(seen.entropy),
        _address(seen.received),
        0,
        *((0, 0, 0) if top is None else (top[0].data_ptr(), top[1].data_ptr(), gather.top)),
    )
    dot = call.score.tanh_vector() is None
    module = extension.native()
    assert module is not None
    kernel = module.dot_forward if dot else module.additive_forward
    if not kernel((*numbers, *_place(output), _address(lse), _address(rows), *address)):
        return None
    del kept_alive
    return Result(output, lse, None, seen), rows


def backward(
    call: Call,
    output: Tensor,
    lse: Tensor,
    rows: Tensor,
    to_output: Tensor,
    to_lse: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...] | None:
    """Gradients to the call's tensors, a bias only if `wanted`, in their order; None where it met NaN or inf."""
    grads = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in (call.query, call.key, call.value)]
    if to_lse is not None:
        to_lse = to_lse.contiguous()
    numbers, kept_alive = _common(call)
    vector = call.score.tanh_vector()
    to_bias = None if call.bias is None or not wanted[3] else torch.zeros(call.bias.shape, dtype=torch.float32)
    to_distances = None if call.distances is None or not wanted[5] else torch.zeros_like(call.distances)
    to_vector = None if vector is None else torch.zeros(vector.shape, dtype=torch.float32)
    module = extension.native()
    assert module is not None
    kernel = module.dot_backward if vector is None else module.additive_backward
    done = kernel(
        (
            *numbers,
            *_place(output),
            *_place(to_output),
            lse.data_ptr(),
            rows.data_ptr(),
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
    to_sink = None if call.sink is None else _sink_gradient(call.sink, output, rows, to_output, to_lse)
    if vector is None or to_vector is None:
        return *grads, to_bias, to_sink, to_distances
    return *grads, to_bias, to_sink, to_distances, to_vector.to(vector.dtype)


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


def _sink_gradient(sink: Tensor, output: Tensor, rows: Tensor, to_output: Tensor, to_lse: Tensor | None) -> Tensor:
    """The sinks' weights are worked out from the rows' m and 1 / l: the lse would bring its own rounding."""
    share = torch.exp(sink.float().unsqueeze(-1) - rows[..., 0]) * rows[..., 1]
    delta = row_products(output, to_output, torch.float32)
    return sink_gradient(sink, share, delta if to_lse is None else delta - to_lse)


def careful_backward(
    call: Call,
    careful: Callable[[Call], Result],
    tensors: list[Tensor | None],
    to_output: Tensor,
    to_lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The same through the careful backend, which does the forward pass again."""
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
        return tuple(None if one is None else next(found) for one in leaves)


def _room(call: Call, gather: Gather) -> Gathered:
    """Where the kernels put what they observe."""
    n, heads, queries, _ = call.query.shape
    empty = call.query.new_empty
    return Gathered(
        call.query.new_zeros(n, heads, call.key.shape[2], dtype=torch.float32) if gather.received else None,
        empty(n, heads, queries, dtype=torch.float32) if gather.entropy else None,
        (
            empty(n, heads, queries, gather.top, dtype=torch.int64),
            empty(n, heads, queries, gather.top, dtype=torch.float32),
        )
        if gather.top
        else None,
    )


def _address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Where a tensor lies: its address and its strides."""
    return tensor.data_ptr(), *tensor.stride()


def _common(call: Call) -> tuple[tuple[int | float, ...], list[Tensor]]:
    """The numbers that every kernel takes, as csrc/bindings.cpp reads them, and the tensors that they point to."""
    query, key, value = call.query, call.key, call.value
    n, heads, queries, width = query.shape
    _, groups, keys, value_width = value.shape
    scale, vector = call.score.plain_scale(width), call.score.tanh_vector()
    alive: list[Tensor] = []
    bias, full = _NOTHING, (n, heads, queries, keys)
    if call.distances is not None:
        wide = call.distances.detach().to(torch.float32).contiguous()
        alive.append(wide)
        bias = _distance_place(wide, queries)
    if call.bias is not None:
        wide = call.bias.detach().to(torch.float32).expand(full)
        alive.append(wide)
        bias = _place(wide)
    sink_place = (0, 0, 0)
    if call.sink is not None:
        wide = call.sink.detach().to(torch.float32).expand(n, heads)
        alive.append(wide)
        sink_place = _place(wide)
    vector_place: tuple[int, int] = (0, 0)
    if vector is not None:
        vector = vector.detach().to(torch.float32).contiguous()
        alive.append(vector)
        vector_place = (vector.data_ptr(), vector.shape[-1] if vector.ndim == 2 and vector.shape[0] > 1 else 0)
    form = None if call.mask is None else call.mask.form(call.whole())
    form = Form() if form is None else form
    lengths, dense = 0, _NOTHING
    if form.lengths is not None:
        counts = form.lengths.contiguous()
        alive.append(counts)
        lengths = counts.data_ptr()
    if form.dense is not None:
        wide = form.dense.expand(full)
        alive.append(wide)
        dense = _place(wide)
    sizes = (n, heads, groups, queries, keys, width, value_width, TYPES[query.dtype], torch.get_num_threads())
    runs = [0, 0]
    for place, ends in enumerate((form.first, form.last)):
        if ends is not None:
            wide = ends.expand(n, queries).contiguous()
            alive.append(wide)
            runs[place] = wide.data_ptr()
    mask = (form.low, form.high, lengths, *runs, *dense)
    numbers = (*sizes, 1.0 if scale is None else scale, call.score.soft_cap() or 0.0, call.dropout, call.seed)
    return (*numbers, *_place(query), *_place(key), *_place(value), *bias, *mask, *vector_place, *sink_place), alive
