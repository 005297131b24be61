"""How a call is cut into blocks whose memory is bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from limelight.backends.protocol import Call
from limelight.masks import Block

BUDGET = 1 << 21
"""Numbers that a block may hold at once, 8 MiB in float32: measured best, or level with the best, from 2^20 to 2^22."""


_FEWEST_ROWS = 16
"""With fewer rows at a time the products read the keys more often than it pays."""


def fits(call: Call) -> bool:
    """Whether the whole call is to be one block, kept from forward to backward: up to twice BUDGET.

    Cut in two it would be computed twice, which took 1.7 times as long for additive scores of that size.
    """
    return 0 < call.pairs() * call.pair_cost() <= 2 * BUDGET


def block_sizes(batch: int, heads: int, queries: int, keys: int, cost: int) -> tuple[int, int, int]:
    """Positions (n, t, s) along N, T and S so that n H t s cost stays within BUDGET, as far as 1 each allows."""
    room = max(1, BUDGET // max(1, heads * cost))
    if queries * keys <= room:
        return max(1, min(batch, room // max(1, queries * keys))), queries, keys
    side = max(1, math.isqrt(room))
    t = min(queries, side)
    s = min(keys, max(1, room // t))
    t = min(queries, max(1, room // s))
    return max(1, min(batch, room // (t * s))), t, s


def whole_row_sizes(batch: int, heads: int, queries: int, keys: int, cost: int) -> tuple[int, int, int] | None:
    """As `block_sizes`, so few rows that n H t S stays within BUDGET too; None where that would be few and slow."""
    room = BUDGET // max(1, heads)
    t = min(queries, room // max(1, keys))
    if t < min(queries, _FEWEST_ROWS):
        return None
    n = max(1, min(batch, room // max(1, t * keys)))
    # An eighth of the budget lies in a cache while the row is gone through again and again.
    s = min(room // max(1, n * t * cost), room // 8 // max(1, n * t))
    return n, t, max(1, min(keys, s))


def pieces(size: int, step: int) -> Iterator[slice]:
    """The intervals [0, step), [step, 2 step), ... up to size."""
    for start in range(0, size, max(1, step)):
        yield slice(start, min(start + step, size))


class Plan:
    """The blocks of a call: batch pieces, row pieces in each, and for those the column blocks not ruled out."""

    __slots__ = ("call", "columns", "n", "rows", "whole")

    def __init__(self, call: Call, *, whole_rows: bool = False) -> None:
        """With `whole_rows` all blocks of a piece of rows are within BUDGET together, if `whole` says so."""
        n, heads, queries, _ = call.query.shape
        self.call = call
        sizes = n, heads, queries, call.key.shape[2], call.pair_cost()
        whole = whole_row_sizes(*sizes) if whole_rows else None
        self.whole = whole is not None
        self.n, self.rows, self.columns = whole or block_sizes(*sizes)

    def row_blocks(self) -> Iterator[tuple[slice, slice]]:
        """(batch piece, row piece), covering N and T."""
        for batch in pieces(self.call.query.shape[0], self.n):
            for rows in pieces(self.call.query.shape[2], self.rows):
                yield batch, rows

    def blocks(self, batch: slice, rows: slice) -> Iterator[tuple[Block, bool]]:
        """The blocks of these rows that the mask does not rule out, and whether the mask has to be asked in them."""
        mask, keys, step = self.call.mask, self.call.key.shape[2], max(1, self.columns)
        first, last = (0, keys - 1) if mask is None else mask.reach(self.call.block(batch, rows, slice(0, keys)))
        for start in range(first // step * step, last + 1, step):
            columns = slice(start, min(start + step, keys))
            block = self.call.block(batch, rows, columns)
            if mask is None:
                yield block, False
            elif not mask.rules_out(block):
                yield block, not mask.allows_all(block)
