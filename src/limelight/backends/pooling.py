"""The matrix, or a region of it, pooled to cells."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise

import torch
from torch import Tensor

from limelight.backends.lookup import blocks, weights_of
from limelight.backends.protocol import Call
from limelight.masks import Block


def pooled(call: Call, threshold: Tensor, region: Block, rows: int, columns: int, reduce: str) -> Tensor:
    """Mean or max of the weights in each cell, [n, H, rows, columns].

    The slices of the region, of t rows and s columns, are cut into so many cells, rows <= t and columns <= s: cell r
    has the rows [r t // rows, (r + 1) t // rows) of the region, and columns in the same way.
    """
    down, across = _edges(region.rows, rows), _edges(region.columns, columns)
    assert isinstance(region.batch, slice)
    first = region.batch.start
    out = threshold.new_zeros((region.batch.stop - first, region.heads, rows, columns), dtype=call.dtype())
    for block in blocks(call, region):
        weights = weights_of(call, threshold, block).weights
        batch, low, high = block.batch, block.rows, block.columns
        assert isinstance(batch, slice)
        cells, sizes = _cells(down, low)
        other, widths = _cells(across, high)
        part = _reduced(_reduced(weights, 2, sizes, reduce), 3, widths, reduce)
        place = out[batch.start - first : batch.stop - first, :, cells, other]
        if reduce == "mean":
            place += part
        else:
            torch.maximum(place, part, out=place)
    return _divided(out, down, across) if reduce == "mean" else out


def mean_of_sums(sums: Tensor, queries: int, keys: int) -> Tensor:
    """The sums of the whole matrix's cells, [n, H, rows, columns], become the cells' means, in place."""
    rows, columns = sums.shape[-2:]
    return _divided(sums, _edges(slice(0, queries), rows), _edges(slice(0, keys), columns))


def _divided(sums: Tensor, down: list[int], across: list[int]) -> Tensor:
    tall, wide = (
        torch.tensor([b - a for a, b in pairwise(edges)], dtype=sums.dtype, device=sums.device)
        for edges in (down, across)
    )
    return sums.div_(tall.unsqueeze(-1) * wide)


def _edges(positions: slice | Tensor, cells: int) -> list[int]:
    """Where each cell begins, and the end."""
    assert isinstance(positions, slice)
    size = positions.stop - positions.start
    return [positions.start + cell * size // max(1, cells) for cell in range(cells + 1)]


def _cells(edges: list[int], positions: slice | Tensor) -> tuple[slice, list[int]]:
    """The cells that these positions meet, and how many of them lie in each."""
    assert isinstance(positions, slice)
    cells = slice(bisect_right(edges, positions.start) - 1, bisect_left(edges, positions.stop))
    inner = [positions.start, *edges[cells.start + 1 : cells.stop], positions.stop]
    return cells, [b - a for a, b in pairwise(inner)]


def _reduced(weights: Tensor, axis: int, sizes: list[int], reduce: str) -> Tensor:
    """Sum or maximum along an axis of runs of those sizes."""
    if len(sizes) == weights.shape[axis]:
        return weights
    runs = weights.split(sizes, axis)
    return torch.stack([run.sum(axis) if reduce == "mean" else run.amax(axis) for run in runs], axis)
