"""The attention matrix of a finished call, computed again block by block: what an AttentionView answers with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.protocol import Call
from limelight.backends.tiles import Tile, key_piece, query_piece, score_tile, take
from limelight.backends.tiling import block_sizes, pieces
from limelight.masks import Block
from limelight.masks.block import Selector, pick, positions
from limelight.numerics import all_finite, excess, no_autocast, nonfinite, weighted_sum

_NOTICED = 2.0**-15
"""An error of an lse, and so a relative one of its weights, from which on it is looked for."""


class Rest:
    """What rounding took from the lse of each row, worked out for the rows that are asked for, and kept.

    log Σ_j exp(score - lse), of the scores as they are computed here, so that the weights of a row sum to 1 however
    large they are: an lse of 1e4 in fp32 is off by up to 5e-4, and one of -3e38 holds nothing of log l.
    """

    __slots__ = ("_rest", "_wanting")

    def __init__(self, threshold: Tensor, large: Tensor) -> None:
        n, heads, queries = threshold.shape
        with torch.inference_mode(False):  # others may ask outside of it
            self._rest = torch.zeros(n, heads, queries, dtype=threshold.dtype, device=threshold.device)
            self._wanting = torch.zeros(n, queries, dtype=torch.bool, device=threshold.device)  # until they are known
        self._wanting.copy_(large.any(1))

    def of(self, call: Call, threshold: Tensor, batch: Selector, rows: Selector) -> Tensor:
        """That of some rows, [n, H, t, 1]."""
        if take(take(self._wanting, 0, batch), 1, rows).any():
            self._find(call, threshold.detach(), batch, rows)
        return take(take(self._rest, 0, batch), 2, rows).unsqueeze(-1)

    @torch.no_grad()
    def _find(self, call: Call, threshold: Tensor, batch: Selector, rows: Selector) -> None:
        device = threshold.device
        sequences, lines = positions(batch, device), positions(rows, device)
        n, t, keys = len(sequences), len(lines), call.key.shape[2]
        steps = block_sizes(n, call.query.shape[1], t, keys, call.pair_cost())
        for some in pieces(n, steps[0]):
            for high in pieces(t, steps[1]):
                place = (sequences[some, None, None], torch.arange(threshold.shape[1])[:, None], lines[high])
                ends = threshold[place]
                found = torch.full_like(ends, -torch.inf)
                if call.sink is not None:
                    sink = pick(call.sink, 0, sequences[some]).to(ends.dtype).unsqueeze(-1)
                    found = excess(sink, ends)
                for columns in pieces(keys, steps[2]):
                    block = call.block(sequences[some], lines[high], columns)
                    if call.mask is None or not call.mask.rules_out(block):
                        over = excess(_scores_of(call, block), ends.unsqueeze(-1))
                        found = torch.logaddexp(found, over.logsumexp(-1))
                self._rest[place] = found.masked_fill_(~_noticed(ends), 0.0).nan_to_num_(0.0, 0.0, 0.0)
                self._wanting[sequences[some, None], lines[high]] = False


def rest_of(call: Call, threshold: Tensor) -> Rest | None:
    """What rounding took from the lse of each row; None where it is next to nothing in all of them."""
    if not call.normalizer.is_softmax or not threshold.numel():
        return None
    large = _noticed(threshold.detach())
    return Rest(threshold.detach(), large) if large.any() else None


def _noticed(lse: Tensor) -> Tensor:
    """Which of these are so large that what rounding took from them shows."""
    return (lse.abs() * torch.finfo(lse.dtype).eps > _NOTICED) & lse.isfinite()


class Weights(NamedTuple):
    """Scores and weights [n, H, t, s] of a block; forbidden pairs have score -inf and weight 0."""

    scores: Tensor
    weights: Tensor


def weights_of(call: Call, threshold: Tensor, block: Block) -> Weights:
    """f(score - threshold) of one block, exp(score - lse) for softmax; threshold [N, H, T]."""
    with no_autocast(call.query):
        return _weights_of(call, threshold, block)


def _weights_of(call: Call, threshold: Tensor, block: Block) -> Weights:
    dtype = call.dtype()
    parameters = tuple(parameter.to(dtype) for parameter in call.score.parameters)
    chosen = call.score.of_heads(parameters, block.head)
    wide = block._replace(head=slice(0, block.heads)) if chosen is None else block
    query, key = query_piece(call.query, wide, dtype), key_piece(call.key, wide, dtype)
    ask = call.mask is not None and not call.mask.allows_all(wide)
    tracked = torch.is_grad_enabled() and threshold.requires_grad
    make = _spared if tracked and call.may_forbid() and not all_finite(query, key) else score_tile
    scores = make(call, query, key, parameters if chosen is None else chosen, wide, ask).scores
    rows = query_piece(threshold.unsqueeze(-1), wide, threshold.dtype)
    rest = None if call.rest is None else take(call.rest.of(call, threshold, wide.batch, wide.rows), 1, wide.head)
    # Forbidden pairs would be NaN in an empty row (-inf + inf) and in a row whose threshold is NaN. Filled before the
    # exp, so that the gradient to the threshold is 0 there as well.
    weights = call.normalizer.weights(excess(scores, rows, rest).masked_fill(scores == -torch.inf, -torch.inf))
    return (
        Weights(scores, weights)
        if chosen is not None
        else Weights(*(take(one, 1, block.head) for one in (scores, weights)))
    )


def _scores_of(call: Call, block: Block) -> Tensor:
    """The scores of a block of all heads, without gradients."""
    dtype = call.dtype()
    parameters = tuple(parameter.to(dtype) for parameter in call.score.parameters)
    query, key = query_piece(call.query, block, dtype), key_piece(call.key, block, dtype)
    ask = call.mask is not None and not call.mask.allows_all(block)
    with no_autocast(call.query):
        return score_tile(call, query, key, parameters, block, ask).scores


def _spared(call: Call, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block, ask: bool) -> Tile:
    """The same tile, made of rows and keys whose NaN and inf are 0, so that a forbidden pair leaves none in a gradient.

    Pairs that are allowed and meet such a row or key have the score that they have, and pass gradients on.
    """
    bad = torch.isnan if call.score.saturates() else nonfinite
    bad_query, bad_key = bad(query).any(-1, keepdim=True), bad(key).any(-1, keepdim=True)
    with torch.no_grad():
        plain = score_tile(call, query, key, parameters, block, ask).scores
    tile = score_tile(call, query.masked_fill(bad_query, 0.0), key.masked_fill(bad_key, 0.0), parameters, block, ask)
    met = (bad_query | bad_key.mT) & (tile.scores != -torch.inf)
    return tile._replace(scores=torch.where(met, tile.scores + (plain - tile.scores).detach(), tile.scores))


def gathered(call: Call, threshold: Tensor, block: Block, counts: tuple[int, int, int, int]) -> Tensor:
    """The weights of a block of any size, [n, h, t, s] = counts, put together from blocks of bounded size."""
    n, h, t, s = counts
    steps = block_sizes(n, h, t, s, call.pair_cost())
    if steps == (n, t, s):
        return weights_of(call, threshold, block).weights
    out = threshold.new_empty(counts, dtype=call.dtype())
    for batch in pieces(n, steps[0]):
        for rows in pieces(t, steps[1]):
            for columns in pieces(s, steps[2]):
                part = block._replace(
                    batch=_part(block.batch, batch),
                    rows=_part(block.rows, rows),
                    columns=_part(block.columns, columns),
                )
                out[batch, :, rows, columns] = weights_of(call, threshold, part).weights
    return out


def rows(call: Call, threshold: Tensor, places: Sequence[int]) -> Tensor:
    """The weights of the queries at these places, [N, H, len(places), S]."""
    n, heads, _ = threshold.shape
    keys = call.key.shape[2]
    block = call.block(slice(0, n), torch.tensor(places, dtype=torch.int64), slice(0, keys))
    return gathered(call, threshold, block, (n, heads, len(places), keys))


def taken(weights: Tensor, block: Block) -> Tensor:
    """That block of weights [N, H, T, S] that are there already; a copy, so that writing into it changes no view."""
    for axis, selector in enumerate((block.batch, block.head, block.rows, block.columns)):
        weights = take(weights, axis, selector)
    return weights.clone()


def _part(selector: Selector, piece: slice) -> Selector:
    if isinstance(selector, slice):
        return slice(selector.start + piece.start, selector.start + piece.stop)
    return selector[piece]


def received(call: Call, threshold: Tensor) -> Tensor:
    """Σ_i of the weights, [N, H, S]."""
    n, heads, _, _ = call.query.shape
    out = threshold.new_zeros((n, heads, call.key.shape[2]), dtype=call.dtype())
    for block in blocks(call):
        out[block.batch, :, block.columns] += weights_of(call, threshold, block).weights.sum(2)
    return out


def entropy(call: Call, threshold: Tensor) -> Tensor:
    """-Σ_j w log w of each row in nats, [N, H, T]; 0 for an empty row."""
    out = torch.zeros_like(threshold, dtype=call.dtype())
    for block in blocks(call):
        scores, weights = weights_of(call, threshold, block)
        rows = threshold[block.batch, :, block.rows].unsqueeze(-1)
        rest = None if call.rest is None else call.rest.of(call, threshold, block.batch, block.rows)
        # w log w is 0 where w is 0; there log w, for softmax score - threshold, may be -inf.
        logs = call.normalizer.log_weights(excess(scores, rows, rest))
        out[block.batch, :, block.rows] -= (weights * logs).masked_fill_(weights == 0.0, 0.0).sum(-1)
    return out


def strongest(call: Call, threshold: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and weights [N, H, T, k] of the k strongest keys of each row, k in [1, S].

    Strongest first; equal scores by place. Index -1 and weight 0 where a row has fewer than k links: it may attend to
    fewer keys, or a sparse normalizer gives the others nothing.
    """
    n, heads, queries, _ = call.query.shape
    indices = torch.full((n, heads, queries, k), -1, dtype=torch.int64, device=threshold.device)
    best = threshold.new_full((n, heads, queries, k), -torch.inf, dtype=call.dtype())
    weights = torch.zeros_like(best)
    for block in blocks(call):
        place = (block.batch, slice(None), block.rows)
        scores, tile = weights_of(call, threshold, block)
        if call.normalizer.sparse:
            scores = scores.masked_fill(tile == 0.0, -torch.inf)
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


