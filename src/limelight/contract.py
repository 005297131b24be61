"""The rules that every call keeps, checked once in front of all backends.

Shape letters: B batch, H query heads, G key/value heads (G divides H), T queries, S keys, D width of query and key,
E width of value, N the leading axes folded into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from limelight.errors import ArgumentError

# Of `torch.jit.trace`; torch documents the name and does not declare it.
_is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]

float_dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
MOST_NUMBERS = 2**48
"""Of a tensor: more than any memory holds; repeated by `expand`, sizes could leave 64 bits."""
integer_dtypes = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower: bf16 and fp16 are storage types."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def exporting() -> bool:
    """Whether a graph is written down that has to hold for other numbers and lengths than those that pass through now.

    So it is under `torch.export`, `torch.onnx.export` and `torch.jit.trace`: nobody may look at a number then.
    """
    return torch.compiler.is_exporting() or _is_tracing()


def tracing() -> bool:
    """Whether what runs becomes a graph, compiled or exported: looking at a tensor's numbers would break or bend it."""
    return torch.compiler.is_compiling() or _is_tracing()


def require_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ArgumentError unless the value is one of the known names."""
    if value not in known:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, known))}; it is {value!r}.")


def require_count(name: str, value: object, *, least: int) -> None:
    """Raise ArgumentError unless the value is an integer of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an integer of at least {least}; it is {value!r}.")


def require_broadcast(name: str, tensor: Tensor, full: Sequence[int], letters: str = "[..., H, T, S]") -> None:
    """Raise ArgumentError unless the tensor broadcasts to the shape `full`."""
    shape = tensor.shape
    fits = len(shape) <= len(full)
    if fits and shape:
        fits = all(have in (1, want) for have, want in zip(shape, full[-len(shape) :], strict=True))
    if not fits:
        raise ArgumentError(
            f"{name}: its shape must broadcast to {letters} = {list(full)}; it is {list(shape)}. "
            f"Give it axes of size 1 where it is the same, for instance [B, 1, 1, S]."
        )


def check_inputs(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check query [..., H, T, D], key [..., G, S, D'], value [..., G, S, E] against each other; widths are the score's.

    Costs a few microseconds and never waits for a device. Returns the three; under autocast, where layers narrow some
    tensors and not others, in the widest of their dtypes.

    Errors: ArgumentError naming the argument, the rule, the value and the way out.
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        _explain_inputs({"query": query, "key": key, "value": value})
    if not query.layout is key.layout is value.layout is torch.strided or query.is_nested or key.is_nested:
        _explain_inputs({"query": query, "key": key, "value": value})
    if not torch.compiler.is_compiling() and (query.is_neg() or key.is_neg() or value.is_neg()):
        # Parts of a conjugate: kernels read memory, where the sign is another one.
        query, key, value = query.resolve_neg(), key.resolve_neg(), value.resolve_neg()
    if not query.dtype is key.dtype is value.dtype and torch.is_autocast_enabled(query.device.type):
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.ndim < 3 or key.ndim < 3 or value.ndim < 3:
        _explain_inputs({"query": query, "key": key, "value": value})
    asked, there = query.shape, key.shape
    heads, groups = asked[-3], there[-3]
    dtype, device = query.dtype, query.device
    if not (
        there[:-1] == value.shape[:-1]
        and asked[:-3] == there[:-3]
        and (heads == groups or (groups and heads % groups == 0))
        and dtype is key.dtype is value.dtype
        and dtype in float_dtypes
        and device == key.device
        and device == value.device
        and max(query.numel(), key.numel(), value.numel()) <= MOST_NUMBERS
    ):
        _explain_inputs({"query": query, "key": key, "value": value})
    return query, key, value


def _explain_inputs(inputs: dict[str, Tensor]) -> NoReturn:
    for name, tensor in inputs.items():
        letters = "H, T, D" if name == "query" else "G, S, D" if name == "key" else "G, S, E"
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name} must be a torch.Tensor [..., {letters}]; it is {type(tensor).__name__}.")
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout)
            raise ArgumentError(
                f"{name} must be an ordinary tensor, of layout torch.strided; it is {kind}. Use {name}.to_dense(), or "
                f"for sequences of several lengths a padded tensor and mask=limelight.lengths(counts)."
            )
        if tensor.ndim < 3:
            raise ArgumentError(
                f"{name} must have a head axis: [..., {letters}]; its shape is {list(tensor.shape)}. "
                f"With one head use {name}.unsqueeze(-3)."
            )
        if tensor.dtype not in float_dtypes:
            raise ArgumentError(
                f"{name} must be float16, bfloat16, float32 or float64; it is {tensor.dtype}. Use {name}.float()."
            )
        if tensor.numel() > MOST_NUMBERS:
            raise ArgumentError(
                f"{name} may have 2^48 numbers at most, repetitions made by expand included; its shape is "
                f"{list(tensor.shape)}."
            )
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    for name, other in (("key", key), ("value", value)):
        if other.dtype is not query.dtype:
            raise ArgumentError(
                f"{name} must have the dtype of query, {query.dtype}; it is {other.dtype}. Use {name}.to(query.dtype)."
            )
        if other.device != query.device:
            raise ArgumentError(
                f"{name} must be on the device of query, {query.device}; it is on {other.device}. "
                f"Use {name}.to(query.device)."
            )
        if other.shape[:-3] != query.shape[:-3]:
            raise ArgumentError(
                f"{name} must have the leading axes of query, {list(query.shape[:-3])}; they are "
                f"{list(other.shape[:-3])}. Use {name}.expand(...)."
            )
    if key.shape[-3] != value.shape[-3]:
        raise ArgumentError(
            f"key and value must have the same number of heads G; key has {key.shape[-3]} and value {value.shape[-3]}."
        )
    if key.shape[-2] != value.shape[-2]:
        raise ArgumentError(
            f"key and value must have the same number of positions S; key has {key.shape[-2]} and value "
            f"{value.shape[-2]}."
        )
    raise ArgumentError(
        f"the heads of key and value, G, must divide the heads of query, H; G is {key.shape[-3]} and H is "
        f"{query.shape[-3]}. Repeat the key heads, or project to a number of heads that divides H."
    )


