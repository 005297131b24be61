"""The native kernels as two operators of torch, `limelight::attend` and `limelight::attend_backward`.

For compilers, to which a call must be one step with tensors and numbers going in and tensors coming out. Where none is
looking, `native.py` calls the kernels itself: an operator costs tens of microseconds on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from limelight.backends import kernels, lookup, pooling
from limelight.backends.flat import DIFFERENTIABLE, Flat, check, check_kept
from limelight.backends.protocol import Call, Gather, Gathered, Result
from limelight.masks.described import Described
from limelight.masks.form import Form
from limelight.scores import additive, dot

Careful = Callable[[Call], Result]

_UNCAPPED = 0.0
_careful: list[Careful] = []


_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float"}
_CALL = ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(Flat).items())
_GATHER = "bool received, bool entropy, int top, bool distance, Tensor? row_weight, int[] rows, int[] cells, str reduce"
_FIRST_NUMBER = Flat._fields.index("low")
_KEPT = 4
"""How many results the backward pass may want, from the first on: output, lse, rows, exact."""
_INDICES = 6
"""The place of the strongest indices among the results."""


def set_careful(run: Careful) -> None:
    """Who runs a call in which the kernels met NaN or inf: said once, by native.py."""
    _careful[:] = [run]


def run(call: Call) -> Result:
    """A call that native takes, through the operator."""
    gather = call.gather
    output, lse, _, _, received, entropy, indices, weights, distance, rows, pooled = _attention(*_flat(call), *gather)
    seen = Gathered(
        received if gather.received else None,
        entropy if gather.entropy else None,
        (indices, weights) if gather.top else None,
        distance if gather.distance else None,
        rows if gather.rows else None,
        pooled if gather.cells else None,
    )
    return Result(output, lse, None, seen)


def _flat(call: Call) -> Flat:
    form = call.form()
    assert form is not None
    vector = call.score.tanh_vector()
    scale = 1.0 if vector is not None else call.score.plain_scale(call.query.shape[-1])
    assert scale is not None
    return Flat(
        *(call.query, call.key, call.value, call.bias, call.sink, call.distances, vector),
        *(form.lengths, form.dense, form.first, form.last, form.low, form.high),
        *(scale, call.score.soft_cap() or _UNCAPPED, call.dropout),
        torch.as_tensor(call.seed, dtype=torch.int64),
    )


def _call(flat: Flat) -> Call:
    """The call again."""
    score = dot(flat.scale, cap=flat.cap or None) if flat.vector is None else additive(flat.vector)
    mask = Described(Form(flat.low, flat.high, flat.lengths, flat.dense, flat.first, flat.last))
    return Call(
        *(flat.query, flat.key, flat.value, score, mask, flat.bias, flat.dropout, int(flat.seed)),
        *((flat.query.shape[0],), True),
        sink=flat.sink,
        distances=flat.distances,
    )


@torch.library.custom_op(
    "limelight::attend",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_CALL}, {_GATHER}) -> ({', '.join(['Tensor'] * 11)})",
)
def _attention(*arguments: Any) -> tuple[Tensor, ...]:
    """Output, lse, rows (NaN after the careful road), a narrow output before it was rounded, received, entropy, the
    strongest links' indices and weights, distance, the weights of chosen queries, the pooled matrix.
    """
    flat, gather = Flat(*arguments[: len(Flat._fields)]), Gather(*arguments[len(Flat._fields) :])
    check(flat, gather)
    call = _call(flat)
    call.gather = gather
    with torch.no_grad():
        done = kernels.forward(call, True)
        if done is None:
            result = kernels.careful_forward(call, _careful[0])
            assert result.lse is not None
            rows = result.lse.new_full((*result.lse.shape, 2), torch.nan)
            exact = result.output.float() if _narrow(flat) else None
            seen = _seen_later(call, result.lse)
        else:
            result, kept = done
            assert kept is not None
            rows, exact = kept.rows, kept.output if _narrow(flat) else None
            seen = result.gathered
    assert seen is not None
    indices, weights = seen.top or (None, None)
    found = (result.output, result.lse, rows, exact, seen.received, seen.entropy, indices, weights, *seen[3:])
    # An operator hands out no tensor twice.
    return tuple(_empty(flat, place) if one is None else one for place, one in enumerate(found))


def _narrow(flat: Flat) -> bool:
    return flat.query.dtype is not torch.float32


def _empty(flat: Flat, place: int) -> Tensor:
    """The result at that place where it was not asked for."""
    return flat.query.new_empty(0, dtype=torch.int64 if place == _INDICES else torch.float32)


@_attention.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    flat, gather = Flat(*arguments[: len(Flat._fields)]), Gather(*arguments[len(Flat._fields) :])
    n, heads, queries, _ = flat.query.shape
    rows = (n, heads, queries)
    shapes = (
        rows,
        (*rows, 2),
        (*rows, flat.value.shape[3]) if _narrow(flat) else (0,),
        (n, heads, flat.key.shape[2]) if gather.received else (0,),
        rows if gather.entropy else (0,),
        (*rows, gather.top) if gather.top else (0,),
        (*rows, gather.top) if gather.top else (0,),
        rows if gather.distance else (0,),
        (n, heads, len(gather.rows), flat.key.shape[2]) if gather.rows else (0,),
        (n, heads, *gather.cells) if gather.cells else (0,),
    )
    return (
        kernels.room(flat.query, flat.value.shape[3]),
        *(_empty(flat, place).new_empty(shape) for place, shape in enumerate(shapes, 1)),
    )


@torch.library.custom_op(
    "limelight::attend_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_CALL}, Tensor output, Tensor lse, Tensor rows, Tensor to_output, Tensor to_lse) -> "
    f"({', '.join(['Tensor'] * DIFFERENTIABLE)})",
)
def _attention_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients to query, key, value, bias, sink, distances and vector; empty for what is not there."""
    flat, (output, lse, rows, to_output, to_lse) = Flat(*arguments[: len(Flat._fields)]), arguments[len(Flat._fields) :]
    check(flat)
    check_kept(flat, output, lse, rows, to_output, to_lse)
    call = _call(flat)
    tensors = list(call.tensors())
    with torch.no_grad():
        wanted = tuple(one is not None for one in tensors)
        grads = None
        if not rows.isnan().all():
            grads = kernels.backward(call, kernels.Kept(rows, output), lse, to_output, to_lse, wanted)
        if grads is None:
            grads = kernels.careful_backward(call, _careful[0], tensors, to_output, to_lse)
    grads = grads if len(grads) == DIFFERENTIABLE else (*grads, None)
    inputs, others = grads[:3], grads[3:]  # the first are laid out as query, key and value are
    return (
        *(flat.query.new_empty(0) if one is None else one for one in inputs),
        *(flat.query.new_empty(0) if one is None else one.contiguous() for one in others),
    )


