"""The native backend: the C++ kernels of csrc/, for calls on the CPU.

Here a call is put into the numbers that the kernels take; what they do and how is told there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limelight.backends import extension
from limelight.backends.derivatives import final
from limelight.backends.numerics import no_autocast
from limelight.backends.protocol import NOTHING, OWN_TENSORS, Backend, Call, Gather, Gathered, Result
from limelight.backends.sinks import row_products, sink_gradient
from limelight.masks.form import Form

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NOTHING = (0, 0, 0, 0, 0)
"""A tensor that is not there: no address, no strides."""

_NOTHING_SEEN = Gathered()


class Native(Backend):
    """The C++ kernels. Where they meet NaN or inf they give the call to `careful`, which keeps them behind the mask."""

    __slots__ = ("_careful",)

    def __init__(self, careful: Backend):
        self._careful = careful

    @property
    def name(self) -> str:
        """Its name."""
        return "native"

    def refusal(self, call: Call) -> str | None:
        """It takes dot and additive scores on the CPU, and masks that are a band, lengths and one dense pattern."""
        query = call.query
        if query.device.type != "cpu":
            return f"it runs on the CPU, and query is on {query.device}"
        if query.dtype not in _TYPES or not query.dtype is call.key.dtype is call.value.dtype:
            return f"it takes float32, bfloat16 and float16, and query is {query.dtype}"
        if not call.pairs() or not query.shape[-1]:
            return "there is nothing to attend to"
        if call.score.plain_scale(query.shape[-1]) is None and call.score.tanh_vector() is None:
            return "the score is neither a dot product nor additive"
        if call.mask is not None and call.mask.form(call.whole()) is None:
            return "the mask is not a band, lengths and one dense pattern"
        return extension.refusal()

    def fastest(self, call: Call) -> bool:
        """Wherever it can run."""
        return True

    def run(self, call: Call) -> Result:
        """Forward; the backward pass is set up in autograd."""
        tensors = call.tensors()
        if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors):
            kept: list[Result] = []
            output, lse = _Attention.apply(call, self._careful, kept, *tensors)
            return Result(output, lse, None, kept[0].gathered)
        done = _forward(call, False)
        return self._careful.run(call) if done is None else done[0]


class _Attention(torch.autograd.Function):
    """The call's tensors -> (output, lse)."""

    @staticmethod
    def forward(ctx: Any, call: Call, careful: Backend, kept: list[Result], *tensors: Any) -> tuple[Tensor, Tensor]:
        done = _forward(call, True)
        result, rows = (careful.run(replace(call, wants_lse=True)), None) if done is None else done
        kept.append(result)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, result.output, result.lse, rows)
        ctx.call, ctx.careful = call.without_tensors(), careful
        assert result.lse is not None
        return result.output, result.lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, output, lse, rows = ctx.saved_tensors
        call = ctx.call.with_tensors(*tensors[:OWN_TENSORS])
        to_output, to_lse = grad_outputs
        wanted = ctx.needs_input_grad[-len(tensors) :]
        with torch.no_grad(), no_autocast(call.query):
            if to_output is None:
                to_output = torch.zeros_like(output)
            grads = None if rows is None else _backward(call, output, lse, rows, to_output, to_lse, wanted)
        if grads is None:
            grads = _careful_backward(call, ctx.careful, tensors, to_output, to_lse)
        return (None, None, None, *final(grads, "native"))


def _forward(call: Call, tracked: bool) -> tuple[Result, Tensor | None] | None:
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


def _backward(
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
            *_bias_place(call, to_bias),
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
        return *grads, to_bias, to_sink
    return *grads, to_bias, to_sink, to_vector.to(vector.dtype)


def _bias_place(call: Call, to_bias: Tensor | None) -> tuple[int, ...]:
    """Where the gradient of the bias lies, how many numbers it has, and which of them is that of pair (0, 0)."""
    if to_bias is None:
        return *_NOTHING, 0, 0
    return *_place(to_bias.expand(*call.query.shape[:3], call.key.shape[2])), to_bias.numel(), 0


def _sink_gradient(sink: Tensor, output: Tensor, rows: Tensor, to_output: Tensor, to_lse: Tensor | None) -> Tensor:
    """The sinks' weights are worked out from the rows' m and 1 / l: the lse would bring its own rounding."""
    share = torch.exp(sink.float().unsqueeze(-1) - rows[..., 0]) * rows[..., 1]
    delta = row_products(output, to_output, torch.float32)
    return sink_gradient(sink, share, delta if to_lse is None else delta - to_lse)


def _careful_backward(
    call: Call, careful: Backend, tensors: list[Tensor | None], to_output: Tensor, to_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same through the careful backend, which does the forward pass again."""
    with torch.enable_grad():
        leaves = [None if one is None else one.detach().requires_grad_() for one in tensors]
        parameters = tuple(one for one in leaves[OWN_TENSORS:] if one is not None)
        again = call.with_tensors(*leaves[:OWN_TENSORS]).with_parameters(parameters)
        result = careful.run(again)
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
    sizes = (n, heads, groups, queries, keys, width, value_width, _TYPES[query.dtype], torch.get_num_threads())
    mask = (form.low, form.high, lengths, 0, 0, *dense)
    numbers = (*sizes, 1.0 if scale is None else scale, call.score.soft_cap() or 0.0, call.dropout, call.seed)
    return (*numbers, *_place(query), *_place(key), *_place(value), *bias, *mask, *vector_place, *sink_place), alive
