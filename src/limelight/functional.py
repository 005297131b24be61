"""torch's function of attention, on our kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from limelight.attend import attend
from limelight.errors import ArgumentError, TorchArgumentError
from limelight.interop.torch_attention import meaning


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale query keyᵀ + mask) value: `F.scaled_dot_product_attention` by `attend`.

    The same arguments, meaning and results within rounding, gradients too; nothing of L x S is stored but what the
    caller gives. NaN behind a mask touches nothing here.

    Arguments:
        query: [..., H, L, E], or [L, E].
        key: [..., H, S, E]; leading axes, and without enable_gqa the heads, broadcast.
        value: [..., H, S, Ev].
        attn_mask: broadcasts to [..., H, L, S]; bool: True *may* attend; float: added to the scores. Or a `CausalBias`
            of torch.nn.attention.bias.
        dropout_p: share of the weights dropped, in [0, 1), in training and evaluation alike.
        is_causal: query i sees keys [0, i]; not together with attn_mask.
        scale: 1/sqrt(E) unless given.
        enable_gqa: key and value may have fewer heads, whose number divides H.

    Result: [..., H, L, Ev]. A query that may attend to nothing gets 0.

    Errors: TorchArgumentError, which is a RuntimeError as torch's are.
    """
    _check(query, key, value, attn_mask, is_causal, enable_gqa)
    try:
        call = meaning(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        output = attend(*call[:3], **call.options(), dropout=dropout_p)
    except ArgumentError as error:
        raise TorchArgumentError(str(error)) from None
    return output if query.ndim > 2 else output.squeeze(-3)


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> None:
    if is_causal and attn_mask is not None:
        raise TorchArgumentError(
            "attn_mask and is_causal must not be given together. Put the causal part into attn_mask, or use "
            "limelight.attend with mask=causal('start') & dense(attn_mask)."
        )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or x.ndim < 2:
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise TorchArgumentError(
                f"{name} must be a tensor with two axes at least, positions and width; it is {shape}."
            )
    plain = None if isinstance(attn_mask, CausalBias) else attn_mask
    if plain is not None and plain.dtype is not torch.bool and not plain.is_floating_point():
        raise TorchArgumentError(
            f"attn_mask must be bool, True may attend, or float, added to the scores; it is {plain.dtype}. "
            f"Use attn_mask.bool()."
        )
    if enable_gqa and query.ndim > 2:
        for name, x in (("key", key), ("value", value)):
            if x.ndim < 3 or not x.shape[-3] or query.shape[-3] % x.shape[-3]:
                raise TorchArgumentError(
                    f"enable_gqa: the heads of {name} must divide those of query, {query.shape[-3]}; its shape is "
                    f"{list(x.shape)}."
                )
        return
    leads = [tuple(x.shape[:-2]) for x in (query, key, value)]
    try:
        torch.broadcast_shapes(*leads)
    except RuntimeError:
        raise TorchArgumentError(
            f"query, key and value must broadcast in all axes but the last two; their shapes are {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}. For fewer heads of key and value set enable_gqa=True."
        ) from None
