"""The streaming backend: plain torch, linear memory, any score, any mask, forward and backward.

Calls that fit into one block take the short cut in `single.py`; all others go block by block as `blocked.py` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.backends import blocked, single, thresholds
from limelight.backends.blocked import Outcome
from limelight.backends.derivatives import final
from limelight.backends.protocol import OWN_TENSORS, Backend, Call, Result
from limelight.backends.tiling import fits
from limelight.contract import accumulation_dtype
from limelight.numerics import no_autocast


class Streaming(Backend):
    """Linear memory, any score, any mask, any device that torch runs on."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name."""
        return "streaming"

    def refusal(self, call: Call) -> str | None:
        """It runs everything."""
        return None

    def fastest(self, call: Call) -> bool:
        """Whenever the backends before it are not."""
        return True

    def run(self, call: Call) -> Result:
        """Forward; the backward pass is set up in autograd."""
        pieces = None
        if fits(call) and call.normalizer.is_softmax:
            with torch.no_grad(), no_autocast(call.query):
                pieces = single.forward(call, _widened(call, call.score.parameters))
        tensors = call.tensors()
        tracked = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
        if pieces is None:
            return Result(*_Blocked.apply(call, tracked, *tensors))
        if not tracked:
            return Result(pieces.output, pieces.lse, pieces.weights)
        output, lse = _Single.apply(call, pieces, *tensors)
        return Result(output, lse)


class _Single(torch.autograd.Function):
    """The call's tensors -> (output, lse), of a forward pass that is done already."""

    @staticmethod
    def forward(ctx: Any, call: Call, pieces: single.Pieces, *tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.inputs = len(tensors)
        ctx.save_for_backward(*tensors, pieces.weights, pieces.kept_over_rate, pieces.share, *pieces.kept)
        ctx.call, ctx.masked = call.without_tensors(), pieces.masked
        return pieces.output, pieces.lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        to_output, to_lse = grad_outputs
        saved = ctx.saved_tensors
        tensors, (weights, drop, share, *kept) = saved[: ctx.inputs], saved[ctx.inputs :]
        call = ctx.call.with_tensors(*tensors[:OWN_TENSORS])
        if to_output is None:
            to_output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[-1])
        with torch.no_grad(), no_autocast(call.query):
            parameters = _widened(call, tensors[OWN_TENSORS:])
            pieces = single.Pieces(to_output, None, weights, drop, tuple(kept), ctx.masked, share)
            grads = single.backward(call, parameters, pieces, to_output, to_lse)
            if grads is None:
                outcome = blocked.forward(call, parameters)
                to_lse = torch.zeros_like(outcome.threshold) if to_lse is None else to_lse
                grads = blocked.Backward(call, tensors[OWN_TENSORS:], outcome, to_output, to_lse).run()
        return (None, None, *final(grads, "streaming", anchors=(*tensors, *grad_outputs)))


class _Blocked(torch.autograd.Function):
    """The call's tensors -> (output, threshold): softmax's lse, another normalizer's τ."""

    @staticmethod
    def forward(ctx: Any, call: Call, tracked: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        with no_autocast(call.query):
            if call.normalizer.is_softmax:
                outcome = blocked.forward(call, tensors[OWN_TENSORS:])
            else:
                outcome = thresholds.forward(call, tensors[OWN_TENSORS:], tracked)
        ctx.save_for_backward(*tensors, *outcome)
        ctx.call = call.without_tensors()
        return outcome.output, outcome.threshold

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        to_output, to_threshold = grad_outputs
        saved = ctx.saved_tensors
        parts = len(Outcome._fields)
        tensors, outcome = saved[:-parts], Outcome(*saved[-parts:])
        call = ctx.call.with_tensors(*tensors[:OWN_TENSORS])
        with torch.no_grad(), no_autocast(call.query):
            grads = blocked.Backward(call, tuple(tensors[OWN_TENSORS:]), outcome, to_output, to_threshold).run()
        return (None, None, *final(grads, "streaming", anchors=(*tensors, *grad_outputs)))


def _widened(call: Call, parameters: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The score's parameters in the accumulation dtype."""
    dtype = accumulation_dtype(call.query.dtype)
    return tuple(one if one.dtype is dtype else one.to(dtype) for one in parameters)
