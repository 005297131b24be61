"""A mask that is given by its form: what compiled code has left of a mask."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limelight.masks.block import Block, pick, pick_block
from limelight.masks.form import Form
from limelight.masks.protocol import Mask


@dataclass(frozen=True, eq=False)
class Described(Mask):
    """The mask that a form describes, for a call whose leading axes are folded into one."""

    of: Form

    def tile(self, block: Block) -> Tensor:
        """Bool, [n or 1, h or 1, t, s]."""
        rows, columns = block.row_index().unsqueeze(-1), block.column_index()
        allowed = ((columns >= rows + self.of.low) & (columns <= rows + self.of.high))[None, None]
        if self.of.lengths is not None:
            allowed = allowed & (columns < pick(self.of.lengths, 0, block.batch).reshape(-1, 1, 1, 1))
        if self.of.first is not None and self.of.last is not None:
            first, last = (
                pick(pick(ends, 0, block.batch), 1, block.rows)[:, None, :, None]
                for ends in (self.of.first, self.of.last)
            )
            allowed = allowed & (columns >= first) & (columns < last)
        return allowed if self.of.dense is None else allowed & pick_block(self.of.dense, block)

    def rules_out(self, block: Block) -> bool:
        """Not known without looking at the tensors."""
        return False

    def allows_all(self, block: Block) -> bool:
        """Not known without looking at the tensors."""
        return False

    def check(self, block: Block) -> None:
        """It was made for this call."""

    def per_key(self) -> bool:
        """Not looked at."""
        return False

    def form(self, whole: Block) -> Form:
        """As given."""
        return self.of
