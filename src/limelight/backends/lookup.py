"""The attention matrix of a finished call, computed again block by block: what an AttentionView answers with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.protocol import Call
from limelight.backends.tiles import key_piece, query_piece, score_tile, take
from limelight.backends.tiling import Plan, block_sizes, pieces
from limelight.masks import Block
from limelight.masks.block import Selector, pick


class Weights(NamedTuple):
    """Scores and weights [n, H, t, s] of a block; forbidden pairs have score -inf and weight 0."""

    scores: Tensor
    weights: Tensor


def weights_of(call: Call, lse: Tensor, block: Block) -> Weights:
    """exp(score - lse) of one block; lse [N, H, T]."""
    dtype = lse.dtype
    parameters = tuple(parameter.to(dtype) for parameter in call.score.parameters)
    chosen = call.score.of_heads(parameters, block.head)
    wide = block._replace(head=slice(0, block.heads)) if chosen is None else block
    query, key = query_piece(call.query, wide, dtype), key_piece(call.key, wide, dtype)
    scores = score_tile(call, query, key, parameters if chosen is None else chosen, wide, ask=True).scores
    rows = query_piece(lse.unsqueeze(-1), wide, dtype)
    forbidden = scores == -torch.inf
    # Forbidden pairs would be NaN in an empty row (-inf + inf) and in a row whose lse is NaN.
    weights = torch.exp(scores - rows).masked_fill(forbidden, 0.0)
    return (
        Weights(scores, weights)
        if chosen is not None
        else Weights(*(pick(one, 1, block.head) for one in (scores, weights)))
    )


def gathered(call: Call, lse: Tensor, block: Block, counts: tuple[int, int, int, int]) -> Tensor:
    """The weights of a block of any size, [n, h, t, s] = counts, put together from blocks of bounded size."""
    n, h, t, s = counts
    steps = block_sizes(n, h, t, s, call.pair_cost())
    if steps == (n, t, s):
        return weights_of(call, lse, block).weights
    out = lse.new_empty(counts)
    for batch in pieces(n, steps[0]):
        for rows in pieces(t, steps[1]):
            for columns in pieces(s, steps[2]):
                part = block._replace(
                    batch=_part(block.batch, batch),
                    rows=_part(block.rows, rows),
                    columns=_part(block.columns, columns),
                )
                out[batch, :, rows, columns] = weights_of(call, lse, part).weights
    return out


def taken(weights: Tensor, block: Block) -> Tensor:
    """That block of weights [N, H, T, S] that are there already; a copy, so that writing into it changes no view."""
    for axis, selector in enumerate((block.batch, block.head, block.rows, block.columns)):
        weights = take(weights, axis, selector)
    return weights.clone()


def _part(selector: Selector, piece: slice) -> Selector:
    if isinstance(selector, slice):
        return slice(selector.start + piece.start, selector.start + piece.stop)
    return selector[piece]


def received(call: Call, lse: Tensor) -> Tensor:
    """Σ_i of the weights, [N, H, S]."""
    n, heads, _, _ = call.query.shape
    out = lse.new_zeros(n, heads, call.key.shape[2])
    for block in _blocks(call):
        out[block.batch, :, block.columns] += weights_of(call, lse, block).weights.sum(2)
    return out


def entropy(call: Call, lse: Tensor) -> Tensor:
    """-Σ_j w log w of each row in nats, [N, H, T]; 0 for an empty row."""
    out = torch.zeros_like(lse)
    for block in _blocks(call):
        scores, weights = weights_of(call, lse, block)
        rows = lse[block.batch, :, block.rows].unsqueeze(-1)
        # w log w is 0 where w is 0; there log w = score - lse may be -inf.
        out[block.batch, :, block.rows] += (weights * (rows - scores)).masked_fill_(weights == 0.0, 0.0).sum(-1)
    return out


def strongest(call: Call, lse: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and weights [N, H, T, k] of the k strongest keys of each row, k in [1, S].

    Strongest first; equal scores by place. Index -1 and weight 0 where a row may attend to fewer than k keys.
    """
    n, heads, queries, _ = call.query.shape
    indices = torch.full((n, heads, queries, k), -1, dtype=torch.int64, device=lse.device)
    best = lse.new_full((n, heads, queries, k), -torch.inf)
    weights = torch.zeros_like(best)
    for block in _blocks(call):
        place = (block.batch, slice(None), block.rows)
        scores, tile = weights_of(call, lse, block)
        local = _first_largest(scores, min(k, scores.shape[-1]))
        found = torch.cat((indices[place], local + block.column_index()[0]), -1)
        ranks = torch.cat((best[place], scores.gather(-1, local)), -1)
        worth = torch.cat((weights[place], tile.gather(-1, local)), -1)
        # What was kept so far stands in front and has the lower places, so a stable sort keeps equal scores by place.
        order = torch.sort(_ranked(ranks), dim=-1, descending=True, stable=True).indices[..., :k]
        indices[place], best[place], weights[place] = (one.gather(-1, order) for one in (found, ranks, worth))
    indices.masked_fill_(best == -torch.inf, -1)
    return indices, weights


def _first_largest(scores: Tensor, k: int) -> Tensor:
    """Places [..., k] of the k largest along the last axis, in ascending order; among equals the first ones."""
    scores = _ranked(scores)
    least = scores.topk(k, -1).values[..., -1:]
    above = scores > least
    level = scores == least
    room = k - above.sum(-1, keepdim=True)
    chosen = above | (level & (level.cumsum(-1) <= room))
    return chosen.nonzero()[:, -1].view(*scores.shape[:-1], k)


def _ranked(scores: Tensor) -> Tensor:
    """NaN ranks as a score of 0: comparisons with it would all be false."""
    return scores.masked_fill(scores.isnan(), 0.0)


def _blocks(call: Call) -> Iterator[Block]:
    plan = Plan(call)
    for batch, rows in plan.row_blocks():
        for block, _ in plan.blocks(batch, rows):
            yield block
