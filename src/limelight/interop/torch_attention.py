"""What a call of torch's `F.scaled_dot_product_attention` means, as arguments of `look`: the one place that knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from limelight.masks import Mask, causal, dense
from limelight.scores import Score, dot


class Meaning(NamedTuple):
    """The inputs, and the score, mask and bias of `look`; the tensors are views of those of the call."""

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    mask: Mask | None
    bias: Tensor | None
    dropout: float

    def options(self) -> dict[str, Any]:
        """The arguments of `look` besides the inputs and dropout."""
        return {"score": self.score, "mask": self.mask, "bias": self.bias}


def meaning(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Meaning:
    """The same call in our words. The arguments are those of torch's function, which has accepted or will check them.

    - bool `attn_mask`: True may attend, as `dense`; float `attn_mask`: added to the scores, as `bias`;
    - `is_causal`: sequences lined up at their starts, as `causal("start")`; a `CausalBias` says which end itself;
    - leading axes and, without `enable_gqa`, heads broadcast; two axes mean one head;
    - a query that may attend to nothing gives 0 in both.
    """
    query, key, value = _aligned(query, key, value, grouped=enable_gqa)
    mask, bias = None, None
    if isinstance(attn_mask, CausalBias):
        mask = causal("start" if attn_mask.variant is CausalVariant.UPPER_LEFT else "end")
    elif attn_mask is not None and attn_mask.dtype is torch.bool:
        mask = dense(narrowed(attn_mask))
    elif attn_mask is not None:
        bias = narrowed(attn_mask)
    if is_causal:
        mask = causal("start")
    return Meaning(query, key, value, dot(scale), mask, bias, dropout_p)


def narrowed(tensor: Tensor) -> Tensor:
    """The tensor without its repetitions: an axis made by `expand` (stride 0) has size 1 again."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _aligned(query: Tensor, key: Tensor, value: Tensor, *, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three with a head axis and equal leading axes."""
    query, key, value = (one.unsqueeze(0) if one.ndim == 2 else one for one in (query, key, value))
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    heads = (
        query.shape[-3] if grouped else torch.broadcast_shapes(*((one.shape[-3],) for one in (query, key, value)))[0]
    )
    # One key head for all query heads is what a group of heads means; anything else in between is spelt out.
    shared = key.shape[-3] if grouped and key.shape[-3] == value.shape[-3] else heads
    if key.shape[-3] == value.shape[-3] == 1:
        shared = 1
    return (
        _expanded(query, lead, heads),
        _expanded(key, lead, shared),
        _expanded(value, lead, shared),
    )


def _expanded(tensor: Tensor, lead: torch.Size, heads: int) -> Tensor:
    have = tensor.shape[-3]
    if have not in (1, heads):
        tensor = tensor.repeat_interleave(heads // have, -3)
    return tensor.expand(*lead, heads, *tensor.shape[-2:])
