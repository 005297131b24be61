"""What a layer's call was told: its masks, kept apart, and axes of attention folded into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from limelight.errors import ArgumentError
from limelight.interop.keras import compute
from limelight.interop.keras.operations import ops
from limelight.interop.keras.problem import Allowed, Settings, Tensors
from limelight.interop.keras.scores import VIEW


def described(
    window: int | None,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    use_causal_mask: bool = False,
) -> Allowed:
    """The masks that Keras' `_compute_attention_mask` multiplies out to (B, T, S)."""
    query, value, key, pairs = (
        None if one is None else ops.cast(one, "bool") for one in (query_mask, value_mask, key_mask, attention_mask)
    )
    if value is not None and key is not None and value_mask is not key_mask:
        key = ops.logical_and(value, key)
    return Allowed(query, value if key is None else key, pairs, bool(use_causal_mask), window)


def as_allowed(attention_mask: Any, use_causal_mask: bool) -> Allowed:
    """The same of what `_compute_attention` was given: a description of ours, a mask, or none."""
    if isinstance(attention_mask, Allowed):
        return attention_mask
    return Allowed(pairs=None if attention_mask is None else ops.cast(attention_mask, "bool"), causal=use_causal_mask)


def multiplied_out(mask_of: Callable[..., Any], query: Any, value: Any, given: Any) -> Any:
    """What Keras' own computation takes in place of a description: the mask that its `mask_of` makes."""
    if not isinstance(given, Allowed):
        return given
    return mask_of(
        query,
        value,
        query_mask=given.query_mask,
        value_mask=given.key_mask,
        attention_mask=given.pairs,
        use_causal_mask=given.causal,
    )


def attention(
    scale: float, dropout: float, inputs: Sequence[Any], allowed: Allowed, seed: Any, want: Any, vector: Any = None
) -> tuple[Any, Any]:
    """(output [B, T, H, E], view or None) of query, key and value in Keras' layout; dropout where there is a seed.

    Errors: ArgumentError (a ValueError) if key and value differ in length, before a graph or a callback hides it.
    """
    keys, values = inputs[1].shape[1], inputs[2].shape[1]
    if None not in (keys, values) and keys != values:
        raise ArgumentError(
            f"key and value must have the same number of positions S; key has {keys} and value has {values}. "
            f"Pass one value for each key."
        )
    settings = Settings(scale, allowed.causal, allowed.window, 0.0 if seed is None else dropout)
    pairs = allowed.pairs
    while pairs is not None and len(pairs.shape) < 4:
        pairs = ops.expand_dims(pairs, -3 if len(pairs.shape) > 1 else 0)
    query, key, value = inputs
    tensors = Tensors(query, key, value, vector, allowed.query_mask, allowed.key_mask, pairs, seed)
    return compute.look(settings, tensors) if want == VIEW else (compute.attention(settings, tensors), None)


def one_head(tensor: Any) -> Any:
    """[..., positions, width] as one head: [B, positions, 1, width]."""
    return ops.reshape(tensor, (-1, ops.shape(tensor)[-2], 1, tensor.shape[-1]))


def folded(tensor: Any, axes: tuple[int, ...]) -> Any:
    """[B, ..., H, D], attention being over `axes`: [other axes, axes, H, D], each of both folded into one."""
    order = _order(len(tensor.shape), axes)
    shape = ops.shape(tensor)
    along = math.prod(shape[axis] for axis in axes)
    return ops.reshape(ops.transpose(tensor, order), (-1, along, *shape[-2:]))


def unfolded(tensor: Any, query: Any, axes: tuple[int, ...]) -> Any:
    """The reverse, to the axes of the query, with the width of `tensor`."""
    order, shape = _order(len(query.shape), axes), ops.shape(query)
    back = tuple(order.index(axis) for axis in range(len(order)))
    full = (*(shape[axis] for axis in order[:-1]), tensor.shape[-1])
    return ops.transpose(ops.reshape(tensor, full), back)


def _order(rank: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    rest = tuple(axis for axis in range(rank - 2) if axis not in axes)
    return (*rest, *axes, rank - 2, rank - 1)
