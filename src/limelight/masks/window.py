"""The window mask: each query sees the keys around its own place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limelight.contract import require_choice, require_count
from limelight.masks.block import Block, bounds
from limelight.masks.causal import Align, offset
from limelight.masks.form import UNBOUNDED, Form
from limelight.masks.protocol import Mask, remembered


@dataclass(frozen=True)
class Window(Mask):
    """See `window`."""

    before: int
    after: int
    align: Align = "end"

    def tile(self, block: Block) -> Tensor:
        """Bool [t, s]."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        place = (block.row_index() + offset(self.align, block)).unsqueeze(-1)
        distance = block.column_index() - place
        return (distance >= -self.before) & (distance <= self.after)

    def rules_out(self, block: Block) -> bool:
        """The keys lie wholly before the first query's window or behind the last one's."""
        first, last = bounds(block.rows)
        low, high = bounds(block.columns)
        move = offset(self.align, block)
        return high < first + move - self.before or low > last + move + self.after

    def allows_all(self, block: Block) -> bool:
        """The keys lie inside the window of the first and of the last query, so of all between."""
        first, last = bounds(block.rows)
        low, high = bounds(block.columns)
        move = offset(self.align, block)
        return low >= last + move - self.before and high <= first + move + self.after

    def reach(self, block: Block) -> tuple[int, int]:
        """From where the first query's window begins to where the last one's ends."""
        (first, last), (low, high) = bounds(block.rows), bounds(block.columns)
        move = offset(self.align, block)
        return max(low, first + move - self.before), min(high, last + move + self.after)

    def check(self, block: Block) -> None:
        """Fits every call."""

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def form(self, whole: Block) -> Form:
        """A band."""
        move = offset(self.align, whole)
        return Form(move - self.before, move + self.after)


def window(before: int, after: int, *, align: Align = "end") -> Mask:
    """Keys in [p - before, p + after], where p = S - T + i is the place of query i (p = i with `align="start"`).

    `window(w - 1, 0)` is the causal window of w keys. Local attention: Luong, Pham, Manning 2015 (arXiv 1508.04025).

    Errors: ArgumentError if `before` or `after` is not an integer of at least 0, or for another `align`.
    """
    require_count("before", before, least=0)
    require_count("after", after, least=0)
    require_choice("align", align, ("end", "start"))
    return Window(min(before, UNBOUNDED), min(after, UNBOUNDED), align)
