"""The short cut for calls that fit into one block: few operations, and a backward pass that computes nothing twice.

RNN decoders make thousands of such calls, with T = 1. Rows without keys, NaN and inf are noticed by sums that are not
finite; the caller then goes the long way (`blocked.py`), which treats them exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.dropout import kept_over_rate
from limelight.backends.protocol import Call, groups_of, heads_of
from limelight.backends.sinks import sink_gradient, sink_share
from limelight.contract import accumulation_dtype


class Pieces(NamedTuple):
    """What the forward pass leaves behind.

    output [N, H, T, E]; lse [N, H, T] or None; weights [N, H, T, S] before dropout; kept_over_rate the same shape, or
    None without dropout; kept: what the score keeps; masked: whether a mask or bias took part; share: the sinks'
    weights [N, H, T], or None.
    """

    output: Tensor
    lse: Tensor | None
    weights: Tensor
    kept_over_rate: Tensor | None
    kept: tuple[Tensor, ...]
    masked: bool
    share: Tensor | None = None


def forward(call: Call, parameters: tuple[Tensor, ...]) -> Pieces | None:
    """The whole call as one block; None if it has to go the long way. N, H, T and S are at least 1."""
    query, key, value = widened(call)
    block = call.whole()
    mask = call.mask if call.mask is not None and not call.mask.allows_all(block) else None
    masked = mask is not None or call.bias is not None
    share = None
    scores, kept = call.score.tile(query, key, parameters, block)
    if masked and not _proved_finite(call, scores, query, key):
        return None
    if call.bias is not None:
        scores.add_(call.bias)
    if mask is not None:
        # The scores are finite, so adding -inf forbids; with a broadcast mask it is ten times as fast as masked_fill_.
        scores.add_(torch.where(mask.tile(block), 0.0, -torch.inf))
    if call.sink is None:
        lse = torch.logsumexp(scores, -1) if call.wants_lse else None
        weights = torch.softmax(scores, -1)
    else:
        lse = torch.logaddexp(torch.logsumexp(scores, -1), call.sink.to(scores.dtype).unsqueeze(-1))
        weights = torch.exp(scores - lse.unsqueeze(-1))
        share = sink_share(call.sink, lse)
    drop = kept_over_rate(block, call.dropout, call.seed, weights.dtype) if call.dropout else None
    output = torch.matmul(weights if drop is None else weights * drop, value)
    # A row without keys has NaN weights, and 0 · NaN shows what stands at forbidden values: both show here.
    if masked and not math.isfinite(output.sum().item()):
        return None
    return Pieces(_as(output, call.value), lse, weights, drop, kept, masked, share)


def backward(
    call: Call, parameters: tuple[Tensor, ...], pieces: Pieces, to_output: Tensor, to_lse: Tensor | None
) -> tuple[Tensor | None, ...] | None:
    """Gradients to the call's tensors; None if the call has to go the long way."""
    query, key, value = widened(call)
    weights, drop = pieces.weights, pieces.kept_over_rate
    to_output = _as(to_output, weights)
    slope = torch.matmul(to_output, value.mT)
    if drop is not None:
        slope.mul_(drop)
    to_sink = None
    if call.sink is not None and pieces.share is not None:
        delta = (slope * weights).sum(-1)
        to_sink = sink_gradient(call.sink, pieces.share, delta if to_lse is None else delta - to_lse)
    slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
    if to_lse is not None:
        slope.addcmul_(weights, to_lse.unsqueeze(-1))
    # The inputs are finite; what is not finite here came with the gradient of the output.
    if pieces.masked and not math.isfinite(slope.sum().item()):
        return None
    dropped = weights if drop is None else weights * drop
    to_value = dropped.mT * to_output if to_output.shape[2] == 1 else torch.matmul(dropped.mT, to_output)
    to_bias = None if call.bias is None else _as(slope.sum_to_size(call.bias.shape), call.bias)
    grads = call.score.tile_gradient(query, key, parameters, call.whole(), pieces.kept, slope)
    groups = call.key.shape[1]
    to_parameters = (
        None if grad is None else _as(grad, parameter)
        for grad, parameter in zip(grads.parameters, call.score.parameters, strict=True)
    )
    return (
        _as(grads.query, call.query),
        _as(groups_of(grads.key, groups), call.key),
        _as(groups_of(to_value, groups), call.value),
        to_bias,
        to_sink,
        *to_parameters,
    )


def _proved_finite(call: Call, scores: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether query and key are finite wherever they stand; asked before anything is forbidden."""
    if not math.isfinite(scores.sum().item()):
        return False
    return call.score.proves_finite() or math.isfinite((query.sum() + key.sum()).item())


def widened(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in the accumulation dtype, the key heads repeated to H."""
    query, key, value = call.query, call.key, call.value
    heads = query.shape[1]
    if not query.dtype is key.dtype is value.dtype or query.dtype not in (torch.float32, torch.float64):
        dtype = accumulation_dtype(query.dtype)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if key.shape[1] != heads:
        key, value = heads_of(key, heads), heads_of(value, heads)
    return query, key, value


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.dtype is like.dtype else tensor.to(like.dtype)
