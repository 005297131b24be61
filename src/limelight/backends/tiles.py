"""Scores of one block, with bias and mask: what the streaming backend and the views compute again and again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.distances import distance_tile
from limelight.backends.protocol import Call, heads_of
from limelight.masks import Block
from limelight.masks.block import pick, pick_block, positions


class Tile(NamedTuple):
    """A block of scores and what it was made from.

    query [n, H, t, D'] and key [n, H, s, D''] in the accumulation dtype; scores [n, H, t, s], -inf where forbidden;
    kept: what the score wants for its gradient; forbidden: bool, broadcasts to the scores, or None.
    """

    query: Tensor
    key: Tensor
    scores: Tensor
    kept: tuple[Tensor, ...]
    forbidden: Tensor | None


def query_piece(tensor: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """The rows of the block, [n, H, t, .], of a tensor [N, H, T, .]."""
    for axis, selector in enumerate((block.batch, block.head, block.rows)):
        tensor = take(tensor, axis, selector)
    return tensor.to(dtype)


def key_piece(tensor: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """The columns of the block, [n, H, s, .], of a tensor [N, G, S, .]; each query head has its own copy."""
    tensor = take(take(tensor, 0, block.batch), 2, block.columns).to(dtype)
    shared = block.heads // max(1, tensor.shape[1])
    if block.head == slice(0, block.heads):
        return heads_of(tensor, block.heads)
    if shared == 1:
        return take(tensor, 1, block.head)
    return tensor.index_select(1, positions(block.head, tensor.device) // shared)


def take(tensor: Tensor, axis: int, selector: slice | Tensor) -> Tensor:
    """As `pick`, for an axis that is never broadcast: size 1 means one position."""
    if tensor.shape[axis] != 1:
        return pick(tensor, axis, selector)
    if isinstance(selector, slice):
        return tensor if (selector.start, selector.stop) == (0, 1) else tensor[(slice(None),) * axis + (selector,)]
    return tensor.index_select(axis, selector.to(tensor.device))


def score_tile(call: Call, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block, ask: bool) -> Tile:
    """Scores of a block from its query and key pieces; `ask`: whether the mask has anything to forbid there."""
    scores, kept = call.score.tile(query, key, parameters, block)
    bias = None if call.bias is None else pick_block(call.bias, block).to(scores.dtype)
    if call.distances is not None:
        bias = distance_tile(call.distances.to(scores.dtype), block)
    if bias is not None:
        # NaN - inf is NaN, but a bias of -inf forbids.
        scores = (scores + bias).masked_fill(bias == -torch.inf, -torch.inf)
    forbidden = None
    if ask and call.mask is not None:
        forbidden = ~call.mask.tile(block)
        scores = (scores.masked_fill if scores.requires_grad else scores.masked_fill_)(forbidden, -torch.inf)
    return Tile(query, key, scores, kept, forbidden)
