"""What a layer's call was told: its masks, kept apart, and axes of attention folded into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from limelight.interop.keras import compute, shapes
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


def odd_masks(query: Any, value: Any, **masks: Any) -> str | None:
    """What is odd about the masks of a call on query [B, T, .] and value [B, S, .]; None if `described` takes them."""
    found = shapes.odd_vector("query_mask", masks["query_mask"], query.shape[1], query, value)
    for name in ("value_mask", "key_mask"):
        found = found or shapes.odd_vector(name, masks[name], value.shape[1], query, value)
    return found or shapes.odd_pairs(masks["attention_mask"], (None, None, query.shape[1], value.shape[1]))


def odd_heads(query: Any, key: Any, value: Any, pairs: Any, axes: tuple[int, ...]) -> str | None:
    """What is odd about projected inputs [B, ..., H, D] and a mask of them; axes: those of attention."""
    ranks = [len(one.shape) for one in (query, key, value)]
    if min(ranks) < 4 or len(set(ranks)) > 1:
        return (
            f"query, key and value must have the same number of axes, at least 3; they have {[n - 1 for n in ranks]}."
        )
    if ranks[0] == 4:
        full = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
        odd = shapes.odd_positions(query.shape[:2], key.shape[:2], value.shape[:2])
        return odd or shapes.odd_pairs(pairs, full)
    for axis in range(ranks[0] - 2):
        sizes = {one.shape[axis] for one in ((key, value) if axis in axes else (query, key, value))} - {None}
        if len(sizes) > 1:
            return (
                f"query, key and value must agree in axis {axis}, attention being over {axes}; it is {sorted(sizes)}."
            )
    return None


def odd_grouped(query: Any, key: Any, value: Any, heads: int, masks: dict[str, Any]) -> str | None:
    """What is odd about inputs [B, positions, width] of so many query heads, and their masks."""
    if any(len(one.shape) != 3 for one in (query, key, value)):
        return (
            f"query, key and value must have three axes; they have {[len(one.shape) for one in (query, key, value)]}."
        )
    full = (query.shape[0], heads, query.shape[1], key.shape[1])
    odd = shapes.odd_positions(query.shape[:2], key.shape[:2], value.shape[:2])
    return odd or odd_masks(query, value, **masks) or shapes.odd_pairs(masks["attention_mask"], full)


def as_allowed(attention_mask: Any, use_causal_mask: bool) -> Allowed:
    """The same of what `_compute_attention` was given: a description of ours, a mask, or none."""
    if isinstance(attention_mask, Allowed):
        return attention_mask
    return Allowed(pairs=None if attention_mask is None else ops.cast(attention_mask, "bool"), causal=use_causal_mask)


def multiplied_out(mask_of: Callable[..., Any], query: Any, value: Any, given: Any) -> Any:
    """What Keras' own computation takes in place of a description: the mask that its `mask_of` makes."""
    if not isinstance(given, Allowed):
        return given
    if given.masks is not None:
        return mask_of(query, value, **given.masks)
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

    The three may differ in dtype, and they and their masks may have a batch of 1 where others have B.
    """
    rate = 0.0 if seed is None else dropout
    # Keras takes a dropout of 1 too: every weight is dropped.
    settings = Settings(scale, allowed.causal, allowed.window, 0.0 if rate == 1.0 else rate)
    pairs = allowed.pairs
    while pairs is not None and len(pairs.shape) < 4:
        pairs = ops.expand_dims(pairs, -3)
    batch = next((ops.shape(one)[0] for one in inputs if one.shape[0] != 1), 1)
    dtype = _widest(*inputs, vector)
    query, key, value = (shapes.widened(_as(one, dtype), (batch,), 3) for one in inputs)
    query_mask, key_mask = (
        None if mask is None else shapes.widened(mask, (batch, ops.shape(one)[1]))
        for mask, one in ((allowed.query_mask, query), (allowed.key_mask, key))
    )
    vector = None if vector is None else _as(vector, dtype)
    tensors = Tensors(query, key, value, vector, query_mask, key_mask, pairs, seed)
    output, view = compute.look(settings, tensors) if want == VIEW else (compute.attention(settings, tensors), None)
    return (output * 0.0 if rate == 1.0 else output), view


def _widest(*tensors: Any) -> str:
    # Keras knows no float64 but on TensorFlow: two of float64 are float32 to it.
    dtypes = {keras.backend.standardize_dtype(one.dtype) for one in tensors if one is not None}
    return "float64" if "float64" in dtypes else keras.backend.result_type(*dtypes)


def _as(tensor: Any, dtype: str) -> Any:
    return tensor if keras.backend.standardize_dtype(tensor.dtype) == dtype else ops.cast(tensor, dtype)


def one_head(tensor: Any) -> Any:
    """[..., positions, width] as one head: [B, positions, 1, width]."""
    *lead, positions, width = ops.shape(tensor)
    return ops.reshape(tensor, (math.prod(lead), positions, 1, width))


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
