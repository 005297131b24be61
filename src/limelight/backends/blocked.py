"""Block by block in plain torch, forward and backward: the algorithm to read.

Forward, for one piece of rows: go through the blocks of keys with the running maximum m, the running sum l and the
running output o of each row, all of them rescaled when m grows (Milakov and Gimelshein 2018, arXiv 1805.02867; Rabe and
Staats 2021, arXiv 2112.05682). Kept for the backward pass: the inputs, the output, lse = m + log l and what rounding
took from that.

Backward (Dao et al. 2022, arXiv 2205.14135, appendix B.4): with P = exp(scores - lse), recomputed block by block,
    dV = Pᵀ dO,   dS = P (dO Vᵀ - delta),   delta = Σ dO O per row,
and the score turns dS into gradients for its query tile, key tile and parameters. Differences: any score, any mask,
dropout, and gradient to lse as well (it is subtracted from delta). Other normalizers have the same backward pass, with
their weights f(scores - threshold), their slopes f' for P in dS, and the delta of `thresholds.py`.

Where an input holds NaN or inf behind a mask, 0 · NaN would leak; such calls take the careful variant of each step,
which treats a forbidden pair as absent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.distances import add_distance_gradient
from limelight.backends.dropout import kept_over_rate
from limelight.backends.protocol import Call, groups_of
from limelight.backends.sinks import row_products, sink_gradient, sink_slopes
from limelight.backends.tiles import Tile, key_piece, query_piece, score_tile
from limelight.backends.tiling import Plan
from limelight.contract import accumulation_dtype
from limelight.masks import Block
from limelight.masks.block import pick
from limelight.numerics import Strays, all_finite, excess, nonfinite, weighted_sum, without_nonfinite


class Outcome(NamedTuple):
    """What the forward pass gives, and what the backward pass wants of each row.

    output [N, H, T, E] in the value's dtype; the threshold [N, H, T], softmax's lse in the accumulation dtype, others
    in one as wide or wider; where keys compete, in the accumulation dtype, the mean of the values under the slopes,
    centre [N, H, T, E], and the sum of the slopes, total [N, H, T]; for softmax these are the output and 1 (None), and
    rest [N, H, T] is what rounding took from the lse.
    """

    output: Tensor
    threshold: Tensor
    centre: Tensor | None = None
    total: Tensor | None = None
    rest: Tensor | None = None


def forward(call: Call, parameters: tuple[Tensor, ...]) -> Outcome:
    """The forward pass of softmax, in which blocks of keys are gone through once."""
    n, heads, queries, _ = call.query.shape
    dtype = accumulation_dtype(call.query.dtype)
    parameters = tuple(parameter.to(dtype) for parameter in parameters)
    output = call.value.new_zeros(n, heads, queries, call.value.shape[-1])
    lse = torch.full((n, heads, queries), -torch.inf, dtype=dtype, device=output.device)
    rest = torch.zeros_like(lse)
    plan = Plan(call)
    masked = call.may_forbid()
    for batch, rows in plan.row_blocks():
        piece, *ends = _forward_rows(call, plan, parameters, batch, rows, careful=False)
        if masked and not all_finite(piece):
            piece, *ends = _forward_rows(call, plan, parameters, batch, rows, careful=True)
        output[batch, :, rows] = piece
        lse[batch, :, rows], rest[batch, :, rows] = ends
    return Outcome(output, lse, output, rest=rest)


def _forward_rows(
    call: Call, plan: Plan, parameters: tuple[Tensor, ...], batch: slice, rows: slice, *, careful: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [n, H, t, E] of one piece of rows, its lse [n, H, t] and what rounding took from that."""
    dtype = accumulation_dtype(call.query.dtype)
    columns = slice(0, 0)
    query = query_piece(call.query, call.block(batch, rows, columns), dtype)
    size = query.shape[:3]
    peak = query.new_full((*size, 1), -torch.inf)
    if call.sink is not None:
        # A logit that every row has met before its first key.
        peak.copy_(pick(call.sink, 0, batch)[..., None, None])
    total = (peak != -torch.inf).to(dtype)
    output = query.new_zeros(*size, call.value.shape[-1])
    strays = Strays()
    for block, ask in plan.blocks(batch, rows):
        value = key_piece(call.value, block, dtype)
        scores = score_tile(call, query, key_piece(call.key, block, dtype), parameters, block, ask).scores
        allowed = scores != -torch.inf if careful else None
        higher = torch.maximum(peak, scores.amax(-1, keepdim=True))
        # A row that has met no key yet: exp(-inf - 0) = 0 where exp(-inf + inf) would be NaN.
        base = higher.masked_fill(higher == -torch.inf, 0.0)
        weights = scores.sub_(base).exp_()
        rescale = torch.exp(peak - base)
        total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
        if call.dropout:
            weights.mul_(kept_over_rate(block, call.dropout, call.seed, dtype))
        output.mul_(rescale)
        if allowed is None:
            output.add_(torch.matmul(weights, value))
        else:
            strays.add(allowed, value)
            output.add_(torch.matmul(weights, without_nonfinite(value)))
        peak = higher
    empty = total == 0.0
    total.masked_fill_(empty, 1.0)
    log = total.log()
    lse = peak + log
    rest = log.sub_(lse - peak).masked_fill_(empty, 0.0)
    return strays.apply(output.div_(total)), lse.squeeze(-1), rest.squeeze(-1)