def check_dropout(dropout: float) -> None:
    """Raise ArgumentError unless dropout is a number in [0, 1)."""
    if not isinstance(dropout, Real) or not 0.0 <= dropout < 1.0:
        raise ArgumentError(
            f"dropout must be in [0, 1), the probability with which a weight is dropped; it is {dropout!r}. "
            f"Use 0.0 for none."
        )


def check_bias(bias: Tensor, query: Tensor, full: Sequence[int]) -> None:
    """Raise ArgumentError unless bias is a float tensor on the query's device that broadcasts to [..., H, T, S]."""
    if not isinstance(bias, Tensor) or bias.dtype not in float_dtypes:
        kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise ArgumentError(
            f"bias must be a float tensor that is added to the scores; it is {kind}. "
            f"For True and False use mask=limelight.dense(...), for positions one of limelight.biases."
        )
    if bias.device != query.device:
        raise ArgumentError(
            f"bias must be on the device of query, {query.device}; it is on {bias.device}. Use bias.to(query.device)."
        )
    require_broadcast("bias", bias, full)


def check_sink(sink: Tensor, query: Tensor) -> None:
    """Raise ArgumentError unless sink is a float tensor on the query's device that broadcasts to [..., H]."""
    if not isinstance(sink, Tensor) or sink.dtype not in float_dtypes:
        kind = sink.dtype if isinstance(sink, Tensor) else type(sink).__name__
        raise ArgumentError(
            f"sink must be a float tensor with one logit per head, [H]; it is {kind}. "
            f"For softmax plus one use torch.zeros(H)."
        )
    if sink.device != query.device:
        raise ArgumentError(
            f"sink must be on the device of query, {query.device}; it is on {sink.device}. Use sink.to(query.device)."
        )
    full = query.shape[:-2]
    if len(sink.shape) > len(full) or any(
        have not in (1, want) for have, want in zip(reversed(sink.shape), reversed(full), strict=False)
    ):
        raise ArgumentError(
            f"sink: its shape must broadcast to [..., H] = {list(full)}; it is {list(sink.shape)}. "
            f"Give one number per head, [H]."
        )
