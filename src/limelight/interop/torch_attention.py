"""What torch's arguments mean, as arguments of `look`: the one place that knows.

`meaning` is of a call of `F.scaled_dot_product_attention`, where True may attend; `ignored` of the masks of
`nn.MultiheadAttention`, where True may not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from limelight.contract import tracing
from limelight.masks import Mask, causal, dense, lengths
from limelight.masks.dense import Dense
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
    - `is_causal`: sequences lined up at their starts, as `causal("start")`, besides `attn_mask` if both are given; a
      `CausalBias` says which end itself;
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
        mask = causal("start") if mask is None else mask & causal("start")
    return Meaning(query, key, value, score_of(scale), mask, bias, dropout_p)


@lru_cache(maxsize=16, typed=True)
def score_of(scale: float | None) -> Score:
    """The score of a call; models ask for the same one again and again."""
    return dot(scale)


def ignored(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, extra: int = 0
) -> tuple[Mask | None, Tensor | None]:
    """The masks of `nn.MultiheadAttention` as mask and bias: bool, True is ignored; float, added to the scores.

    On the CPU a mask that hides the future alone is recognised and becomes `causal("start")`, padding that stands at
    the end becomes `lengths`. Nothing of L x S is made beside the caller's own mask, but where both masks add numbers.

    Arguments:
        attn_mask: [L, S] or [N H, L, S].
        key_padding_mask: [N, S].
        heads: H.
        extra: how many keys stand behind the S that every query may attend to.
    """
    mask, bias = None, None
    if attn_mask is not None and not extra and _hides_the_future(attn_mask):
        mask = causal("start")
    elif attn_mask is not None:
        attn_mask = _each_head(attn_mask, heads, extra)
        if attn_mask.dtype is torch.bool:
            mask = dense(~attn_mask)
        else:
            bias = attn_mask
    if key_padding_mask is None:
        return mask, bias
    key_padding_mask = F.pad(key_padding_mask, (0, extra)) if extra else key_padding_mask
    hidden = _hidden(key_padding_mask)
    if hidden is None:
        added = key_padding_mask[:, None, None, :]
        return mask, added if bias is None else bias + added
    padding = padding_mask(~hidden)
    if isinstance(padding, Dense) and isinstance(mask, Dense):
        # The kernels take one dense mask; a bias of -inf forbids too, and costs one number per key.
        added = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)
        return mask, added[:, None, None, :]
    return padding if mask is None else mask if padding is None else mask & padding, bias


def padding_mask(present: Tensor) -> Mask | None:
    """The mask of a bool tensor [N, S], True where a key is no padding; None where all are known to be there.

    Lengths, where all padding is at the end; else the tensor itself, one number per key.
    """
    if tracing():
        return dense(present[:, None, None, :])
    count = present.sum(-1)
    at_end = torch.arange(present.shape[1], device=present.device) < count.unsqueeze(-1)
    if not torch.equal(at_end, present):
        return dense(present[:, None, None, :])
    return None if bool((count == present.shape[1]).all()) else lengths(count)


def _each_head(attn_mask: Tensor, heads: int, extra: int) -> Tensor:
    """[L, S + extra] or [N, H, L, S + extra]; 0 and False, which hide nothing, at what is extra."""
    attn_mask = F.pad(attn_mask, (0, extra)) if extra else attn_mask
    return attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, heads))


def _hides_the_future(attn_mask: Tensor) -> bool:
    """Whether it hides from query i the keys behind place i and does nothing else, as far as that is cheap to know."""
    if attn_mask.ndim != 2 or not attn_mask.numel() or not _readable(attn_mask):
        return False
    hides = True if attn_mask.dtype is torch.bool else -torch.inf
    # Two corners tell most other masks apart.
    if attn_mask[-1, 0] == hides or (attn_mask.shape[1] > 1 and attn_mask[0, -1] != hides):
        return False
    return torch.equal(attn_mask, torch.full_like(attn_mask, hides).triu_(1))


def _hidden(key_padding_mask: Tensor) -> Tensor | None:
    """True where it hides a key; None where it adds numbers, or is not looked at."""
    if key_padding_mask.dtype is torch.bool:
        return key_padding_mask
    if not _readable(key_padding_mask):
        return None
    hidden = key_padding_mask == -torch.inf
    return hidden if bool((hidden | (key_padding_mask == 0)).all()) else None


def _readable(tensor: Tensor) -> bool:
    """Whether looking at its numbers makes nobody wait, and no gradient is wanted of them."""
    return tensor.device.type == "cpu" and not tensor.requires_grad and not tracing()


def narrowed(tensor: Tensor) -> Tensor:
    """The tensor without its repetitions: an axis made by `expand` (stride 0) has size 1 again."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _aligned(query: Tensor, key: Tensor, value: Tensor, *, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three with a head axis and equal leading axes."""
    if query.ndim > 2 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return query, key, value
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
