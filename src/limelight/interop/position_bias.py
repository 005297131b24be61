"""T5's position bias as numbers by distance, instead of the [H, T, S] tensor that its attention makes for itself.

The bias is made inside the forward method of the attention module, before the attention function is asked. So the
classes of the T5 family get a forward method that hands itself a description for it, as a caller may hand it a tensor.
Models with another attention implementation go the way they went.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from limelight.biases import Bias
from limelight.masks import Block

FAMILY = {
    "t5": "T5Attention",
    "mt5": "MT5Attention",
    "longt5": "LongT5Attention",
    "pix2struct_text_model": "Pix2StructTextAttention",
    "pop2piano": "Pop2PianoAttention",
    "switch_transformers": "SwitchTransformersAttention",
    "udop": "UdopAttention",
}
"""The type of a model, as its configuration names it, and its class of attention."""


class PositionBias(Bias):
    """What an attention module of the T5 family adds to its scores; it goes from layer to layer as their tensor would.

    module: the one whose table holds the numbers, None for no bias; past: the place of the first query.
    """

    __slots__ = ("_known", "_module", "_past")

    def __init__(self, module: Any, past: int) -> None:
        self._module, self._past = module, past
        self._known: tuple[tuple[int, int], Tensor] | None = None

    def said(self) -> PositionBias | None:
        """Itself, or None where it adds nothing."""
        return None if self._module is None else self

    def check(self, query: Tensor) -> None:
        """The model made it for the call."""

    def by_distance(self, whole: Block, dtype: torch.dtype) -> Tensor:
        """[H, T + S - 1]: those of one query that stands where the last one does and sees as many keys."""
        shape = (whole.queries, whole.keys)
        if self._known is None or self._known[0] != shape or torch.is_grad_enabled():
            # With gradients each layer asks anew: a gradient checkpoint may have run the first layer without them.
            numbers = self._module.compute_bias(1, sum(shape) - 1, past_seen_tokens=self._past + whole.queries - 1)
            self._known = (shape, numbers[0, :, 0])
        return self._known[1].to(device=whole.device, dtype=dtype)

    def dense(self, queries: int, keys: int) -> Tensor:
        """The tensor that the model would have made, [1, H, T, S]."""
        return self._module.compute_bias(queries, keys, past_seen_tokens=self._past)


def described_in(model_type: str | None, implementation: str) -> None:
    """See that models of that type describe their bias where they run on that attention implementation."""
    name = FAMILY.get(model_type or "")
    if name is not None:
        package = model_type.removesuffix("_text_model") if model_type else ""
        _describing(getattr(sys.modules[f"transformers.models.{package}.modeling_{package}"], name), implementation)


@functools.cache
def _describing(attention: Any, implementation: str) -> None:
    """Give the class a forward method that makes the description where none is handed in."""
    forward = attention.forward

    @functools.wraps(forward)
    def describing(self: Any, *args: Any, **given: Any) -> Any:
        wanted = "position_bias" in given and given["position_bias"] is None
        if wanted and self.config._attn_implementation == implementation:
            cache = given.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length(self.layer_idx))
            given["position_bias"] = PositionBias(self if self.has_relative_attention_bias else None, past)
        return forward(self, *args, **given)

    attention.forward = describing
