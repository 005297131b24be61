"""Log weights of single pairs (n, h, i, j), in memory that grows with the number of pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limelight.backends import tiling
from limelight.backends.protocol import Call
from limelight.numerics import excess, no_autocast


def log_weights(call: Call, threshold: Tensor, pairs: Tensor) -> Tensor:
    """Log f(score - threshold) of each pair, [P], of pairs [P, 4]; -inf where it is forbidden or 0. Differentiable."""
    n, h, i, j = pairs.unbind(-1)
    allowed = _allowed(call, pairs)
    bias = None
    if call.bias is not None:
        place = (one if size > 1 else one * 0 for one, size in zip((n, h, i, j), call.bias.shape, strict=True))
        bias = call.bias[tuple(place)].to(call.dtype())
        allowed = allowed & (bias != -torch.inf)
        bias = bias.where(allowed, 0.0)
    if call.distances is not None:
        by_distance = call.distances.expand(call.query.shape[1], -1)
        bias = by_distance[h, j - i + call.query.shape[2] - 1].to(call.dtype())
    with no_autocast(call.query):
        scores = _scores(call, call.dtype(), pairs, allowed)
    scores = scores if bias is None else scores + bias
    # What is forbidden is replaced before anything is done with it, so that NaN there reaches no gradient.
    ends = _picked(threshold.unsqueeze(-1), n, h, i).squeeze(-1).where(allowed, 0.0)
    rest = None if call.rest is None else _rest(call, threshold, n, h, i)
    return call.normalizer.log_weights(excess(scores, ends, rest).where(allowed, -torch.inf))


def _rest(call: Call, threshold: Tensor, n: Tensor, h: Tensor, i: Tensor) -> Tensor:
    """What rounding took from the lse of the row of each pair, [P]."""
    assert call.rest is not None
    (sequences, at), (rows, row) = (torch.unique(one, return_inverse=True) for one in (n, i))
    return call.rest.of(call, threshold, sequences, rows)[at, h, row, 0]


def _scores(call: Call, dtype: torch.dtype, pairs: Tensor, allowed: Tensor) -> Tensor:
    """The score of each pair, [P], and some finite number where it is not allowed."""
    parameters = tuple(parameter.to(dtype) for parameter in call.score.parameters)
    score, out = call.score, torch.zeros(len(pairs), dtype=dtype, device=pairs.device)
    free = score.plain_scale(call.query.shape[-1]) is not None or score.tanh_vector() is not None
    # Where the place of a pair does not matter, the pairs of a head are one batch of tiles; else row after row.
    groups = pairs[:, 1] if free else pairs[:, :3]
    _, member = torch.unique(groups, dim=0, return_inverse=True)
    order = torch.argsort(member, stable=True)
    parts = []
    for wanted in order.split(torch.bincount(member).tolist()):
        chosen = pairs[wanted]
        parts.append((_head if free else _row)(call, dtype, parameters, chosen, allowed[wanted]))
    return out.index_put((order,), torch.cat(parts)) if parts else out


def _head(call: Call, dtype: torch.dtype, parameters: tuple[Tensor, ...], pairs: Tensor, allowed: Tensor) -> Tensor:
    """Scores of pairs of one head."""
    query, key = _sides(call, dtype, pairs, allowed)
    head = int(pairs[0, 1])
    one = call.score.of_heads(parameters, slice(head, head + 1))
    assert one is not None
    block = call.block(pairs[:, 0], slice(0, 1), slice(0, 1), slice(head, head + 1))
    # Tiles [P, 1, 1, 1] of queries [P, 1, 1, D] and keys [P, 1, 1, D].
    return call.score.tile(query[:, None, None], key[:, None, None], one, block)[0].reshape(-1)


def _row(call: Call, dtype: torch.dtype, parameters: tuple[Tensor, ...], pairs: Tensor, allowed: Tensor) -> Tensor:
    """Scores of pairs of one query: a tile of all heads, as the score wants it, in which the others are 0."""
    query, key = _sides(call, dtype, pairs, allowed)
    n, head, row, _ = pairs[0].tolist()
    heads, alone = call.query.shape[1], slice(head, head + 1)
    wide_query = query.new_zeros(1, heads, 1, query.shape[-1])
    wide_key = key.new_zeros(1, heads, len(pairs), key.shape[-1])
    wide_query = torch.cat(
        (wide_query[:, :head], query[allowed.int().argmax()].view(1, 1, 1, -1), wide_query[:, head + 1 :]), 1
    )
    wide_key = torch.cat((wide_key[:, :head], key[None, None], wide_key[:, head + 1 :]), 1)
    block = call.block(slice(n, n + 1), slice(row, row + 1), pairs[:, 3])
    return call.score.tile(wide_query, wide_key, parameters, block)[0][0, alone].reshape(-1)


def _sides(call: Call, dtype: torch.dtype, pairs: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of each pair, [P, D], 0 where it is not allowed."""
    n, h, i, j = pairs.unbind(-1)
    shared = call.query.shape[1] // max(1, call.key.shape[1])
    may = allowed.unsqueeze(-1)
    return (
        _picked(call.query, n, h, i).to(dtype).where(may, 0.0),
        _picked(call.key, n, torch.div(h, shared, rounding_mode="floor"), j).to(dtype).where(may, 0.0),
    )


def _picked(tensor: Tensor, *place: Tensor) -> Tensor:
    """The rows [P, D] of a tensor [N, H, T, D] at these places.

    With a gradient by way of a table, whose rows each have one thread that adds to them in order: the gradient of
    indexing adds with several threads at once, and no two times in the same order.
    """
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor[place]
    row = (place[0] * tensor.shape[1] + place[1]) * tensor.shape[2] + place[2]
    return F.embedding(row, tensor.flatten(0, 2))


def _allowed(call: Call, pairs: Tensor) -> Tensor:
    """Whether the mask allows each pair, bool [P]: asked in blocks of bounded size, of pairs that lie together."""
    if call.mask is None:
        return torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
    out = torch.empty(len(pairs), dtype=torch.bool, device=pairs.device)
    waiting = [torch.argsort(pairs[:, 0] * call.query.shape[2] + pairs[:, 2], stable=True)]
    while waiting:
        wanted = waiting.pop()
        (n, at), (i, row), (j, column) = (torch.unique(pairs[wanted, axis], return_inverse=True) for axis in (0, 2, 3))
        if len(wanted) > 1 and math.prod((len(n), len(i), len(j), call.query.shape[1])) > tiling.BUDGET:
            waiting += [wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :]]
            continue
        block = call.block(n, i, j)
        tile = call.mask.tile(block).expand(len(n), call.query.shape[1], len(i), len(j))
        out[wanted] = tile[at, pairs[wanted, 1], row, column]
    return out
