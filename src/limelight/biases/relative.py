"""Relative position biases: a learned number per head and distance, distances clipped or in T5's buckets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.biases.protocol import Bias, check_table, distances, require_table
from limelight.contract import require_choice, require_count
from limelight.errors import ArgumentError
from limelight.masks.block import Block
from limelight.masks.causal import Align


@dataclass(frozen=True, eq=False)
class Relative(Bias):
    """See `relative`."""

    table: Tensor
    align: Align = "end"

    def check(self, query: Tensor) -> None:
        """One row per head."""
        check_table("relative(table)", self.table, query)

    def by_distance(self, whole: Block, dtype: torch.dtype) -> Tensor:
        """table[clip(distance, -R, R) + R]."""
        reach = self.table.shape[-1] // 2
        return _rows(self.table, dtype)[:, distances(whole, self.align).clamp(-reach, reach) + reach]


@dataclass(frozen=True, eq=False)
class T5Buckets(Bias):
    """See `t5_buckets`."""

    table: Tensor
    bidirectional: bool
    max_distance: int
    align: Align = "end"

    def check(self, query: Tensor) -> None:
        """One row per head."""
        check_table("t5_buckets(table)", self.table, query)

    def by_distance(self, whole: Block, dtype: torch.dtype) -> Tensor:
        """table[bucket of the distance]."""
        buckets = bucket_of(distances(whole, self.align), self.table.shape[-1], self.bidirectional, self.max_distance)
        return _rows(self.table, dtype)[:, buckets]


def _rows(table: Tensor, dtype: torch.dtype) -> Tensor:
    """[H or 1, R] in the wide dtype, so that gradients of one entry are summed in it."""
    return (table if table.ndim == 2 else table[None]).to(dtype)


def bucket_of(distance: Tensor, buckets: int, bidirectional: bool, max_distance: int) -> Tensor:
    """T5's bucket of each distance, int64 in [0, buckets).

    Key minus query d; with both directions the upper half of the buckets is for d > 0, else d > 0 counts as 0. Of the n
    buckets of a direction the first n / 2 hold one distance each, the others grow with its logarithm up to
    max_distance. In float32, as the published models were trained: at the borders the roundings decide.
    """
    base = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = (distance > 0).to(torch.int64) * buckets
        size = distance.abs()
    else:
        size = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).to(torch.int64)
    return base + torch.where(size < exact, size, far.clamp(max=buckets - 1))


def relative(table: Tensor, *, align: Align = "end") -> Bias:
    """table[h, clip(j - p, -R, R) + R] for key j and query i, p = S - T + i being the place of the query.

    A number per head and distance, those beyond R alike: the clipped distances of Shaw, Uszkoreit, Vaswani 2018 (arXiv
    1803.02155, section 3.2), as numbers that are added to the scores instead of vectors that are added to the keys.

    Arguments:
        table: float [H, 2 R + 1], or [2 R + 1] for all heads alike; gradients flow to it. Column R is the query's own
            place, columns beyond it keys that come later. -inf forbids.
        align: as in `causal`: "start" makes p = i.

    Errors: ArgumentError if the table is no such tensor or has an even number of columns, for another `align` and, when
    used, for another number of heads.

    Example: `attend(q, k, v, bias=relative(torch.zeros(8, 33, requires_grad=True)))` with q [2, 8, T, D].
    """
    require_choice("align", align, ("end", "start"))
    table = as_tensor(table)
    require_table("relative(table): table", table, (1, 2), "[H, 2 R + 1] or [2 R + 1]")
    if table.shape[-1] % 2 == 0:
        raise ArgumentError(
            f"relative(table): table must have 2 R + 1 columns, for distances in [-R, R]; it has {table.shape[-1]}. "
            f"Add a column, or take one off."
        )
    return Relative(table, align)


def t5_buckets(table: Tensor, bidirectional: bool = True, max_distance: int = 128, *, align: Align = "end") -> Bias:
    """table[h, bucket(j - p)] for key j and query i, p = S - T + i being the place of the query: T5's position bias.

    Raffel et al. 2020 (arXiv 1910.10683, section 2.1). Near distances have a bucket each, far ones share buckets whose
    width grows with the logarithm of the distance, up to `max_distance`; beyond it there is one. See `bucket_of`.

    Arguments:
        table: float [H, buckets], or [buckets] for all heads alike; gradients flow to it. Hugging Face stores it as
            [buckets, H]: give `relative_attention_bias.weight.T`.
        bidirectional: half of the buckets for keys after the query (encoders); False: such keys count as distance 0
            (decoders, with `causal()`).
        max_distance: in positions; above the distances that have a bucket each.
        align: as in `causal`: "start" makes p = i.

    Errors: ArgumentError if the table is no such tensor or has too few columns, an even number of at least 4 when
    bidirectional and at least 2 when not, for a `max_distance` that is too small, for another `align` and, when used,
    for another number of heads.

    Example: `attend(q, k, v, score=dot(1.0), bias=t5_buckets(torch.zeros(8, 32)))`: T5 does not scale its scores.
    """
    require_choice("align", align, ("end", "start"))
    table = as_tensor(table)
    require_table("t5_buckets(table): table", table, (1, 2), "[H, buckets] or [buckets]")
    columns = table.shape[-1]
    if columns < (4 if bidirectional else 2) or (bidirectional and columns % 2):
        least = "an even number of buckets, at least 4," if bidirectional else "at least 2 buckets"
        raise ArgumentError(
            f"t5_buckets(table): table must have {least} in its last axis; it has {columns}. "
            f"A table [buckets, H] is turned by table.T."
        )
    exact = columns // (4 if bidirectional else 2)
    require_count("max_distance", max_distance, least=exact + 1)
    return T5Buckets(table, bool(bidirectional), max_distance, align)