def distance(call: Call, threshold: Tensor) -> Tensor:
    """Σ_j w_ij |i + S - T - j| / Σ_j w_ij of each row, [N, H, T]; 0 for an empty row."""
    out, total = (torch.zeros_like(threshold, dtype=call.dtype()) for _ in range(2))
    move = call.key.shape[2] - call.query.shape[2]
    for block in blocks(call):
        place = (block.batch, slice(None), block.rows)
        weights = weights_of(call, threshold, block).weights
        away = (block.column_index() - (block.row_index() + move).unsqueeze(-1)).abs().to(out.dtype)
        out[place] += (weights * away).sum(-1)
        total[place] += weights.sum(-1)
    return out / total.masked_fill_(total == 0.0, 1.0)


def product(call: Call, threshold: Tensor, rows: Tensor) -> Tensor:
    """Σ_i w_ij rows_i, [N, H, S, M], of rows [N, H, T, M]: the transposed matrix times rows.

    A pair that the mask forbids takes no part, whatever the row holds.
    """
    n, heads, _, width = rows.shape
    out = rows.new_zeros(n, heads, call.key.shape[2], width)
    careful = call.may_forbid() and not all_finite(rows)
    for block in blocks(call):
        scores, weights = weights_of(call, threshold, block)
        part = rows[block.batch, :, block.rows]
        # [n, H, s, t] @ [n, H, t, M]
        with no_autocast(part):
            out[block.batch, :, block.columns] += (
                weighted_sum(weights.mT, part, (scores != -torch.inf).mT) if careful else weights.mT @ part
            )
    return out


