"""How far a result may lie from the float64 one: from the number of roundings, not from what happened to come out."""

from __future__ import annotations

import torch
from torch import Tensor

ACCUMULATION = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def bound(expected: Tensor, dtype: torch.dtype, terms: int) -> float:
    """Largest difference allowed.

    A sum of n terms, each right to one unit, is off by at most n units of the sum of their sizes. Here n is the longest
    chain of sums (width, keys, queries, width again); the sizes are taken as the largest number expected, or 1; 4 for
    the chain of operations around them. One rounding more into a narrower storage dtype.
    """
    size = max(1.0, float(expected.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())) if expected.numel() else 1.0
    exact = 4 * terms * torch.finfo(ACCUMULATION[dtype]).eps * size
    return exact if dtype is ACCUMULATION[dtype] else exact + torch.finfo(dtype).eps * size


def assert_near(have: Tensor, expected: Tensor, dtype: torch.dtype, terms: int, what: str = "") -> None:
    """The same shape, NaN and inf in the same places, and everything else within `bound`."""
    assert have.shape == expected.shape, f"{what}: shape {list(have.shape)}, expected {list(expected.shape)}"
    limit = bound(expected, dtype, terms)
    torch.testing.assert_close(
        have.detach().double(), expected.detach().double(), rtol=0.0, atol=limit, equal_nan=True, msg=lambda m: what + m
    )
