"""The attention of a Keras layer block by block in `keras.ops`: for XLA, GPUs and exported models.

All queries meet one block of keys at a time, with the running maximum m, sum l and output o of each row (Milakov and
Gimelshein 2018, arXiv 1805.02867); the backward pass computes the blocks again from lse = m + log l. A block has at
most `_BLOCK` numbers, and the last one reaches back over the one before it: what was seen there is masked. Sums are in
float32 or wider. What is left of a query or a key that a mask of its own hides is 0, be it NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras

from limelight.interop.keras.counter import Counter
from limelight.interop.keras.operations import loop, ops
from limelight.interop.keras.problem import DIFFERENTIABLE, Settings, Tensors

_BLOCK = 1 << 22
"""Numbers of the largest tensor of a block."""


def attention(settings: Settings, tensors: Tensors) -> Any:
    """Output [B, T, H, E]."""
    others = tuple(tensors[DIFFERENTIABLE:])
    given = tuple(one is not None for one in tensors[:DIFFERENTIABLE])

    def problem(inputs: Sequence[Any]) -> _Problem:
        have = iter(inputs)
        return _Problem.of(settings, Tensors(*(next(have) if there else None for there in given), *others))

    @ops.custom_gradient
    def run(*inputs: Any) -> Any:
        with _unrecorded():
            output, lse = problem(inputs).forward()
            result = ops.cast(ops.transpose(output, (0, 2, 1, 3)), inputs[2].dtype)

        def gradient(*to_output: Any, upstream: Any = None) -> Any:
            slope = to_output[0] if upstream is None else upstream
            return _once(backward, slope, result, lse, *inputs)

        def backward(slope: Any, result: Any, lse: Any, *inputs: Any) -> tuple[Any, ...]:
            # What was wide and transposed is made again: only inputs, result and lse are kept for this.
            slope, output = (ops.cast(ops.transpose(one, (0, 2, 1, 3)), lse.dtype) for one in (slope, result))
            grads = problem(inputs).backward(output, lse, slope)
            return tuple(ops.cast(grad, one.dtype) for grad, one in zip(grads, inputs, strict=True))

        return result, gradient

    return run(*(one for one in tensors[:DIFFERENTIABLE] if one is not None))


def _unrecorded() -> AbstractContextManager[Any]:
    """TensorFlow outside of graphs would keep every block for gradients that we compute ourselves."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    from limelight.interop.keras import on_tensorflow

    return on_tensorflow.unrecorded()


def _once(function: Callable[..., Any], *tensors: Any) -> Any:
    """`function(*tensors)`, gradients: on TensorFlow unrecorded too, and none are to be had of them."""
    if keras.backend.backend() != "tensorflow":
        return function(*tensors)
    from limelight.interop.keras import on_tensorflow

    return on_tensorflow.once(function, tensors)