def blocks(call: Call, within: Block | None = None) -> Iterator[Block]:
    """Blocks of bounded size that cover the matrix, or the slices `within`, but for those that the mask rules out."""
    within = call.whole() if within is None else within
    batch, rows, columns = within.batch, within.rows, within.columns
    assert isinstance(batch, slice)
    assert isinstance(rows, slice)
    assert isinstance(columns, slice)
    counts = tuple(one.stop - one.start for one in (batch, rows, columns))
    steps = block_sizes(counts[0], call.query.shape[1], counts[1], counts[2], call.pair_cost())
    step = max(1, steps[2])
    for some in pieces(counts[0], steps[0]):
        for high in pieces(counts[1], steps[1]):
            line = call.block(_part(batch, some), _part(rows, high), columns)
            first, last = (0, counts[2] - 1) if call.mask is None else _reach(call.mask.reach(line), columns)
            for start in range(first // step * step, last + 1, step):
                wide = _part(columns, slice(start, min(start + step, counts[2])))
                block = line._replace(columns=wide)
                if call.mask is None or not call.mask.rules_out(block):
                    yield block


def _reach(reach: tuple[int, int], columns: slice) -> tuple[int, int]:
    """That interval of columns, counted from the first of the slice and cut to it."""
    return max(0, reach[0] - columns.start), min(columns.stop - 1, reach[1]) - columns.start
