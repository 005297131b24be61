"""The dense mask: any pattern, as a tensor of True and False that the caller already holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.contract import require_broadcast
from limelight.errors import ArgumentError
from limelight.masks.block import Block, fold_lead, pick_block
from limelight.masks.form import Form
from limelight.masks.protocol import Mask


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """See `dense`."""

    allowed: Tensor

    def tile(self, block: Block) -> Tensor:
        """Bool, that part of the tensor."""
        return pick_block(fold_lead(self.allowed, block.lead, 3), block).to(block.device)

    def rules_out(self, block: Block) -> bool:
        """Not known without looking at the tensor."""
        return False

    def allows_all(self, block: Block) -> bool:
        """Not known without looking at the tensor."""
        return False

    def check(self, block: Block) -> None:
        """The tensor broadcasts to [..., H, T, S]."""
        require_broadcast("mask dense(...)", self.allowed, (*block.lead, block.heads, block.queries, block.keys))

    def per_key(self) -> bool:
        """True if the tensor is the same for every query."""
        return self.allowed.ndim < 2 or self.allowed.shape[-2] == 1

    def form(self, whole: Block) -> Form:
        """The tensor, its leading axes folded."""
        return Form(dense=fold_lead(self.allowed, whole.lead, 3).to(whole.device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """With another tensor."""
        return Dense(change(self.allowed))


def dense(allowed: Tensor) -> Mask:
    """True where the query may attend to the key.

    Arguments:
        allowed: bool, broadcasts to [..., H, T, S]. It is kept, not copied: do not change it while a graph needs it.

    Errors: ArgumentError for another dtype and, when used, for a shape that does not broadcast.
    """
    allowed = as_tensor(allowed)
    if not isinstance(allowed, Tensor) or allowed.dtype is not torch.bool:
        kind = allowed.dtype if isinstance(allowed, Tensor) else type(allowed).__name__
        raise ArgumentError(
            f"dense(allowed): allowed must be a bool tensor, True where the query may attend; it is {kind}. "
            f"Use tensor.bool() for 0 and 1, and the argument bias for numbers that are added to the scores."
        )
    return Dense(allowed)
