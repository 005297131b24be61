"""A bias by distance [H or 1, T + S - 1] in blocks: place u belongs to the pairs (i, j) with j - i = u - (T - 1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from limelight.masks import Block
from limelight.masks.block import pick


def distance_tile(by_distance: Tensor, block: Block) -> Tensor:
    """The block's numbers, [h or 1, t, s]."""
    by_distance = pick(by_distance, 0, block.head)
    if not block.queries or not block.keys:
        return by_distance.new_zeros(by_distance.shape[0], block.queries, block.keys)
    if isinstance(block.rows, slice) and isinstance(block.columns, slice):
        # Row after row the numbers move on by one, from the last row to the first.
        part = by_distance[:, _places(block)]
        return part.unfold(-1, block.columns.stop - block.columns.start, 1).flip(-2)
    return by_distance[:, block.column_index() - block.row_index().unsqueeze(-1) + block.queries - 1]


def add_distance_gradient(total: Tensor, gradient: Tensor, block: Block) -> None:
    """Add the gradient of a tile [n, H, t, s] of slices to that of its bias, `total` [H or 1, T + S - 1]."""
    gradient = gradient.sum(0)
    if total.shape[0] == 1:
        gradient = gradient.sum(0, keepdim=True)
    heads, t, s = gradient.shape
    if t > s:
        # Sums along diagonals, over the shorter axis.
        gradient, t, s = gradient.flip(-2).mT, s, t
    else:
        gradient = gradient.flip(-2)
    # Rows of s + t numbers read as rows of s + t - 1: each moves on by one against the row before.
    padded = functional.pad(gradient, (0, t)).reshape(heads, -1)[:, : t * (s + t - 1)]
    total[:, _places(block)] += padded.view(heads, t, s + t - 1).sum(1)


def _places(block: Block) -> slice:
    """The places of the distances in a block of slices."""
    assert isinstance(block.rows, slice)
    assert isinstance(block.columns, slice)
    first = block.columns.start - (block.rows.stop - 1) + block.queries - 1
    return slice(first, block.columns.stop - 1 - block.rows.start + block.queries)