class Backward:
    """One backward pass: the gradient buffers and what every block needs."""

    def __init__(
        self, call: Call, parameters: tuple[Tensor, ...], outcome: Outcome, to_output: Tensor, to_threshold: Tensor
    ) -> None:
        self.call = call
        self.dtype = dtype = accumulation_dtype(call.query.dtype)
        self.parameters = tuple(parameter.to(dtype) for parameter in parameters)
        self.to_output = to_output
        self.threshold = outcome.threshold.unsqueeze(-1)
        self.rest = None if outcome.rest is None else outcome.rest.unsqueeze(-1)
        # Where the pairs of a row are independent, nothing is taken off.
        self.delta = self.sink = None
        to_threshold = to_threshold.to(dtype)
        if outcome.centre is not None:
            if outcome.total is not None:
                to_threshold = to_threshold / outcome.total.masked_fill(outcome.total == 0.0, 1.0)
            self.delta = ((to_output.to(dtype) * outcome.centre.to(dtype)).sum(-1) - to_threshold).unsqueeze(-1)
            if call.sink is not None:
                products = row_products(outcome.centre, to_output, dtype)
                slopes = sink_slopes(call.normalizer, call.sink, outcome.threshold, outcome.rest)
                self.sink = sink_gradient(call.sink, slopes, products - to_threshold)
        self.careful = call.may_forbid() and not all_finite(call.query, call.key, call.value, to_output, self.delta)
        self.query, self.key, self.value = (
            torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
            for tensor in (call.query, call.key, call.value)
        )
        self.distances = None if call.distances is None else torch.zeros_like(call.distances, dtype=dtype)
        self.bias = None if call.bias is None else torch.zeros_like(call.bias, dtype=dtype)
        self.to_parameters: list[Tensor | None] = [None] * len(parameters)
        self.original = parameters

    def run(self) -> tuple[Tensor | None, ...]:
        """Gradients to the call's tensors, in their dtypes."""
        plan = Plan(self.call)
        for batch, rows in plan.row_blocks():
            for block, ask in plan.blocks(batch, rows):
                self._block(block, ask)
        call = self.call
        bias = None if call.bias is None or self.bias is None else self.bias.to(call.bias.dtype)
        to_parameters = (
            torch.zeros_like(parameter) if grad is None else grad.to(parameter.dtype)
            for grad, parameter in zip(self.to_parameters, self.original, strict=True)
        )
        query, key, value = (
            self.query.to(call.query.dtype),
            self.key.to(call.key.dtype),
            self.value.to(call.value.dtype),
        )
        return query, key, value, bias, self.sink, self.distances, *to_parameters

    def _block(self, block: Block, ask: bool) -> None:
        """Add one block's share to every gradient."""
        call, dtype = self.call, self.dtype
        batch, rows, columns = block.batch, block.rows, block.columns
        query, key = query_piece(call.query, block, dtype), key_piece(call.key, block, dtype)
        tile = score_tile(call, query, key, self.parameters, block, ask)
        allowed = tile.scores != -torch.inf if self.careful else None
        threshold = self.threshold[batch, :, rows]
        # An empty row: -inf - inf where -inf + inf would be NaN.
        threshold = threshold.masked_fill(threshold == -torch.inf, torch.inf)
        rest = None if self.rest is None else self.rest[batch, :, rows]
        weights = call.normalizer.weights(excess(tile.scores, threshold, rest))
        if allowed is not None:
            weights.masked_fill_(~allowed, 0.0)
        kept = kept_over_rate(block, call.dropout, call.seed, dtype) if call.dropout else None
        to_output = self.to_output[batch, :, rows].to(dtype)
        slope = torch.matmul(to_output, key_piece(call.value, block, dtype).mT)
        if kept is not None:
            slope.mul_(kept)
        if self.delta is not None:
            slope.sub_(self.delta[batch, :, rows])
        slope.mul_(call.normalizer.slopes(weights))
        if kept is not None:
            weights.mul_(kept)
        if allowed is None:
            to_value = torch.matmul(weights.mT, to_output)
        else:
            to_value = weighted_sum(weights.mT, to_output, allowed.mT)
            tile, slope = self._spare(tile, slope, allowed, block)
        groups = call.key.shape[1]
        self.value[batch, :, columns] += groups_of(to_value, groups)
        self._bias(block, slope)
        grads = call.score.tile_gradient(tile.query, tile.key, self.parameters, block, tile.kept, slope)
        self.query[batch, :, rows] += grads.query
        self.key[batch, :, columns] += groups_of(grads.key, groups)
        for place, grad in enumerate(grads.parameters):
            have = self.to_parameters[place]
            self.to_parameters[place] = grad if have is None or grad is None else have.add_(grad)

    def _spare(self, tile: Tile, slope: Tensor, allowed: Tensor, block: Block) -> tuple[Tile, Tensor]:
        """The tile again, its rows and keys that hold NaN or inf set to 0, so that a slope of 0 leaves no trace.

        A pair that is allowed and meets such a row or key gets the slope NaN: it shows there, and only there.
        """
        bad = torch.isnan if self.call.score.saturates() else nonfinite
        bad_query, bad_key = bad(tile.query).any(-1, keepdim=True), bad(tile.key).any(-1, keepdim=True)
        slope = slope.masked_fill(allowed & (bad_query | bad_key.mT), torch.nan).masked_fill(~allowed, 0.0)
        query, key = tile.query.masked_fill(bad_query, 0.0), tile.key.masked_fill(bad_key, 0.0)
        _, kept = self.call.score.tile(query, key, self.parameters, block)
        return Tile(query, key, tile.scores, kept, tile.forbidden), slope

    def _bias(self, block: Block, slope: Tensor) -> None:
        """The bias takes the slope as it is, summed over the pairs that share a number."""
        if self.distances is not None:
            add_distance_gradient(self.distances, slope, block)
        if self.bias is None:
            return
        place = tuple(
            slice(None) if size == 1 else wanted
            for size, wanted in zip(self.bias.shape, (block.batch, block.head, block.rows, block.columns), strict=True)
        )
        part = self.bias[place]
        part += slope.sum_to_size(part.shape)
