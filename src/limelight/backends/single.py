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
from limelight.contract import accumulation_dtype


class Pieces(NamedTuple):
    """What the forward pass leaves behind.

    output [N, H, T, E]; lse [N, H, T] or None; weights [N, H, T, S] before dropout; kept_over_rate the same shape, or
    None without dropout; kept: what the score keeps; masked: whether a mask or bias took part.
    """

    output: Tensor
    lse: Tensor | None
    weights: Tensor
    kept_over_rate: Tensor | None
    kept: tuple[Tensor, ...]
    masked: bool


def forward(call: Call, parameters: tuple[Tensor, ...]) -> Pieces | None:
    """The whole call as one block; None if it has to go the long way. N, H, T and S are at least 1."""
    query, key, value = widened(call)
    block = call.whole()
    mask = call.mask if call.mask is not None and not call.mask.allows_all(block) else None
    masked = mask is not None or call.bias is not None
    scores, kept = call.score.tile(query, key, parameters, block)
    proof = 0.0
    if masked:
        # Before anything is forbidden: shows a NaN or inf in query and key wherever it stands.
        proof = scores.sum() if call.score.proves_finite() else scores.sum() + query.sum() + key.sum()
    if call.bias is not None:
        scores.add_(call.bias)
    if mask is not None:
        scores.masked_fill_(~mask.tile(block), -torch.inf)
    lse = torch.logsumexp(scores, -1) if call.wants_lse else None
    weights = torch.softmax(scores, -1)
    drop = kept_over_rate(block, call.dropout, call.seed, weights.dtype) if call.dropout else None
    output = product(weights if drop is None else weights * drop, value)
    # A row without keys has NaN weights, and 0 · NaN shows what stands at forbidden values: both show here.
    if masked and not math.isfinite(float(output.sum() + proof)):
        return None
    return Pieces(output.to(call.value.dtype), lse, weights, drop, kept, masked)


def backward(
    call: Call, parameters: tuple[Tensor, ...], pieces: Pieces, to_output: Tensor, to_lse: Tensor | None
) -> tuple[Tensor | None, ...] | None:
    """Gradients to query, key, value, bias and the parameters; None if the call has to go the long way."""
    query, key, value = widened(call)
    weights, drop = pieces.weights, pieces.kept_over_rate
    to_output = to_output.to(weights.dtype)
    slope = product(to_output, value.mT)
    if drop is not None:
        slope.mul_(drop)
    slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
    if to_lse is not None:
        slope.addcmul_(weights, to_lse.unsqueeze(-1))
    # The inputs are finite; what is not finite here came with the gradient of the output.
    if pieces.masked and not math.isfinite(float(slope.sum())):
        return None
    dropped = weights if drop is None else weights * drop
    to_value = dropped.mT * to_output if to_output.shape[2] == 1 else product(dropped.mT, to_output)
    to_bias = None if call.bias is None else slope.sum_to_size(call.bias.shape).to(call.bias.dtype)
    grads = call.score.tile_gradient(query, key, parameters, call.whole(), pieces.kept, slope)
    groups = call.key.shape[1]
    to_parameters = (
        None if grad is None else grad.to(parameter.dtype)
        for grad, parameter in zip(grads.parameters, call.score.parameters, strict=True)
    )
    return (
        grads.query.to(call.query.dtype),
        groups_of(grads.key, groups).to(call.key.dtype),
        groups_of(to_value, groups).to(call.value.dtype),
        to_bias,
        *to_parameters,
    )


def widened(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in the accumulation dtype, the key heads repeated to H."""
    dtype, heads = accumulation_dtype(call.query.dtype), call.query.shape[1]
    return call.query.to(dtype), heads_of(call.key.to(dtype), heads), heads_of(call.value.to(dtype), heads)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product [n, H, t, s] times [n, H, s, e]; one head is common, and then no axis has to be folded."""
    n, heads, t, s = left.shape
    if heads == 1:
        return torch.bmm(left.squeeze(1), right.squeeze(1)).unsqueeze(1)
    left, right = left.reshape(n * heads, t, s), right.reshape(n * heads, s, right.shape[-1])
    return torch.bmm(left, right).view(n, heads, t, -1)
