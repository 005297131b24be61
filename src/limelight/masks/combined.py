"""Masks made of masks: both allow, either allows, forbids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from limelight.contract import exporting
from limelight.masks.block import Block
from limelight.masks.form import Form
from limelight.masks.protocol import Mask


@dataclass(frozen=True)
class All(Mask):
    """`first & second`: allowed where both allow."""

    first: Mask
    second: Mask

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """Both parts with other tensors."""
        return All(self.first.mapped(change), self.second.mapped(change))

    def tile(self, block: Block) -> Tensor:
        """Bool; a part that allows the whole block is not built."""
        # While exported, a length is a name, and what is asked of it would be fixed in the graph.
        if not exporting():
            if self.first.allows_all(block):
                return self.second.tile(block)
            if self.second.allows_all(block):
                return self.first.tile(block)
        return self.first.tile(block) & self.second.tile(block)

    def rules_out(self, block: Block) -> bool:
        """Either part rules the block out."""
        return self.first.rules_out(block) or self.second.rules_out(block)

    def allows_all(self, block: Block) -> bool:
        """Both parts allow the whole block."""
        return self.first.allows_all(block) and self.second.allows_all(block)

    def reach(self, block: Block) -> tuple[int, int]:
        """What both parts reach."""
        (first, last), (low, high) = self.first.reach(block), self.second.reach(block)
        return max(first, low), min(last, high)

    def check(self, block: Block) -> None:
        """Both parts fit."""
        self.first.check(block)
        self.second.check(block)

    def per_key(self) -> bool:
        """Both parts are the same for every query."""
        return self.first.per_key() and self.second.per_key()

    def form(self, whole: Block) -> Form | None:
        """What both forms allow."""
        first = self.first.form(whole)
        second = None if first is None else self.second.form(whole)
        return None if first is None or second is None else first.meet(second)


@dataclass(frozen=True)
class Any(Mask):
    """`first | second`: allowed where one of them allows, or both."""

    first: Mask
    second: Mask

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """Both parts with other tensors."""
        return Any(self.first.mapped(change), self.second.mapped(change))

    def tile(self, block: Block) -> Tensor:
        """Bool; a part that rules the whole block out is not built."""
        if not exporting():
            if self.first.rules_out(block):
                return self.second.tile(block)
            if self.second.rules_out(block):
                return self.first.tile(block)
        return self.first.tile(block) | self.second.tile(block)

    def rules_out(self, block: Block) -> bool:
        """Both parts rule the block out."""
        return self.first.rules_out(block) and self.second.rules_out(block)

    def allows_all(self, block: Block) -> bool:
        """Either part allows the whole block."""
        return self.first.allows_all(block) or self.second.allows_all(block)

    def reach(self, block: Block) -> tuple[int, int]:
        """What either part reaches, and what lies between."""
        (first, last), (low, high) = self.first.reach(block), self.second.reach(block)
        return min(first, low), max(last, high)

    def check(self, block: Block) -> None:
        """Both parts fit."""
        self.first.check(block)
        self.second.check(block)

    def per_key(self) -> bool:
        """Both parts are the same for every query."""
        return self.first.per_key() and self.second.per_key()


@dataclass(frozen=True)
class Not(Mask):
    """`~inner`: allowed where the inner mask forbids."""

    inner: Mask

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """The inner mask with other tensors."""
        return Not(self.inner.mapped(change))

    def tile(self, block: Block) -> Tensor:
        """Bool."""
        return ~self.inner.tile(block)

    def rules_out(self, block: Block) -> bool:
        """The inner mask allows the whole block."""
        return self.inner.allows_all(block)

    def allows_all(self, block: Block) -> bool:
        """The inner mask rules the whole block out."""
        return self.inner.rules_out(block)

    def check(self, block: Block) -> None:
        """The inner mask fits."""
        self.inner.check(block)

    def per_key(self) -> bool:
        """As the inner mask."""
        return self.inner.per_key()
