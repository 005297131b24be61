"""Hugging Face transformers on our kernels: `register()`, then `model.set_attn_implementation("limelight")`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.attend import attend, look
from limelight.errors import ArgumentError
from limelight.interop.class_tables import fill_tables
from limelight.interop.described_mask import DescribedMask
from limelight.interop.mask_functions import described
from limelight.interop.position_bias import PositionBias, described_in
from limelight.interop.torch_attention import narrowed
from limelight.masks import Mask, causal, dense
from limelight.scores import dot
from limelight.view import AttentionView

NAME = "limelight"
"""The name of the attention implementation."""

_UNKNOWN = ("cache", "indices", "block_indices")
"""Arguments that change what is attended to in a way that we have no words for."""

_ADDING = frozenset({"beit"})
"""Models that add a bias to the mask, and none where there is no mask."""


def register() -> None:
    """Make "limelight" an attention implementation of the transformers package; calling it again changes nothing.

    After it, `model.set_attn_implementation("limelight")`, or `attn_implementation="limelight"` where a model is made,
    runs a model on `attend`: grouped heads, soft cap (Gemma 2), sinks (gpt-oss), sliding windows, dynamic and static
    caches, padding on either side, packed sequences, position bias (T5). Masks and position biases are descriptions
    instead of T x S tensors. With `output_attentions=True` in a call of the model, `attentions` holds a view per layer,
    `AttentionView`. Results are those of the implementation "eager" within rounding, but for queries that may attend to
    nothing, such as padding on the left: they get 0, where "eager" gives them the mean of all values.

    Errors: ImportError where transformers is not installed (`pip install 'limelight[hf]'`).

    Source: AttentionInterface and AttentionMaskInterface of transformers 5.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    fill_tables(NAME, attention)


def mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    allow_is_bidirectional_skip: bool = False,
    **_: Any,
) -> DescribedMask | None:
    """The mask function: [batch_size, 1, q_length, kv_length] as a description, which costs no more than its padding.

    None where nothing is hidden, for a model that adds a bias of its own to a mask, if there is one.

    Arguments: as transformers passes them; query i stands at place i + q_offset, key j at j + kv_offset, and
    `attention_mask` [batch_size, places] says which places are no padding. A model asks before its layers run, so that
    this is where the layers of the T5 family are told to describe their position bias as well.
    """
    described_in(getattr(config, "model_type", None), NAME)
    offsets = (int(q_offset), int(kv_offset))
    padding = None
    if attention_mask is not None:
        padding = attention_mask.to(device=device, dtype=torch.bool)[:, kv_offset : kv_offset + kv_length]
        # A static cache has more places than the mask knows of; they are empty.
        padding = torch.nn.functional.pad(padding, (0, kv_length - padding.shape[1]))
    said = described(mask_function, offsets, padding, use_vmap)
    if said is None and allow_is_bidirectional_skip and getattr(config, "model_type", None) in _ADDING:
        return None
    return DescribedMask.of(said, (batch_size, 1, q_length, kv_length), torch.device(device))


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | PositionBias | None = None,
    output_attentions: bool | None = False,
    also: Mask | None = None,
    **others: Any,
) -> tuple[Tensor, AttentionView | None]:
    """The attention function: query [B, H, T, D], key and value [B, G, S, .] -> ([B, T, H, E], view or None).

    `scaling` None: 1/sqrt(D). `s_aux` [H]: sinks. `position_bias` is added to the scores: a tensor, or a description of
    ours. A mask that is no description of ours is a bool tensor, True may attend, or a float tensor, which is added.
    `also`: a mask of ours besides. `sliding_window` is in the mask.

    Errors: ArgumentError for an argument that would change what is attended to and that we cannot do.
    """
    for name in _UNKNOWN:
        if others.get(name) is not None:
            raise ArgumentError(
                f"{name}: {type(module).__name__} passes it to its attention, and the implementation {NAME!r} cannot "
                f'do what it means. Use model.set_attn_implementation("eager").'
            )
    allowed, added = _said(attention_mask, (query.shape[0], 1, query.shape[2], key.shape[2]))
    if attention_mask is None and is_causal and query.shape[2] > 1:
        allowed = causal("start")
    if also is not None:
        allowed = also if allowed is None else allowed & also
    bias = _together(position_bias, added, query.shape[2], key.shape[2])
    options: dict[str, Any] = {"score": dot(scaling, softcap), "mask": allowed, "bias": bias, "dropout": dropout}
    sink = others.get("sinks") if s_aux is None else s_aux
    if sink is not None:
        options["sink"] = sink
    view = None
    if output_attentions or _collecting():
        output, view = look(query, key, value, **options)
        if not (torch.is_grad_enabled() and view.lse.requires_grad):
            # A static cache writes into its keys at the next step.
            view = view.copy()
    else:
        output = attend(query, key, value, **options)
    return output.transpose(1, 2).contiguous(), view


def _collecting() -> bool:
    """Whether the model was called with `output_attentions=True`, which some models keep from their layers."""
    from transformers.utils import output_capturing

    collected = output_capturing._active_collector.get()
    return collected is not None and any("attentions" in key for key in collected)


def _together(
    position_bias: Tensor | PositionBias | None, added: Tensor | None, queries: int, keys: int
) -> Tensor | PositionBias | None:
    """One bias of the model's and of a mask that is added; a tensor of T x S only where such a mask is one already."""
    if isinstance(position_bias, PositionBias):
        position_bias = position_bias.said()
    if added is None:
        return narrowed(position_bias[..., :keys]) if isinstance(position_bias, Tensor) else position_bias
    if position_bias is None:
        return added
    if isinstance(position_bias, PositionBias):
        return position_bias.dense(queries, keys) + added
    return narrowed(position_bias[..., :keys]) + added


def _said(attention_mask: Tensor | None, shape: tuple[int, ...]) -> tuple[Mask | None, Tensor | None]:
    """A mask and a bias of ours, for a call of that shape."""
    if attention_mask is None:
        return None, None
    if isinstance(attention_mask, DescribedMask):
        if attention_mask.part is None and attention_mask.shape == shape:
            return attention_mask.said, None
        # A part of it, or one that is repeated over sequences or queries.
        attention_mask = attention_mask.dense()
    given = narrowed(attention_mask[..., : shape[-1]])
    return (dense(given), None) if given.dtype is torch.bool else (None, given)
