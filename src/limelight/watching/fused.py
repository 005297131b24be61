"""Torch's fused attention under its other names: operators of `torch.ops.aten`, called directly."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverloadPacket

_NAMES = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
_MEANT = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attn_mask": "attn_mask",
    "attn_bias": "attn_mask",
    "dropout_p": "dropout_p",
    "is_causal": "is_causal",
    "scale": "scale",
    "enable_gqa": "enable_gqa",
}
"""An argument of these operators -> the same of `F.scaled_dot_product_attention`; the others change no weight."""


def _found() -> dict[Any, tuple[str, ...]]:
    found: dict[Any, tuple[str, ...]] = {}
    for name in _NAMES:
        packet: OpOverloadPacket | None = getattr(torch.ops.aten, name, None)
        if packet is not None:
            arguments = tuple(one.name for one in packet.default._schema.arguments)
            found |= dict.fromkeys((packet, packet.default, getattr(torch, name, packet)), arguments)
    return found


FUSED: dict[Any, tuple[str, ...]] = _found()
"""Each way to call one of them -> the names of its arguments, in order."""


def named(operator: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call, as those of `F.scaled_dot_product_attention`."""
    given = {**dict(zip(FUSED[operator], args, strict=False)), **kwargs}
    return {_MEANT[name]: one for name, one in given.items() if name in _MEANT}
