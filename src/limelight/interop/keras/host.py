"""The attention of NumPy arrays by the CPU kernels, forward and backward apart: what TensorFlow and JAX call back.

Nothing is kept between the two: the backward pass takes what the forward pass returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from limelight.arrays import shared
from limelight.backends import kernels
from limelight.backends.protocol import OWN_TENSORS, Call, Result
from limelight.backends.select import choose
from limelight.contract import accumulation_dtype, check_dropout, check_inputs
from limelight.interop.keras.masks import mask_of
from limelight.interop.keras.problem import DIFFERENTIABLE, Settings, Tensors
from limelight.scores import Score, additive, dot

_STORED = {np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16)}
"""dtypes that NumPy has only by another package -> how torch is given the same bits."""


def forward(settings: Settings, present: Sequence[bool], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Output [B, T, H, E], and for the backward pass lse [B, H, T] and rows [B, H, T, 2].

    present: which of `Tensors` the arrays are, in their order.
    """
    with torch.no_grad():
        call = _call(settings, _tensors(present, arrays))
        result, rows = _run(call)
    if rows is None:
        rows = _unknown_rows(call)
    assert result.lse is not None
    return _array(result.output.transpose(1, 2)), _array(result.lse), _array(rows)


def backward(
    settings: Settings,
    present: Sequence[bool],
    output: np.ndarray,
    lse: np.ndarray,
    rows: np.ndarray,
    to_output: np.ndarray,
    *arrays: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Gradients to query, key, value and, where there is one, vector."""
    with torch.no_grad():
        tensors = _tensors(present, arrays)
        call = _call(settings, tensors)
        slope, kept = _tensor(to_output).transpose(1, 2), _tensor(output).transpose(1, 2)
        found = None
        known = _tensor(rows)
        if not known.isnan().all():
            wanted = (True,) * len(call.tensors())
            found = kernels.backward(call, kernels.Kept(known, kept.float()), _tensor(lse), slope, None, wanted)
        if found is None:
            name = "streaming" if _kernel(call) else "auto"
            found = kernels.careful_backward(call, choose(call, name).run, list(call.tensors()), slope, None)
    grads = [one.transpose(1, 2) for one in found[:3] if one is not None]
    if tensors.vector is not None:
        grads.extend(one for one in found[OWN_TENSORS:] if one is not None)
    return tuple(_array(one) for one in grads)


def shapes_of(query: Sequence[Any], value: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
    """The shapes of what `forward` returns, from those of query and value."""
    batch, queries, heads, _ = query
    return (batch, queries, heads, value[-1]), (batch, heads, queries), (batch, heads, queries, 2)


def score_of(settings: Settings, vector: Tensor | None) -> Score:
    """The score in our words."""
    return dot(settings.scale) if vector is None else additive(vector)


def seed_of(seed: Any) -> int:
    """One integer in [0, 2^63) of the two that Keras' generators give."""
    low, high = (int(one) for one in seed)
    return (low & 0xFFFFFFFF) | (high & 0x7FFFFFFF) << 32


def tensor_of(array: Any) -> Tensor:
    """An array, or what NumPy takes for one, as a tensor that shares its memory, whose dtype may be bfloat16."""
    return _tensor(np.asarray(array))


def _call(settings: Settings, tensors: Tensors) -> Call:
    query, key, value = (one.transpose(1, 2) for one in tensors[:3])
    query, key, value = check_inputs(query, key, value)
    score = score_of(settings, tensors.vector)
    score.check(query, key)
    check_dropout(settings.dropout)
    mask = mask_of(settings, tensors)
    seed = 0 if tensors.seed is None else seed_of(tensors.seed)
    call = Call(query, key, value, score, mask, None, settings.dropout, seed, (query.shape[0],), True)
    if mask is not None:
        mask.check(call.whole())
    return call


def _kernel(call: Call) -> bool:
    return choose(call, "auto").name == "native"


def _run(call: Call) -> tuple[Result, Tensor | None]:
    """The result, and what the kernels keep of each row; None where they could not run or met NaN or inf."""
    if not _kernel(call):
        return choose(call, "auto").run(call), None
    done = kernels.forward(call, True)
    if done is None:
        return choose(call, "streaming").run(call), None
    result, kept = done
    return result, None if kept is None else kept.rows


def _unknown_rows(call: Call) -> Tensor:
    shape = (*call.query.shape[:3], 2)
    return torch.full(shape, torch.nan, dtype=accumulation_dtype(call.query.dtype))


def _tensors(present: Sequence[bool], arrays: Sequence[np.ndarray]) -> Tensors:
    have = iter(arrays)
    found = [_tensor(next(have)) if there else None for there in present]
    return Tensors(*found[: DIFFERENTIABLE - 1], *found[DIFFERENTIABLE - 1 :])


def _tensor(array: np.ndarray) -> Tensor:
    stored = _STORED.get(array.dtype)
    if stored is not None:
        array = array.view(stored[0])
    tensor = shared(array)
    return tensor if stored is None else tensor.view(stored[1])


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
