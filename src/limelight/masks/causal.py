"""The causal mask: no query sees a key that lies in its future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from limelight.contract import require_choice
from limelight.masks.block import Block, bounds
from limelight.masks.form import Form
from limelight.masks.protocol import Mask, remembered

Align = Literal["end", "start"]


def offset(align: Align, block: Block) -> int:
    """How far query i lies along the keys: S - T + i when aligned at the ends, i when aligned at the starts."""
    return block.keys - block.queries if align == "end" else 0


@dataclass(frozen=True)
class Causal(Mask):
    """See `causal`."""

    align: Align = "end"

    def tile(self, block: Block) -> Tensor:
        """Bool [t, s]."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        return block.column_index() <= (block.row_index() + offset(self.align, block)).unsqueeze(-1)

    def rules_out(self, block: Block) -> bool:
        """The first key lies behind the last query."""
        return bounds(block.columns)[0] > bounds(block.rows)[1] + offset(self.align, block)

    def allows_all(self, block: Block) -> bool:
        """The last key lies at or before the first query."""
        return bounds(block.columns)[1] <= bounds(block.rows)[0] + offset(self.align, block)

    def reach(self, block: Block) -> tuple[int, int]:
        """The last query sees [0, S - T + i], and no other sees more."""
        first, last = bounds(block.columns)
        return first, min(last, bounds(block.rows)[1] + offset(self.align, block))

    def check(self, block: Block) -> None:
        """Fits every call."""

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def form(self, whole: Block) -> Form:
        """A band without a lower end."""
        return Form(high=offset(self.align, whole))


_KNOWN = {align: Causal(align) for align in ("end", "start")}  # they remember their last tile


def causal(align: Align = "end") -> Mask:
    """Keys in [0, S - T + i] for query i (`align="end"`: the last query sees all keys), or in [0, i] (`align="start"`).

    With T > S and `align="end"` the first T - S queries may attend to nothing: output 0.

    Errors: ArgumentError for another `align`.
    """
    require_choice("align", align, ("end", "start"))
    return _KNOWN[align]
