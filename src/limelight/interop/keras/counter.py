"""The counter-based dropout of `limelight.backends.dropout` in `keras.ops`: the same seed drops the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limelight.backends.dropout import FIRST, SECOND
from limelight.interop.keras.operations import ops


@dataclass(frozen=True)
class Counter:
    """Random bits of rows and columns. low, high: the seed's halves, int32; row: bits int32 [B, H, T, 1]."""

    rate: float
    low: Any
    high: Any
    row: Any

    @classmethod
    def of(cls, seed: Any, rows: Any, rate: float) -> Counter:
        """For a matrix with rows (B, H, T) and a seed of two integers."""
        low = ops.cast(seed[0], "int32")
        high = ops.bitwise_and(ops.cast(seed[1], "int32"), 0x7FFFFFFF)
        batch, heads, queries = rows
        plane = ops.arange(batch, dtype="int32")[:, None] * heads + ops.arange(heads, dtype="int32")
        place = plane[..., None] * queries + ops.arange(queries, dtype="int32")
        return cls(rate, low, high, _fresh(place, low, high, 0)[..., None])

    def kept(self, start: Any, size: Any, dtype: Any) -> Any:
        """[B, H, T, size]: 1 / (1 - rate) where a weight of keys [start, start + size) is kept, 0 where dropped."""
        column = _fresh(-1 - (start + ops.arange(size, dtype="int32")), self.low, self.high, -1)
        bits = _mix(ops.bitwise_xor(self.row, column))
        threshold = min(round(self.rate * 2**32), 2**32 - 1) - 2**31
        return ops.cast(bits >= threshold, dtype) / (1.0 - self.rate)


def _fresh(counter: Any, low: Any, high: Any, above: int) -> Any:
    """32 bits for each counter; above: what its upper half would be."""
    bits = _mix(ops.bitwise_xor(counter, low))
    return _mix(ops.bitwise_xor(ops.bitwise_xor(bits, high), above) * FIRST)


def _mix(bits: Any) -> Any:
    bits = bits * FIRST
    bits = ops.bitwise_xor(bits, ops.bitwise_and(ops.right_shift(bits, 15), 0x1FFFF)) * SECOND
    return ops.bitwise_xor(bits, ops.bitwise_and(ops.right_shift(bits, 13), 0x7FFFF))
