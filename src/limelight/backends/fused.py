"""The torch backend: torch's own fused attention, where it means exactly what `attend` means."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from limelight.backends.protocol import Backend, Call, Result, heads_of
from limelight.masks import Mask
from limelight.masks.causal import Causal
from limelight.numerics import all_finite, forward_mode, no_autocast

_WORTHWHILE = 128 * 128
"""T S from which it was measured faster than `streaming` on the CPU; below, it is level or slower."""


class _Form(NamedTuple):
    """A mask as the fused kernel takes it, or why it cannot."""

    causal: bool = False
    allowed: Tensor | None = None
    reason: str | None = None


class Fused(Backend):
    """`torch.nn.functional.scaled_dot_product_attention`, its linear-memory kernel only."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name."""
        return "torch"

    def refusal(self, call: Call) -> str | None:
        """It takes a plain dot product and the masks that its linear-memory kernel can do with the same meaning."""
        width = call.query.shape[-1]
        if call.score.plain_scale(width) is None:
            return "the score is not a plain dot product"
        if not call.normalizer.is_softmax:
            return f"the normalizer is {call.normalizer.name}, not softmax"
        if call.score.soft_cap() is not None:
            return "the score is capped"
        if call.wants_lse:
            return "the weights are looked at, and it does not give the lse"
        if call.dropout:
            return "its dropout is not the counter-based one"
        if call.bias is not None or call.distances is not None:
            return "a bias would be expanded to T x S"
        if width != call.value.shape[-1]:
            return f"query and value differ in width ({width} and {call.value.shape[-1]}), which would store T x S"
        if call.sink is not None:
            return "a sink takes part in the softmax"
        if not call.pairs():
            return "there is nothing to attend to"
        if forward_mode(call.tensors()):
            return "a forward-mode derivative is wanted"
        if not call.query.dtype is call.key.dtype is call.value.dtype:
            return "query, key and value differ in dtype"
        if call.query.device.type != "cpu" and call.query.dtype is torch.float64:
            return "float64 would store T x S off the CPU"
        return self._form(call, call.mask, check=True).reason

    def fastest(self, call: Call) -> bool:
        """From 128 x 128 pairs per head on."""
        return call.query.shape[2] * call.key.shape[2] >= _WORTHWHILE

    def run(self, call: Call) -> Result:
        """The fused kernel; key heads are repeated to H."""
        heads = call.query.shape[1]
        form = self._form(call, call.mask, check=False)
        with no_autocast(call.query):
            output = scaled_dot_product_attention(
                call.query,
                heads_of(call.key, heads),
                heads_of(call.value, heads),
                attn_mask=form.allowed,
                is_causal=form.causal,
                scale=call.score.plain_scale(call.query.shape[-1]),
            )
        return Result(output, None)

    def _form(self, call: Call, mask: Mask | None, *, check: bool) -> _Form:
        if mask is None:
            return _Form()
        block = call.whole()
        if mask.allows_all(block):
            return _Form()
        if check and not all_finite(call.query, call.key, call.value):
            return _Form(reason="NaN or inf behind a mask would leak")
        if isinstance(mask, Causal):
            # torch lines the sequences up at their starts.
            if mask.align == "start" or block.queries == block.keys:
                return _Form(causal=True)
            return _Form(reason="its causal mask lines up the starts, and T and S differ")
        if not mask.per_key():
            return _Form(reason="the mask would be stored as T x S")
        if call.query.device.type != "cpu":
            return _Form(reason="a mask is stored as T x S off the CPU")
        allowed = mask.tile(block)
        if check and not bool(allowed.any(-1).all()):
            return _Form(reason="a row may attend to nothing")
        return _Form(allowed=allowed.expand(*allowed.shape[:-1], block.keys))
