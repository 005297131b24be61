"""The band mask: the keys between two diagonals, counted from the starts of both sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limelight.errors import ArgumentError
from limelight.masks.block import Block, bounds
from limelight.masks.form import UNBOUNDED, Form
from limelight.masks.protocol import Mask, remembered


@dataclass(frozen=True)
class Band(Mask):
    """See `band`."""

    low: int
    high: int

    def tile(self, block: Block) -> Tensor:
        """Bool [t, s]."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        distance = block.column_index() - block.row_index().unsqueeze(-1)
        return (distance >= self.low) & (distance <= self.high)

    def rules_out(self, block: Block) -> bool:
        """The keys lie wholly before the first query's band or behind the last one's."""
        (first, last), (low, high) = bounds(block.rows), bounds(block.columns)
        return high < first + self.low or low > last + self.high

    def allows_all(self, block: Block) -> bool:
        """The keys lie inside the bands of the first and of the last query, so of all between."""
        (first, last), (low, high) = bounds(block.rows), bounds(block.columns)
        return low >= last + self.low and high <= first + self.high

    def reach(self, block: Block) -> tuple[int, int]:
        """From where the first query's band begins to where the last one's ends."""
        (first, last), (low, high) = bounds(block.rows), bounds(block.columns)
        return max(low, first + self.low), min(high, last + self.high)

    def check(self, block: Block) -> None:
        """Fits every call."""

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def form(self, whole: Block) -> Form:
        """The band itself."""
        return Form(low=self.low, high=self.high)


def band(low: int | None = None, high: int | None = None) -> Mask:
    """Keys in [i + low, i + high] for query i; without `low` from 0 on, without `high` to the last.

    Unlike `causal` and `window` it does not line up the ends: `band(high=n)` is causal attention of queries that stand
    n places behind the first key, whatever follows them, as in a cache with room for more.

    Errors: ArgumentError for a bound that is neither an integer nor None.
    """
    for name, one in (("low", low), ("high", high)):
        if one is not None and (isinstance(one, bool) or not isinstance(one, int)):
            raise ArgumentError(f"band({name}): {name} must be an integer, or None for no bound; it is {one!r}.")
    low = -UNBOUNDED if low is None else max(-UNBOUNDED, min(low, UNBOUNDED))
    high = UNBOUNDED if high is None else max(-UNBOUNDED, min(high, UNBOUNDED))
    return Band(low, high)