@_attention_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    query, key, value, *others = arguments[:DIFFERENTIABLE]
    return (
        *(kernels.room(one, one.shape[3]) for one in (query, key, value)),
        *(query.new_empty(0) if one is None else one.new_empty(one.shape) for one in others),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    flat = Flat(*inputs[: len(Flat._fields)])
    kept, lse, rows, exact = output[:_KEPT]
    ctx.save_for_backward(*flat[:_FIRST_NUMBER], flat.seed, exact if _narrow(flat) else kept, lse, rows)
    ctx.numbers = flat[_FIRST_NUMBER:-1]


def _differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    *tensors, seed, output, lse, rows = ctx.saved_tensors
    to_output, to_lse = grads[:2]
    found = _attention_backward(*tensors, *ctx.numbers, seed, output, lse, rows, to_output, to_lse)
    leaves = tensors[:DIFFERENTIABLE]
    own = [None if one is None else grad for one, grad in zip(leaves, found, strict=True)]
    return *own, *[None] * (len(Flat._fields) - DIFFERENTIABLE + len(Gather._fields))


_attention.register_autograd(_differentiate, setup_context=_save)


def _seen_later(call: Call, lse: Tensor) -> Gathered:
    """What was to be gathered, computed after the pass."""
    gather = call.gather
    received = None
    if gather.received and gather.row_weight is not None:
        received = lookup.product(call, lse, gather.row_weight.unsqueeze(-1)).squeeze(-1)
    elif gather.received:
        received = lookup.received(call, lse)
    return Gathered(
        received,
        lookup.entropy(call, lse) if gather.entropy else None,
        lookup.strongest(call, lse, gather.top) if gather.top else None,
        lookup.distance(call, lse) if gather.distance else None,
        lookup.rows(call, lse, gather.rows) if gather.rows else None,
        pooling.pooled(call, lse, call.whole(), *gather.cells, reduce=gather.reduce) if gather.cells else None,
    )
