"""Shaw's relative positions: vectors by distance that join the keys and the values, never expanded to T x S."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limelight.attend import look
from limelight.contract import require_count
from limelight.errors import ArgumentError
from limelight.layers.grouped import GroupedQueryAttention
from limelight.masks import Mask, band
from limelight.scores import tile_score
from limelight.view import AttentionView


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_table: Tensor,
    value_table: Tensor | None = None,
    *,
    mask: Mask | None = None,
    dropout: float = 0.0,
    observe: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Σ_j a_ij (v_j + a^V_r), a_i = softmax_j(q_i · (k_j + a^K_r) / sqrt(D)), r = clip(j - p_i, -R, R).

    p_i = S - T + i is the place of query i. Shaw, Uszkoreit and Vaswani (2018), "Self-attention with relative position
    representations", arXiv 1803.02155, equations 3 and 4.

    All keys at a distance of R or more share one vector on each side, which moves all their scores by one number. So
    three calls of `attend` do: the keys far before, plain; the 2 R - 1 diagonals between, whose scores are looked up
    among the q_i · a^K_r, T x (2 R + 1) numbers; the keys far behind, plain. They are joined by their lse's. Memory is
    linear in T and S, and few pairs are computed twice.

    Args:
        query: [..., H, T, D].
        key: [..., G, S, D]; G divides H.
        value: [..., G, S, E].
        key_table: a^K, [2 R + 1, D], or [H, 2 R + 1, D]: row R + r is that of distance r.
        value_table: a^V, [2 R + 1, E], or [H, 2 R + 1, E]; None: none, which the paper found as good (table 3).
        mask: who may attend to whom.
        dropout: the share of weights dropped.
        observe: also return the weights, which is T x S.

    Returns:
        [..., H, T, E]; weights [..., H, T, S], or None.

    Raises:
        ArgumentError: a table has an even number of rows, or fewer than 3, or another width.
    """
    reach = _reach("key_table", key_table, query.shape[-1])
    if value_table is not None and _reach("value_table", value_table, value.shape[-1]) != reach:
        raise ArgumentError(
            f"value_table: must have as many rows as key_table, {2 * reach + 1}, got {value_table.shape[-2]}"
        )
    queries, keys = query.shape[-2], key.shape[-2]
    place = keys - queries  # of query 0
    by_distance = torch.matmul(query, key_table.to(query.dtype).mT) / math.sqrt(query.shape[-1])  # [..., H, T, 2 R + 1]
    parts = [_between(query, key, value, by_distance, value_table, reach, mask, dropout)]
    if keys - 1 - reach >= 0:
        parts.append(_far(query, key, value, by_distance, value_table, 0, band(high=place - reach), mask, dropout))
    if place + reach <= keys - 1:
        parts.append(_far(query, key, value, by_distance, value_table, -1, band(low=place + reach), mask, dropout))
    share = _softmax(torch.stack([part.lse for part in parts], -1))  # [..., H, T, parts]
    pairs = list(zip(parts, share.unsqueeze(-2).unbind(-1), strict=True))
    output = torch.stack([part.output * one.to(value.dtype) for part, one in pairs]).sum(0)
    return output, torch.stack([part.view.dense() * one for part, one in pairs]).sum(0) if observe else None


class _Part(NamedTuple):
    """Attention over some of the keys of each query: its softmax goes over them alone."""

    output: Tensor
    lse: Tensor
    view: AttentionView


def _far(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    value_table: Tensor | None,
    row: int,
    side: Mask,
    mask: Mask | None,
    dropout: float,
) -> _Part:
    """The keys beyond the reach on one side: all their scores are moved by one number, and so is the lse."""
    mask = side if mask is None else mask & side
    if value_table is not None:
        # One more column adds up the weights that are left after dropout.
        value = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
    output, view = look(query, key, value, mask=mask, dropout=dropout)
    if value_table is not None:
        output, kept = output[..., :-1], output[..., -1:]
        output = output + kept * value_table[..., row : row + 1 or None, :].to(value.dtype)
    return _Part(output, view.lse + by_distance[..., row].to(view.dtype), view)