@dataclass(frozen=True)
class _Problem:
    """One call in [B, H, T, .], wide, its heads of keys repeated to those of the queries."""

    settings: Settings
    query: Any
    key: Any
    value: Any
    vector: Any
    query_mask: Any
    key_mask: Any
    pairs: Any
    counter: Counter | None
    groups: int

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> _Problem:
        dtype = "float64" if keras.backend.standardize_dtype(tensors.query.dtype) == "float64" else "float32"
        query, key, value = (ops.cast(ops.transpose(one, (0, 2, 1, 3)), dtype) for one in tensors[:3])
        query_mask, key_mask = tensors.query_mask, tensors.key_mask
        if query_mask is not None:
            query_mask = query_mask[:, None, :, None]
            query = ops.where(query_mask, query, 0)
        if key_mask is not None:
            key_mask = key_mask[:, None, None, :]
            there = ops.transpose(key_mask, (0, 1, 3, 2))
            key, value = ops.where(there, key, 0), ops.where(there, value, 0)
        heads, groups = tensors.query.shape[2], tensors.key.shape[2]
        if groups != heads:
            key, value = (ops.repeat(one, heads // groups, axis=1) for one in (key, value))
        vector = None if tensors.vector is None else ops.cast(tensors.vector, dtype)
        if vector is None:
            query = query * settings.scale
        rows = ops.shape(query)[:3]
        counter = None if not settings.dropout else Counter.of(tensors.seed, rows, settings.dropout)
        return cls(settings, query, key, value, vector, query_mask, key_mask, tensors.pairs, counter, groups)

    @property
    def size(self) -> Any:
        """Keys in a block: a number where the shapes are numbers, else a tensor."""
        batch, heads, queries, width = ops.shape(self.query)
        each = heads * (1 if self.vector is None else width)
        keys = ops.shape(self.key)[2]
        if isinstance(batch, int) and isinstance(queries, int) and isinstance(keys, int):
            return min(keys, max(1, _BLOCK // max(1, batch * queries * each)))
        rows = ops.maximum(ops.cast(batch * queries * each, "int32"), 1)
        return ops.minimum(ops.cast(keys, "int32"), ops.maximum(_BLOCK // rows, 1))

    def forward(self) -> tuple[Any, Any]:
        """(output [B, H, T, E], lse [B, H, T, 1]); 0 and +inf for a row that may attend to nothing."""
        size, keys = self.size, ops.shape(self.key)[2]
        query = self.query
        none = ops.zeros_like(query[..., :1])

        def step(block: Any, peak: Any, total: Any, output: Any) -> Any:
            start = _start(block, size, keys)
            scores, _ = self._scores(start, block * size, size)
            higher = ops.maximum(peak, ops.max(scores, axis=-1, keepdims=True))
            base = ops.where(higher == -math.inf, 0.0, higher)
            weights = ops.exp(scores - base)
            shrink = ops.exp(peak - base)
            total = total * shrink + ops.sum(weights, axis=-1, keepdims=True)
            kept = weights if self.counter is None else weights * self.counter.kept(start, size, weights.dtype)
            output = output * shrink + ops.matmul(kept, _cut(self.value, start, size, 2))
            return block + 1, higher, total, output

        zeros = ops.matmul(none, ops.zeros_like(self.value[:, :, :1]))
        _, peak, total, output = loop(lambda block, *_: block * size < keys, step, (0, none - math.inf, none, zeros))
        empty = total == 0
        total = ops.where(empty, 1.0, total)
        return output / total, ops.where(empty, math.inf, peak + ops.log(total))

    def backward(self, output: Any, lse: Any, slope: Any) -> tuple[Any, ...]:
        """Gradients in Keras' layout to query, key, value and, where there is one, vector."""
        size, keys = self.size, ops.shape(self.key)[2]
        delta = ops.sum(slope * output, axis=-1, keepdims=True)

        def step(block: Any, to_query: Any, to_key: Any, to_value: Any, to_vector: Any) -> Any:
            start = _start(block, size, keys)
            scores, rise = self._scores(start, block * size, size)
            weights = ops.exp(scores - lse)
            to_weights = ops.matmul(slope, ops.swapaxes(_cut(self.value, start, size, 2), -1, -2))
            dropped = weights
            if self.counter is not None:
                kept = self.counter.kept(start, size, weights.dtype)
                dropped, to_weights = weights * kept, to_weights * kept
            to_scores = weights * (to_weights - delta)
            to_value = _add(to_value, start, size, ops.matmul(ops.swapaxes(dropped, -1, -2), slope))
            if rise is None:
                to_query = to_query + ops.matmul(to_scores, _cut(self.key, start, size, 2))
                mine = ops.matmul(ops.swapaxes(to_scores, -1, -2), self.query)
            else:
                to_vector = to_vector + ops.sum(to_scores[..., None] * rise, axis=(0, 1, 2, 3))
                inner = to_scores[..., None] * (self.vector * (1.0 - rise * rise))
                to_query, mine = to_query + ops.sum(inner, axis=3), ops.sum(inner, axis=2)
            return block + 1, to_query, _add(to_key, start, size, mine), to_value, to_vector

        zeros = tuple(ops.zeros_like(one) for one in (self.query, self.key, self.value))
        to_vector = ops.zeros_like(self.query[0, 0, 0] if self.vector is None else self.vector)
        found = loop(lambda block, *_: block * size < keys, step, (0, *zeros, to_vector))
        return self._given(*found[1:])

    def _given(self, to_query: Any, to_key: Any, to_value: Any, to_vector: Any) -> tuple[Any, ...]:
        """The gradients to what was given, which was scaled, masked, repeated and transposed."""
        if self.vector is None:
            to_query = to_query * self.settings.scale
        if self.query.shape[1] != self.groups:
            to_key, to_value = self._grouped(to_key), self._grouped(to_value)
        grads = tuple(ops.transpose(one, (0, 2, 1, 3)) for one in (to_query, to_key, to_value))
        return grads if self.vector is None else (*grads, to_vector)

    def _grouped(self, gradient: Any) -> Any:
        batch, heads, keys, width = ops.shape(gradient)
        return ops.sum(ops.reshape(gradient, (batch, self.groups, heads // self.groups, keys, width)), axis=2)

    def _scores(self, start: Any, fresh: Any, size: Any) -> tuple[Any, Any]:
        """Scores of keys [start, start + size), -inf where forbidden or before `fresh`; of additive ones the tanh."""
        key = _cut(self.key, start, size, 2)
        if self.vector is None:
            rise, scores = None, ops.matmul(self.query, ops.swapaxes(key, -1, -2))
        else:
            rise = ops.tanh(self.query[:, :, :, None, :] + key[:, :, None, :, :])
            scores = ops.squeeze(ops.matmul(rise, self.vector[:, None]), -1)
        column = start + ops.arange(size, dtype="int32")
        allowed = column >= fresh
        row = ops.arange(ops.shape(self.query)[2], dtype="int32")[:, None]
        if self.settings.causal:
            allowed = ops.logical_and(allowed, column <= row)
        if self.settings.window is not None:
            allowed = ops.logical_and(allowed, ops.abs(row - column) < self.settings.window)
        if self.query_mask is not None:
            allowed = ops.logical_and(allowed, self.query_mask)
        for mask in (self.key_mask, self.pairs):
            if mask is not None:
                whole = mask.shape[-1] == 1
                allowed = ops.logical_and(allowed, mask if whole else _cut(mask, start, size, 3))
        return ops.where(allowed, scores, -math.inf), rise


def _start(block: Any, size: Any, keys: Any) -> Any:
    """Where a block begins: the last one ends with the keys."""
    return ops.minimum(block * size, keys - size)


def _cut(tensor: Any, start: Any, size: Any, axis: int) -> Any:
    """Positions [start, start + size) of an axis of a tensor of four."""
    shape = list(ops.shape(tensor))
    shape[axis] = size
    begin: list[Any] = [0, 0, 0, 0]
    begin[axis] = start
    return ops.slice(tensor, begin, shape)


def _add(tensor: Any, start: Any, size: Any, more: Any) -> Any:
    """The tensor with `more` added to keys [start, start + size)."""
    return ops.slice_update(tensor, (0, 0, start, 0), _cut(tensor, start, size, 2) + more)
