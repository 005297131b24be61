"""The lengths mask: sequences padded at the end to a common number of keys."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from limelight.contract import integer_dtypes, tracing
from limelight.errors import ArgumentError
from limelight.masks.block import Block, bounds, pick
from limelight.masks.form import Form
from limelight.masks.protocol import Mask, remembered
from limelight.numerics import transformed


@dataclass(frozen=True, eq=False)
class Lengths(Mask):
    """See `lengths`. `shortest` and `longest` are kept on the host so that no call waits for the device."""

    count: Tensor
    shortest: int
    longest: int
    _moved: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def tile(self, block: Block) -> Tensor:
        """Bool [n, 1, 1, s]."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        count = pick(self._folded(block), 0, block.batch)
        return block.column_index() < count.reshape(-1, 1, 1, 1)

    def rules_out(self, block: Block) -> bool:
        """Every sequence of the block ends before its first key."""
        first = bounds(block.columns)[0]
        return first >= self.longest or (self._is_part(block) and first >= max(self._known(block), default=0))

    def allows_all(self, block: Block) -> bool:
        """No sequence of the block ends before its last key."""
        last = bounds(block.columns)[1]
        return last < self.shortest or (self._is_part(block) and last < min(self._known(block), default=0))

    def check(self, block: Block) -> None:
        """The shape is a prefix of the leading axes, and no length exceeds S."""
        shape = tuple(self.count.shape)
        if shape != block.lead[: len(shape)]:
            raise ArgumentError(
                f"mask lengths(...): its shape must be the leading axes of the query, or the first of them; it is "
                f"{list(shape)} and the leading axes are {list(block.lead)}. Give one length per sequence, [B] for a "
                f"query [B, H, T, D]."
            )
        if not tracing() and self.longest > block.keys:
            raise ArgumentError(
                f"mask lengths(...): every length must be in [0, S] with S = {block.keys} keys; the largest is "
                f"{self.longest}. Pad key and value to the longest sequence, or clamp the lengths."
            )

    def per_key(self) -> bool:
        """True: [B, 1, 1, S]."""
        return True

    def form(self, whole: Block) -> Form:
        """The lengths, one for each of the leading axes folded into one."""
        return Form(lengths=self._folded(whole))

    def _is_part(self, block: Block) -> bool:
        """Whether the block holds a run of sequences but not all, so that their own lengths may say more."""
        batch = block.batch
        return isinstance(batch, slice) and batch.stop - batch.start < math.prod(block.lead)

    @cached_property
    def _host(self) -> list[int]:
        return self.count.flatten().tolist()

    def _known(self, block: Block) -> list[int]:
        assert isinstance(block.batch, slice)
        inner = math.prod(block.lead[self.count.ndim :])
        start, stop = block.batch.start // inner, (block.batch.stop - 1) // inner + 1
        return self._host[start:stop]

    def _folded(self, block: Block) -> Tensor:
        count = self._moved.get(block.device)
        if count is None:
            count = self.count.to(block.device)
            if not transformed():  # what a transformation makes is of no use after it
                self._moved[block.device] = count
        if count.ndim == 1 == len(block.lead):
            return count
        inner = math.prod(block.lead[count.ndim :])
        count = count.flatten()
        return count if inner == 1 else count.repeat_interleave(inner)


def lengths(count: Tensor) -> Mask:
    """Keys in [0, count) of each sequence; the rest is padding.

    Arguments:
        count: integers in [0, S], [B] for inputs [B, H, T, D]; in general the leading axes or the first of them.

    A length of 0 leaves that sequence's queries nothing to attend to: output 0.

    Errors: ArgumentError for a dtype that is not an integer, for negative lengths, and, when used, for a shape that
    does not fit the leading axes or a length above S.

    Example: `attend(q, k, v, mask=lengths(torch.tensor([7, 3])))` with q [2, H, T, D], k [2, H, 7, D].
    """
    if not isinstance(count, Tensor):
        count = torch.as_tensor(count)
    if count.dtype not in integer_dtypes:
        raise ArgumentError(
            f"lengths(count): count must hold integers, one length per sequence; its dtype is {count.dtype}. "
            f"Use count.long(), or dense(...) for a mask of True and False."
        )
    if count.ndim == 0:
        raise ArgumentError("lengths(count): count must have one axis at least, [B]; it is a scalar. Use count[None].")
    count = count.detach().to(torch.int64, copy=True)
    if count.numel() == 0:
        return Lengths(count, 0, 0)
    if tracing():
        return Lengths(count, 0, sys.maxsize)  # no length has a value yet: nothing is known
    low, high = torch.aminmax(count)
    shortest, longest = int(low), int(high)
    if shortest < 0:
        raise ArgumentError(
            f"lengths(count): every length must be in [0, S]; the smallest is {shortest}. Count the tokens that are "
            f"not padding, for instance (tokens != pad).sum(-1)."
        )
    return Lengths(count, shortest, longest)
