"""The forward pass of normalizers other than softmax, block by block: first the threshold of each row, then the output.

Weights are f(score - τ) (see `normalizers/protocol.py`). Of each piece of rows the scores are held while the normalizer
looks for τ, where the rows fit the budget; of longer rows they are computed again each time it goes through them.

For the backward pass: with f' the slope of a pair, G = dO Vᵀ and dτ the gradient to the threshold,
    dS = f' (G - Σ_j f'_j G_j / Σ_j f'_j + dτ / Σ_j f'_j)
where τ depends on the scores. As Σ_j f'_j G_j = dO · Σ_j f'_j v_j, it is enough to keep for each row, beside τ, the
mean of its values under the slopes (the *centre*) and Σ_j f'_j. (For softmax f' is the weight: the centre is the
output and the sum is 1.) Where τ does not depend on the scores, dS = f' G.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from limelight.backends.blocked import Outcome
from limelight.backends.dropout import kept_over_rate
from limelight.backends.protocol import Call
from limelight.backends.tiles import key_piece, query_piece, score_tile
from limelight.backends.tiling import Plan
from limelight.contract import accumulation_dtype
from limelight.masks import Block
from limelight.masks.block import pick
from limelight.normalizers import Rows
from limelight.normalizers.protocol import joined, threshold_dtype
from limelight.numerics import Strays, all_finite, without_nonfinite


def forward(call: Call, parameters: tuple[Tensor, ...], tracked: bool) -> Outcome:
    """The output and the thresholds; if `tracked` also what the backward pass wants."""
    n, heads, queries, _ = call.query.shape
    width, dtype = call.value.shape[-1], accumulation_dtype(call.query.dtype)
    parameters = tuple(parameter.to(dtype) for parameter in parameters)
    tracked = tracked and call.normalizer.competes
    output = call.value.new_zeros(n, heads, queries, width)
    threshold = output.new_full((n, heads, queries), -torch.inf, dtype=threshold_dtype(output, dtype))
    centre = output.new_zeros(output.shape, dtype=dtype) if tracked else None
    total = torch.zeros_like(threshold, dtype=dtype) if tracked else None
    plan = Plan(call, whole_rows=True)
    for batch, high in plan.row_blocks():
        rows = _Rows(call, plan, parameters, batch, high)
        offset = call.normalizer.threshold(rows)
        piece = _output(call, rows, offset, tracked, careful=False)
        if call.may_forbid() and not all_finite(*piece):
            piece = _output(call, rows, offset, tracked, careful=True)
        place = (batch, slice(None), high)
        threshold[place] = joined(rows.base, offset).squeeze(-1)
        output[place] = piece[0]
        if centre is not None and total is not None:
            centre[place], total[place] = piece[1:]
    return Outcome(output, threshold, centre, total)


def _output(call: Call, rows: _Rows, offset: Tensor, tracked: bool, *, careful: bool) -> tuple[Tensor, ...]:
    """Output [n, H, t, E], and if `tracked` the centre [n, H, t, E] and the sum of the slopes [n, H, t]."""
    normalizer, width = call.normalizer, call.value.shape[-1]
    # An empty row: -inf - inf where -inf + inf would be NaN.
    offset = offset.masked_fill(offset == -torch.inf, torch.inf)
    output = offset.new_zeros(*offset.shape[:3], width)
    centre, total = torch.zeros_like(output), torch.zeros_like(offset)
    strays = Strays()
    for block, scores in rows.tiles():
        value = key_piece(call.value, block, offset.dtype)
        if careful:
            strays.add(scores != -torch.inf, value)
            value = without_nonfinite(value)
        weights = normalizer.weights(scores - offset)
        slopes = normalizer.slopes(weights) if tracked else None
        if slopes is not None:
            total += slopes.sum(-1, keepdim=True)
        if call.dropout:
            kept = kept_over_rate(block, call.dropout, call.seed, offset.dtype)
            weights.mul_(kept)
            slopes = None if slopes is None else slopes.mul_(kept)
        output.add_(torch.matmul(weights, value))
        if slopes is not None:
            centre.add_(torch.matmul(slopes, value))
    output = strays.apply(output)
    if not tracked:
        return (output,)
    if rows.sink is not None:
        total += normalizer.slopes(normalizer.weights(rows.sink - offset))
    centre = strays.apply(centre.div_(total.masked_fill(total == 0.0, 1.0)))
    return output, centre, total.squeeze(-1)


class _Rows(Rows):
    """The scores of a piece of rows: held, or computed again each time.

    `base` [n, H, t, 1] is what they were shifted by; `sink` [n or 1, H or 1, t or 1, 1] is shifted with them.
    """

    def __init__(self, call: Call, plan: Plan, parameters: tuple[Tensor, ...], batch: slice, high: slice) -> None:
        self._call, self._parameters = call, parameters
        dtype = accumulation_dtype(call.query.dtype)
        self._query = query_piece(call.query, call.block(batch, high, slice(0, 0)), dtype)
        self._blocks = list(plan.blocks(batch, high))
        self._held = [self._tile(*one) for one in self._blocks] if plan.whole else None
        self._shifted = False
        self.base = self.filled(0.0)
        self.sink = None if call.sink is None else pick(call.sink.to(dtype), 0, batch)[..., None, None]

    def filled(self, number: float) -> Tensor:
        """That number for each row."""
        return self._query.new_full((*self._query.shape[:3], 1), number)

    def shift(self, base: Tensor) -> None:
        """From now on the scores are less by `base`."""
        self.base, self._shifted = base, True
        for tile in self._held or ():
            tile.sub_(base)
        if self.sink is not None:
            self.sink = self.sink - base

    def __iter__(self) -> Iterator[Tensor]:
        for _, tile in self.tiles():
            yield tile
        if self.sink is not None:
            yield self.sink

    def tiles(self) -> Iterator[tuple[Block, Tensor]]:
        """The blocks and their scores, without the sink."""
        for place, (block, ask) in enumerate(self._blocks):
            if self._held is not None:
                yield block, self._held[place]
            else:
                tile = self._tile(block, ask)
                yield block, tile.sub_(self.base) if self._shifted else tile

    def _tile(self, block: Block, ask: bool) -> Tensor:
        key = key_piece(self._call.key, block, self._query.dtype)
        return score_tile(self._call, self._query, key, self._parameters, block, ask).scores
