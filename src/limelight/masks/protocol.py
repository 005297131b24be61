"""What a mask is: who may attend to whom, asked block by block. True means *may attend*."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from limelight.contract import exporting
from limelight.masks.block import Block, bounds
from limelight.masks.form import Form
from limelight.numerics import transformed


class Mask(ABC):
    """Interface of all masks. To add one, add a file with a frozen dataclass that implements these methods.

    When and how often: `check` once per call; `reach` once for a run of rows, to step over blocks unasked; per block
    first `rules_out` and `allows_all` (cheap, no tensor work worth mentioning, either may answer False when it is not
    sure), and `tile` only where both said False. A mask holds no state that a call changes, except caches of what it
    would compute again.

    Masks combine: `a & b` (both allow), `a | b` (either allows), `~a` (a forbids). All are exact.
    """

    __slots__ = ()

    @abstractmethod
    def tile(self, block: Block) -> Tensor:
        """Bool tensor that broadcasts to the block [n, h, t, s]: True where the query may attend to the key."""

    @abstractmethod
    def rules_out(self, block: Block) -> bool:
        """True only if nothing in the block is allowed; False when not sure."""

    @abstractmethod
    def allows_all(self, block: Block) -> bool:
        """True only if everything in the block is allowed; False when not sure."""

    def reach(self, block: Block) -> tuple[int, int]:
        """An interval [first, last] of columns outside of which nothing in the block is allowed; all where not sure."""
        return bounds(block.columns)

    @abstractmethod
    def check(self, block: Block) -> None:
        """Raise ArgumentError if the mask does not fit a call whose whole matrix is `block`."""

    @abstractmethod
    def per_key(self) -> bool:
        """Whether the whole mask is the same for every query, so that it needs no T x S tensor."""

    def form(self, whole: Block) -> Form | None:
        """The mask as compiled kernels take it, for a call whose whole matrix that is; None if it has no such form."""
        return None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """The same mask with other tensors in the place of its own, such as copies, or those on another device."""
        return self

    def __and__(self, other: Mask) -> Mask:
        from limelight.masks.combined import All

        return All(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        from limelight.masks.combined import Any

        return Any(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> Mask:
        from limelight.masks.combined import Not

        return Not(self)


_REMEMBERED_PAIRS = 1 << 21


def remembered(mask: Mask, block: Block, build: Callable[[Block], Tensor]) -> Tensor:
    """`build(block)`, kept in the mask for the next call if it is the tile of a whole matrix of moderate size.

    Decoders and layers ask the same mask for the same tile over and over. Only for masks that cannot change. Not in
    inference mode: what is built there must not meet autograd later; nor while exported, where a tile is but a name, or
    under torch.func, where it is a wrapper.
    """
    if exporting() or transformed() or not block.whole:
        return build(block)
    if block.queries * block.keys > _REMEMBERED_PAIRS or torch.is_inference_mode_enabled():
        return build(block)
    key = (block.lead, block.queries, block.keys, block.device)
    cache = vars(mask)
    last = cache.get("_last_tile")
    if last is not None and last[0] == key:
        return last[1]
    tile = build(block)
    # Past the guard of a frozen dataclass: this is a cache, not a value.
    cache["_last_tile"] = (key, tile)
    return tile