def _between(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_distance: Tensor,
    value_table: Tensor | None,
    reach: int,
    mask: Mask | None,
    dropout: float,
) -> _Part:
    """The keys of distances -(R - 1) ... R - 1, each with a number of its own."""
    width, (queries, keys) = query.shape[-1], (query.shape[-2], key.shape[-2])
    place, count = keys - queries, 2 * reach - 1
    near = band(place - reach + 1, place + reach - 1)

    def score(query: Tensor, key: Tensor, *, query_index: Tensor, key_index: Tensor) -> Tensor:
        column = (key_index - query_index[:, None] - place + reach - 1).clamp(0, count - 1)  # [t, s]
        query, numbers = query[..., :width], query[..., width:]
        return query @ key.mT / math.sqrt(width) + numbers.gather(-1, column.expand(*numbers.shape[:-1], -1))

    if value_table is not None:
        # Each key's weight also in a column of its own: those that one query sees here differ in j mod (2 R - 1).
        column = torch.arange(keys, device=value.device) % count
        own = nn.functional.one_hot(column, count).to(value.dtype)  # [S, 2 R - 1]
        value = torch.cat([value, own.expand(*value.shape[:-1], count)], -1)
    output, view = look(
        torch.cat([query, by_distance[..., 1:-1]], -1),
        key,
        value,
        score=tile_score(score, pair_cost=4),
        mask=near if mask is None else mask & near,
        dropout=dropout,
    )
    if value_table is not None:
        output, weights = output.split([output.shape[-1] - count, count], -1)
        first = torch.arange(queries, device=value.device)[:, None] + place - reach + 1
        column = (first + torch.arange(count, device=value.device)) % count  # [T, 2 R - 1], by distance
        weights = weights.gather(-1, column.expand_as(weights))
        output = output + torch.matmul(weights, value_table[..., 1:-1, :].to(value.dtype))
    return _Part(output, view.lse, view)


def _softmax(lse: Tensor) -> Tensor:
    """Each part's share of a row, 0 for all where no part has keys."""
    peak = lse.detach().amax(-1, keepdim=True)
    size = torch.exp(lse - peak.masked_fill(peak == -torch.inf, 0.0))
    total = size.sum(-1, keepdim=True)
    return size / total.masked_fill(peak == -torch.inf, 1.0)


def _reach(name: str, table: Tensor, width: int) -> int:
    rows = table.shape[-2] if table.ndim in (2, 3) else 0
    if rows < 3 or rows % 2 == 0 or table.shape[-1] != width:
        raise ArgumentError(
            f"{name}: must be [2 R + 1, {width}] with R at least 1, or that with a head axis in front, got "
            f"{list(table.shape)}"
        )
    return rows // 2


class ShawAttention(nn.Module):
    """Multi-head self-attention with Shaw's relative positions; see `relative_attention`. One table serves all heads.

    Args:
        width: C; a multiple of `heads`.
        heads: H.
        reach: R, the distance from which on all are alike; the paper takes 16.
        dropout: the share of weights dropped in training.
        key_value_heads: G, which divides H; H unless given.
        values: also a table for the values.

    Raises:
        ArgumentError: width is no multiple of heads, or heads none of key_value_heads, or reach is below 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        reach: int = 16,
        dropout: float = 0.0,
        key_value_heads: int | None = None,
        *,
        values: bool = True,
    ):
        super().__init__()
        require_count("reach", reach, least=1)
        self.projections = GroupedQueryAttention(width, heads, dropout, key_value_heads)
        shape = (2 * reach + 1, width // heads)
        self.key_table = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
        self.value_table = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5) if values else None

    def forward(self, x: Tensor, mask: Mask | None = None, *, observe: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend within x.

        Args:
            x: [..., T, C].
            mask: who may attend to whom.
            observe: also return the weights, averaged over the heads.

        Returns:
            [..., T, C]; weights [..., T, T], or None.
        """
        parts = self.projections
        key, value = parts.keys_values(x)
        attended, weights = relative_attention(
            parts.queries(x),
            key,
            value,
            self.key_table,
            self.value_table,
            mask=mask,
            dropout=parts.dropout if self.training else 0.0,
            observe=observe,
        )
        return parts.output(attended.transpose(-3, -2).flatten(-2)), None if weights is None else weights.mean(-3)
