"""The shapes that our attention is for. A call with others is left to Keras, which computes it or raises its own error.

A size that is not known yet, None, is taken for the right one. What is odd comes as a sentence for the error's message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from limelight.errors import ArgumentError, TorchArgumentError
from limelight.interop.keras.operations import ops

Shape = Sequence[int | None]


@contextmanager
def left_to_keras(odd: str | None, *, never: bool = False) -> Iterator[None]:
    """What Keras or its backend raises inside is raised in the same class, its message beginning with what is odd.

    Errors: with `never` ArgumentError if nothing is raised; on torch at once, which may read past the end of a tensor.
    """
    if never and keras.backend.backend() == "torch":
        raise TorchArgumentError(str(odd))
    try:
        yield
    except Exception as error:
        if odd is None:
            raise
        raise _worded(error, odd) from error
    if never:
        raise ArgumentError(str(odd))


def unequal(key: Any, value: Any) -> bool:
    """Whether key and value [B, S, ...] differ in S, which means nothing."""
    return _differ(key.shape[1], value.shape[1])


def odd_positions(query: Shape, key: Shape, value: Shape) -> str | None:
    """What is odd about the (B, T) of queries and the (B, S) of keys and values."""
    if _differ(key[1], value[1]):
        return (
            f"key and value must have the same number of positions S; key has {key[1]} and value has {value[1]}. "
            f"Pass one value for each key."
        )
    sizes = [one[0] for one in (query, key, value) if one[0] is not None]
    if len(set(sizes)) < 2:
        return None
    # Keras' fused attention on torch broadcasts all three, on JAX keys and values, on TensorFlow nothing.
    fixed = {"torch": (), "jax": (query,)}.get(keras.backend.backend(), (query, key, value))
    wide = max(sizes)
    if any(_differ(one[0], wide) for one in fixed) or any(size not in (1, wide) for size in sizes):
        return f"query, key and value must have the same batch B; they have {query[0]}, {key[0]} and {value[0]}."
    return None


def odd_pairs(pairs: Any, full: Shape) -> str | None:
    """What is odd about an attention_mask, which is [T, S], [B, T, S] or [B, H, T, S]; full: (B, H, T, S)."""
    if pairs is None:
        return None
    shape = getattr(pairs, "shape", None)
    if shape is None or len(shape) not in (2, 3, 4) or not _fits(shape, (*full[: len(shape) - 2], *full[2:])):
        given = type(pairs).__name__ if shape is None else list(shape)
        return f"attention_mask must broadcast to [B, T, S] or [B, H, T, S] = {list(full)}; it is {given}."
    return None


def odd_vector(name: str, mask: Any, length: int | None, *inputs: Any) -> str | None:
    """What is odd about a mask of queries or keys, [B, length]; inputs: tensors that have the B."""
    if mask is None:
        return None
    shape = getattr(mask, "shape", None)
    if shape is None or len(shape) not in (1, 2) or not any(_fits(shape, _last(one, length, shape)) for one in inputs):
        given = type(mask).__name__ if shape is None else list(shape)
        return f"{name} must have one value for each position, {[inputs[0].shape[0], length]}; it is {given}."
    return None


def odd_inputs(query: Any, key: Any, value: Any) -> str | None:
    """What is odd about the tensors of an `Attention`: [..., T, D], [..., S, D] and [..., S, E]."""
    for name, one in (("query", query), ("value", value), ("key", key)):
        if not hasattr(one, "shape") or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(one.dtype)):
            return f"{name} must be a tensor of floats; it is {getattr(one, 'dtype', type(one).__name__)}."
        if len(one.shape) < 2:
            return f"{name} must have the axes [..., positions, width]; its shape is {list(one.shape)}."
    if _differ(query.shape[-1], key.shape[-1]):
        return f"query and key must have the same width; query has {query.shape[-1]} and key has {key.shape[-1]}."
    if _differ(key.shape[-2], value.shape[-2]):
        return odd_positions(query.shape[-2:], (None, key.shape[-2]), (None, value.shape[-2]))
    leads = {tuple(one.shape[:-2]) for one in (query, key, value)}
    if len({len(one) for one in leads}) == 1 and not any(_broadcast(sizes) for sizes in zip(*leads, strict=True)):
        return None
    if any(None in one for one in leads) or joined(*leads) is None:
        told = [list(one.shape) for one in (query, key, value)]
        return f"the axes of query, key and value before the last two must be equal; their shapes are {told}."
    return None


def joined(*shapes: Shape) -> tuple[int, ...] | None:
    """The shape that known ones broadcast to; None if they do not."""
    rank = max(len(shape) for shape in shapes)
    found: list[int] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            return None
        found.append(others.pop() if others else 1)  # pyright: ignore[reportArgumentType]
    return tuple(found)


def widened(tensor: Any, lead: Sequence[Any], tail: int = 0) -> Any:
    """The tensor [..., tail axes] with the axes before the last `tail` repeated to `lead`, where they are not yet."""
    have = tensor.shape[: len(tensor.shape) - tail]
    if len(have) == len(lead) and not any(one == 1 and not _is_one(want) for one, want in zip(have, lead, strict=True)):
        return tensor
    return ops.broadcast_to(tensor, (*lead, *ops.shape(tensor)[len(have) :]))


def _is_one(size: Any) -> bool:
    # A size of TensorFlow's that is not known yet is a tensor.
    return isinstance(size, int) and size == 1


def _differ(one: int | None, other: int | None) -> bool:
    return None not in (one, other) and one != other


def _last(tensor: Any, length: int | None, shape: Shape) -> Shape:
    return (tensor.shape[0], length)[2 - len(shape) :]


def _fits(shape: Shape, full: Shape) -> bool:
    return all(have == 1 or not _differ(have, want) for have, want in zip(shape, full, strict=True))


def _broadcast(sizes: Shape) -> bool:
    return len({size for size in sizes if size is not None}) > 1 or (1 in sizes and None in sizes)


def _worded(error: Exception, odd: str) -> Exception:
    known: Any = error
    if hasattr(error, "_keras_call_info_injected"):
        said = odd
    else:
        said = f"{odd} {keras.backend.backend()} says: {getattr(error, 'message', None) or error}"
    try:
        if hasattr(error, "node_def"):
            return type(known)(known.node_def, known.op, said, known.error_code)
        return type(error)(said)
    except TypeError:
        return error
