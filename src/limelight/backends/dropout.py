"""Dropout from a counter-based generator: whether a weight is dropped depends on its place and the seed alone.

So the same weights are dropped whatever the block size, in every backend, and the backward pass drops them again with
nothing stored. Each row (batch, head, query) gets 32 random bits, each column (key) gets 32; a pair's bits are a
two-round integer mix of their exclusive or, in the manner of the murmur3 finaliser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.masks.block import Block, positions

FIRST, SECOND = -2048144789, -1028477387
"""The odd multipliers 0x85EBCA6B and 0xC2B2AE35 as signed 32-bit integers."""


def _mix(bits: Tensor) -> Tensor:
    """Two rounds of multiply and shift on int32, in place."""
    bits.mul_(FIRST)
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF))
    bits.mul_(SECOND)
    bits.bitwise_xor_((bits >> 13).bitwise_and_(0x7FFFF))
    return bits


def _fresh(counter: Tensor, seed: int) -> Tensor:
    """32 random bits per counter value (int64): three rounds, the halves of the seed stirred in between."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    bits = _mix(((counter & 0xFFFFFFFF) ^ low).to(torch.int32))
    bits.bitwise_xor_(_signed(high)).bitwise_xor_((counter >> 32).to(torch.int32))
    return _mix(bits.mul_(FIRST))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def kept_over_rate(block: Block, rate: float, seed: int, dtype: torch.dtype) -> Tensor:
    """[n, H, t, s]: 1 / (1 - rate) where the weight is kept, 0 where it is dropped.

    Arguments:
        block: which part of the matrix.
        rate: probability in (0, 1) with which a weight is dropped.
        seed: integer in [0, 2^63).
        dtype: of the result.
    """
    device = block.device
    batch, head = positions(block.batch, device), positions(block.head, device)
    plane = batch[:, None] * block.heads + head
    row = _fresh(plane[..., None] * block.queries + block.row_index(), seed)
    # Columns count down from -1 so that no column shares a counter with a row.
    column = _fresh(-1 - block.column_index(), seed)
    bits = _mix(row.unsqueeze(-1) ^ column)
    threshold = min(round(rate * 2**32), 2**32 - 1) - 2**31
    return (bits >= threshold).to(dtype).mul_(1.0 / (1.0 - rate))
