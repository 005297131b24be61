"""The native kernels as two operators of torch, `limelight::attention` and `limelight::attention_backward`.

For compilers, to which a call must be one step with tensors and numbers going in and tensors coming out. Where none is
looking, `native.py` calls the kernels itself: an operator costs tens of microseconds on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from limelight.backends import kernels, lookup
from limelight.backends.protocol import OWN_TENSORS, Call, Gather, Gathered, Result
from limelight.masks.described import Described
from limelight.masks.form import Form
from limelight.scores import additive, dot

Careful = Callable[[Call], Result]

_UNCAPPED = 0.0
_careful: list[Careful] = []


def set_careful(run: Careful) -> None:
    """Who runs a call in which the kernels met NaN or inf: said once, by native.py."""
    _careful[:] = [run]


def run(call: Call) -> Result:
    """A call that native takes, through the operator."""
    gather = call.gather
    described, seed = _described(call), torch.as_tensor(call.seed, dtype=torch.int64)
    output, lse, _, received, entropy, indices, weights = _attention(*described, seed, *gather)
    seen = Gathered(
        received if gather.received else None,
        entropy if gather.entropy else None,
        (indices, weights) if gather.top else None,
    )
    return Result(output, lse, None, seen)


def _described(call: Call) -> tuple[Any, ...]:
    """The call as the operators take it, up to the seed."""
    form = None if call.mask is None else call.mask.form(call.whole())
    form = Form() if form is None else form
    vector = call.score.tanh_vector()
    scale = 1.0 if vector is not None else call.score.plain_scale(call.query.shape[-1])
    tensors = (call.query, call.key, call.value, call.bias, call.sink, call.distances, vector)
    cap = call.score.soft_cap() or _UNCAPPED
    return *tensors, form.lengths, form.dense, form.first, form.last, form.low, form.high, scale, cap, call.dropout


# infer_schema reads these annotations and wants Optional spelled out.
@torch.library.custom_op("limelight::attention", mutates_args=(), device_types="cpu")
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    sink: Optional[Tensor],  # noqa: UP045
    distances: Optional[Tensor],  # noqa: UP045
    vector: Optional[Tensor],  # noqa: UP045
    lengths: Optional[Tensor],  # noqa: UP045
    dense: Optional[Tensor],  # noqa: UP045
    first: Optional[Tensor],  # noqa: UP045
    last: Optional[Tensor],  # noqa: UP045
    low: int,
    high: int,
    scale: float,
    cap: float,
    dropout: float,
    seed: Tensor,
    received: bool,
    entropy: bool,
    top: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, lse, rows (NaN after the careful road), received, entropy, strongest indices and weights."""
    call = _call(
        query,
        key,
        value,
        bias,
        sink,
        distances,
        vector,
        lengths,
        dense,
        first,
        last,
        low,
        high,
        scale,
        cap,
        dropout,
        seed,
    )
    call.gather = Gather(received, entropy, top)
    with torch.no_grad():
        done = kernels.forward(call, True)
        if done is None:
            result = _careful[0](call)
            assert result.lse is not None
            rows = result.lse.new_full((*result.lse.shape, 2), torch.nan)
            seen = _seen_later(call, result.lse)
        else:
            result, rows = done
            seen = result.gathered
    assert result.lse is not None
    assert rows is not None
    assert seen is not None
    indices, weights = seen.top or (None, None)
    found = (result.output, result.lse, rows, seen.received, seen.entropy, indices, weights)
    # An operator hands out no tensor twice.
    empty = [query.new_empty(0, dtype=torch.int64 if place == 5 else torch.float32) for place in range(len(found))]
    return tuple(empty[place] if one is None else one for place, one in enumerate(found))  # pyright: ignore


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    received, entropy, top = rest[-3:]
    n, heads, queries, _ = query.shape

    def like(wanted: bool, *shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return query.new_empty(shape if wanted else (0,), dtype=dtype)

    return (
        query.new_empty(n, heads, queries, value.shape[-1]),
        like(True, n, heads, queries),
        like(True, n, heads, queries, 2),
        like(received, n, heads, key.shape[2]),
        like(entropy, n, heads, queries),
        like(top > 0, n, heads, queries, top, dtype=torch.int64),
        like(top > 0, n, heads, queries, top),
    )


@torch.library.custom_op("limelight::attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    sink: Optional[Tensor],  # noqa: UP045
    distances: Optional[Tensor],  # noqa: UP045
    vector: Optional[Tensor],  # noqa: UP045
    lengths: Optional[Tensor],  # noqa: UP045
    dense: Optional[Tensor],  # noqa: UP045
    first: Optional[Tensor],  # noqa: UP045
    last: Optional[Tensor],  # noqa: UP045
    low: int,
    high: int,
    scale: float,
    cap: float,
    dropout: float,
    seed: Tensor,
    output: Tensor,
    lse: Tensor,
    rows: Tensor,
    to_output: Tensor,
    to_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to query, key, value, bias, sink, distances and vector; empty for what is not there."""
    call = _call(
        query,
        key,
        value,
        bias,
        sink,
        distances,
        vector,
        lengths,
        dense,
        first,
        last,
        low,
        high,
        scale,
        cap,
        dropout,
        seed,
    )
    tensors = list(call.tensors())
    with torch.no_grad():
        wanted = tuple(one is not None for one in tensors)
        grads = None
        if not rows.isnan().all():
            grads = kernels.backward(call, output, lse, rows, to_output, to_lse, wanted)
        if grads is None:
            grads = kernels.careful_backward(call, _careful[0], tensors, to_output, to_lse)
    to_vector = grads[OWN_TENSORS:] or (None,)
    return tuple(  # pyright: ignore[reportReturnType]
        query.new_empty(0) if one is None else one.contiguous() for one in (*grads[:OWN_TENSORS], *to_vector)
    )


@_attention_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    query = arguments[0]
    return tuple(
        query.new_empty(0) if one is None else torch.empty_like(one, memory_format=torch.contiguous_format)
        for one in arguments[: OWN_TENSORS + 1]
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, low, high, scale, cap, dropout, seed, _, _, _ = inputs
    ctx.save_for_backward(*tensors, seed, *output[:3])
    ctx.numbers = low, high, scale, cap, dropout


def _differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    *tensors, seed, output, lse, rows = ctx.saved_tensors
    to_output, to_lse = grads[:2]
    found = _attention_backward(*tensors, *ctx.numbers, seed, output, lse, rows, to_output, to_lse)
    own = [None if one is None else grad for one, grad in zip(tensors[: OWN_TENSORS + 1], found, strict=True)]
    return *own, *[None] * 13


_attention.register_autograd(_differentiate, setup_context=_save)


def _call(*arguments: Any) -> Call:
    """The call again, from what the operators take."""
    (
        query,
        key,
        value,
        bias,
        sink,
        distances,
        vector,
        lengths,
        dense,
        first,
        last,
        low,
        high,
        scale,
        cap,
        dropout,
        seed,
    ) = arguments
    score = dot(scale, cap=cap or None) if vector is None else additive(vector)
    mask = Described(Form(low, high, lengths, dense, first, last))
    lead = (query.shape[0],)
    return Call(query, key, value, score, mask, bias, dropout, int(seed), lead, True, sink=sink, distances=distances)


def _seen_later(call: Call, lse: Tensor) -> Gathered:
    """What was to be gathered, computed after the pass."""
    gather = call.gather
    return Gathered(
        lookup.received(call, lse) if gather.received else None,
        lookup.entropy(call, lse) if gather.entropy else None,
        lookup.strongest(call, lse, gather.top) if gather.top else None,
    )
