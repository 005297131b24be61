"""The attention matrix as a linear operator: view @ x is one more attention call, x @ view its transpose.

Gradients come from the backends: with x as the value, W x is the output of the call. For y = x W and a gradient g,
    <x W, g> = <xᵀ, W gᵀ>,
so the gradients to query and key are those of the call with the value gᵀ for the gradient xᵀ of its output, and the
gradient to x is that output itself, transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limelight.backends import lookup
from limelight.backends.derivatives import final
from limelight.backends.protocol import OWN_TENSORS, Call, Gather, heads_of
from limelight.backends.select import choose, observed
from limelight.errors import ArgumentError
from limelight.numerics import all_finite


def right(call: Call, threshold: Tensor, lead: tuple[int, ...], x: Any) -> Tensor:
    """View @ x, of x [..., S, M] or [S]; `lead`: the axes of the view but for the last two."""
    x = as_operand(x, call.dtype(), threshold.device)
    column = x.unsqueeze(-1) if x.ndim == 1 else x
    folded, unfold = _fold(column, lead, call.key.shape[2], "view @ x: x must be [..., S, M] or [S]")
    out = unfold(_times(call, folded))
    return out.squeeze(-1) if x.ndim == 1 else out


def left(call: Call, threshold: Tensor, lead: tuple[int, ...], x: Any) -> Tensor:
    """X @ view, of x [..., M, T] or [T]."""
    x = as_operand(x, call.dtype(), threshold.device)
    column = x.unsqueeze(-1) if x.ndim == 1 else x.mT
    folded, unfold = _fold(column, lead, call.query.shape[2], "x @ view: x must be [..., M, T] or [T]")
    # The value takes no part.
    tensors = (folded, *(None if place == 2 else one for place, one in enumerate(call.tensors())))
    out = unfold(_Transposed.apply(call, threshold.detach(), *tensors))
    return out.squeeze(-1) if x.ndim == 1 else out.mT


def received(call: Call, threshold: Tensor, lead: tuple[int, ...], weights: Any) -> Tensor:
    """Σ_i c_i w_ij, [..., H, S], of weights c that broadcast to [..., H, T].

    Without gradients by a pass of a backend that observes on the way, where one can; else as `left`.
    """
    rows = as_operand(weights, call.dtype(), threshold.device, "weights", least=0)
    if not rows.ndim or rows.shape[-1] == 1:
        rows = rows.expand(*rows.shape[:-1], call.query.shape[2])
    if not (torch.is_grad_enabled() and (threshold.requires_grad or rows.requires_grad)):
        seen = _received_on_the_way(call, (*lead, call.query.shape[2]), rows.detach())
        if seen is not None:
            return seen.reshape(*lead, seen.shape[-1])
    return left(call, threshold, lead, rows.unsqueeze(-2)).squeeze(-2)


@torch.no_grad()
def _received_on_the_way(call: Call, full: tuple[int, ...], rows: Tensor) -> Tensor | None:
    """[N, H, S], or None: a weight of NaN or inf would meet the pairs that the mask forbids."""
    fits = rows.ndim <= len(full) and all(
        have in (1, want) for have, want in zip(reversed(rows.shape), reversed(full), strict=False)
    )
    if not fits or rows.dtype is not torch.float32 or not all_finite(rows):
        return None
    wide = rows.expand(full).reshape(call.query.shape[:3]).contiguous()
    return observed(call, Gather(received=True, row_weight=wide)).received


def as_operand(x: Any, dtype: torch.dtype, device: torch.device, name: str = "x", *, least: int = 1) -> Tensor:
    """A tensor, an array or numbers as a tensor of the dtype and device of the weights, with `least` axes at least.

    Errors: ArgumentError, with the `name` of the argument, for what is no number, for fewer axes, and for a tensor on
    another device.
    """
    try:
        tensor = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"{name} must be a tensor or an array of numbers; it is {type(x).__name__} ({error})."
        ) from None
    if tensor.ndim < least or tensor.is_complex():
        raise ArgumentError(
            f"{name} must have {'one axis at least and ' if least else ''}real numbers; it is {tensor.dtype} "
            f"{[*tensor.shape]}."
        )
    if isinstance(x, Tensor) and x.device != device:
        raise ArgumentError(
            f"{name} must be on the device of the view, {device}; it is on {x.device}. Use {name}.to(...)."
        )
    return tensor.to(dtype=dtype, device=device)


def _times(call: Call, value: Tensor) -> Tensor:
    """W value, [N, H, T, M], of value [N, H, S, M]; differentiable once."""
    # Each head has its own value, so each has its own key as well.
    key = heads_of(call.key, call.query.shape[1])
    call = call.changed(key=key, value=value, dropout=0.0, wants_lse=False)
    return choose(call, "auto").run(call).output


class _Transposed(torch.autograd.Function):
    """(rows, the call's tensors) -> Wᵀ rows, [N, H, S, M], of rows [N, H, T, M]."""

    @staticmethod
    def forward(ctx: Any, call: Call, threshold: Tensor, *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.call = call.without_tensors()
        return lookup.product(call, threshold, tensors[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        rows, *tensors = ctx.saved_tensors
        (gradient,) = grad_outputs
        with torch.enable_grad():
            leaves = [None if one is None else one.detach() for one in tensors]
            wanted = [one.requires_grad_() for one in leaves if one is not None and one.is_floating_point()]
            own, parameters = leaves[:OWN_TENSORS], tuple(one for one in leaves[OWN_TENSORS:] if one is not None)
            output = _times(ctx.call.with_tensors(*own).with_parameters(parameters), gradient.detach())
            found = iter(torch.autograd.grad(output, wanted, rows.detach(), allow_unused=True))
        grads = (next(found) if one is not None and one.requires_grad else None for one in leaves)
        way_out = "Use x @ view.dense() of a call with backend='reference', or leave out create_graph=True."
        return None, None, *final((output.detach(), *grads), "x @ view", way_out, (rows, *tensors, gradient))


def _fold(x: Tensor, lead: tuple[int, ...], length: int, rule: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """X [..., length, M] as [N, H, length, W], its leading axes broadcast as in matmul, and how to undo that.

    Leading axes along which the view is the same go beside M, so that they cost columns and not views.
    """
    if x.shape[-2] != length:
        raise ArgumentError(f"{rule}, and the view has {length} there; x has {x.shape[-2]}.")
    try:
        full = torch.broadcast_shapes(lead, x.shape[:-2])
    except RuntimeError:
        raise ArgumentError(
            f"{rule}, with leading axes that broadcast against {list(lead)}; they are {list(x.shape[:-2])}."
        ) from None
    own = (1,) * (len(full) - len(lead)) + lead
    moved = [axis for axis, size in enumerate(own) if size == 1]
    kept = [axis for axis, size in enumerate(own) if size != 1]
    count = len(full)
    order = [*kept, count, *moved, count + 1]
    wide = x.expand(*full, *x.shape[-2:]).permute(order)
    columns = [*(full[axis] for axis in moved), x.shape[-1]]
    folded = wide.reshape(math.prod(lead[:-1]), lead[-1], length, math.prod(columns))

    def unfold(out: Tensor) -> Tensor:
        opened = out.reshape(*(full[axis] for axis in kept), out.shape[2], *columns)
        return opened.permute([order.index(axis) for axis in range(count + 2)])

    return folded, unfold
