"""The segments mask: several sequences packed into one, each of which sees itself only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.contract import integer_dtypes
from limelight.errors import ArgumentError
from limelight.masks.block import Block, bounds, fold_lead, pick
from limelight.masks.protocol import Mask, remembered


@dataclass(frozen=True, eq=False)
class Segments(Mask):
    """See `segments`. `rising`: whether both rows of numbers never fall, so that ends of a run bound it."""

    query: Tensor
    key: Tensor
    rising: bool

    def tile(self, block: Block) -> Tensor:
        """Bool [n, 1, t, s]."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        query, key = self._parts(block)
        return (query.unsqueeze(-1) == key.unsqueeze(-2)).unsqueeze(1)

    def rules_out(self, block: Block) -> bool:
        """In every sequence the last segment of the one ends before the first of the other begins."""
        if not self.rising or not _runs(block):
            return False
        query, key = self._parts(block)
        return bool(((query[:, -1] < key[:, 0]) | (query[:, 0] > key[:, -1])).all())

    def allows_all(self, block: Block) -> bool:
        """In every sequence queries and keys are of one and the same segment."""
        if not self.rising or not _runs(block):
            return False
        query, key = self._parts(block)
        ends = torch.stack((query[:, -1], key[:, 0], key[:, -1]))
        return bool((ends == query[:, 0]).all())

    def check(self, block: Block) -> None:
        """The numbers are [..., T] and [..., S] over the leading axes."""
        for name, numbers, size in (("query", self.query, block.queries), ("key", self.key, block.keys)):
            fits = numbers.shape[-1] == size and numbers.ndim <= len(block.lead) + 1
            if fits:
                lead = block.lead[len(block.lead) - numbers.ndim + 1 :]
                fits = all(have in (1, want) for have, want in zip(numbers.shape[:-1], lead, strict=True))
            if not fits:
                raise ArgumentError(
                    f"mask segments(...): the numbers of the {name} must be [..., {size}], one for each position, with "
                    f"the leading axes {list(block.lead)}; their shape is {list(numbers.shape)}."
                )

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def moved(self, device: torch.device) -> Mask:
        """The numbers on that device."""
        return Segments(self.query.to(device), self.key.to(device), self.rising)

    def _parts(self, block: Block) -> tuple[Tensor, Tensor]:
        """The numbers of the block's queries [n or 1, t] and keys [n or 1, s]."""
        query, key = (fold_lead(one, block.lead, 1).to(block.device) for one in (self.query, self.key))
        query, key = pick(query, 0, block.batch), pick(key, 0, block.batch)
        return _along(query, block.rows), _along(key, block.columns)


def _along(numbers: Tensor, selector: slice | Tensor) -> Tensor:
    if isinstance(selector, slice):
        return numbers[:, selector]
    return numbers.index_select(1, selector.to(numbers.device))


def _runs(block: Block) -> bool:
    """Whether the block is one run of rows and one of columns, with something in it."""
    whole = isinstance(block.rows, slice) and isinstance(block.columns, slice)
    return whole and all(bounds(one)[1] >= 0 for one in (block.rows, block.columns))


def segments(query: Tensor, key: Tensor | None = None) -> Mask:
    """Keys of the query's own segment: those that bear the same number.

    Arguments:
        query: integers [B, T], the segment of each query; leading axes as the inputs', or of size 1.
        key: integers [B, S], the segment of each key; None: that of the queries, T = S.

    Fastest where the numbers never fall along a sequence, so that whole blocks can be left out.

    Errors: ArgumentError for a dtype that is not an integer and, when used, for a shape that does not fit.

    Example: `attend(q, k, v, mask=causal() & segments(torch.tensor([[0, 0, 0, 1, 1]])))`: a packed batch.
    """
    numbers = (query, query if key is None else key)
    for one in numbers:
        if not isinstance(one, Tensor) or one.dtype not in integer_dtypes or one.ndim == 0:
            kind = f"{one.dtype} {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise ArgumentError(f"segments(query, key): both must be integer tensors [..., positions]; one is {kind}.")
    first, second = (one.detach().to(torch.int64, copy=True) for one in numbers)
    rising = all(bool((one[..., 1:] >= one[..., :-1]).all()) for one in (first, second))
    return Segments(first, second, rising)
