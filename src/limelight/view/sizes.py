"""Bytes: how many an answer would take, whether that is allowed, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from limelight.errors import DenseSizeError

DENSE_LIMIT = 1 << 30
"""Bytes of weights that `dense` and `view[...]` hand out unless told otherwise: 1 GiB."""


def dense_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor of that shape."""
    return math.prod(shape) * dtype.itemsize


def guard(shape: Sequence[int], dtype: torch.dtype, limit: int | None) -> None:
    """Raise DenseSizeError, which names the bytes, if weights of that shape take more than `limit`."""
    size = dense_bytes(shape, dtype)
    if limit is not None and size > limit:
        raise DenseSizeError(
            f"The weights {list(shape)} would take {size:,} bytes ({in_units(size)}); the limit is {limit:,}. "
            f"Look at a block, view[..., rows, columns], at view.map(rows, cols), or at view.top(k), view.entropy(), "
            f"view.received(); or allow it: view.dense(limit={size}), limit=None for no limit."
        )


def in_units(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
