"""Dense additive scores for whoever asks for them: B x T x S numbers, and not times the width as in Keras.

No `ops.matmul`, which makes float32 of float64 on torch.
"""

from __future__ import annotations

from typing import Any

from limelight.interop.keras.operations import loop, ops

_BLOCK = 1 << 22
"""Numbers of the largest tensor of a block."""


def scores(query: Any, key: Any, vector: Any) -> Any:
    """Σ vector · tanh(q_i + k_j), [B, T, S], of query [B, T, D] and key [B, S, D], some queries at a time."""

    @ops.custom_gradient
    def run(query: Any, key: Any, vector: Any) -> Any:
        queries, size = ops.shape(query)[1], _rows(query, key)

        def more(place: Any, *_: Any) -> Any:
            return place * size < queries

        def forward(place: Any, found: Any) -> Any:
            start = ops.minimum(place * size, queries - size)
            block = ops.sum(_rise(query, key, start, size) * vector, axis=-1)
            return place + 1, ops.slice_update(found, (0, start, 0), block)

        empty = ops.zeros_like(query[..., :1] * ops.swapaxes(key[..., :1], -1, -2))
        _, found = loop(more, forward, (0, empty))

        def gradient(*to_scores: Any, upstream: Any = None) -> Any:
            slope = to_scores[0] if upstream is None else upstream

            def backward(place: Any, to_query: Any, to_key: Any, to_vector: Any) -> Any:
                start = ops.minimum(place * size, queries - size)
                rise, part = _rise(query, key, start, size), _cut(slope, start, size)
                # The last block reaches back over rows that the one before it has done.
                fresh = start + ops.arange(size, dtype="int32") >= place * size
                part = ops.where(fresh[:, None], part, 0)[..., None]
                inner = part * (vector * (1.0 - rise * rise))
                mine = _cut(to_query, start, size) + ops.sum(inner, axis=2)
                to_query = ops.slice_update(to_query, (0, start, 0), mine)
                return place + 1, to_query, to_key + ops.sum(inner, axis=1), to_vector + ops.sum(part * rise, (0, 1, 2))

            zeros = tuple(ops.zeros_like(one) for one in (query, key, vector))
            return tuple(loop(more, backward, (0, *zeros))[1:])

        return found, gradient

    return run(query, key, vector)


def _rows(query: Any, key: Any) -> Any:
    """Queries in a block: a number where the shapes are numbers, else a tensor."""
    batch, queries, width = ops.shape(query)
    each = batch * ops.shape(key)[1] * width
    if isinstance(each, int) and isinstance(queries, int):
        return max(1, min(queries, _BLOCK // max(1, each)))
    return ops.minimum(ops.cast(queries, "int32"), ops.maximum(_BLOCK // ops.maximum(ops.cast(each, "int32"), 1), 1))


def _cut(tensor: Any, start: Any, size: Any) -> Any:
    batch, _, width = ops.shape(tensor)
    return ops.slice(tensor, (0, start, 0), (batch, size, width))


def _rise(query: Any, key: Any, start: Any, size: Any) -> Any:
    return ops.tanh(_cut(query, start, size)[:, :, None] + key[:, None])
