"""The threshold of the sparse normalizers by Newton's method: no sorting, a few passes over the rows, linear memory.

Sparsemax and entmax-1.5 are the family f(x) = (c x)^(1/c) for x > 0, else 0, with c = 1 and c = 1/2 (Peters, Niculae,
Martins 2019, arXiv 1905.05702, equation 9, where c = alpha - 1). The threshold τ of a row solves W(τ) = Σ f(s - τ) = 1.

The root is sought in N(τ) = W^c, which is c times a norm of the positive parts of s - τ and so convex and falling.
Newton's steps from the left of the root, where N >= 1, never pass it, and where all scores of the support are equal
N is a straight line and one step ends there. With c = 1 it is the algorithm of Michelot (1986), which ends exactly
after a finite number of steps. In general the products of N - 1 and the slope fall fourfold or faster from step to
step, whatever the scores are.

We start at the greatest score less 1 / c, where that key alone has the weight 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limelight.normalizers.protocol import Normalizer, Rows

_MOST_STEPS = 200
"""Never reached; a loop that does not depend on how numbers round."""


def solved(normalizer: Normalizer, c: float, rows: Rows) -> Tensor:
    """The thresholds of the rows [n, H, t, 1], which are shifted by their greatest scores; -inf where there is none."""
    peak = rows.filled(-torch.inf)
    for tile in rows:
        peak = torch.maximum(peak, tile.amax(-1, keepdim=True))
    empty = peak == -torch.inf
    rows.shift(peak.masked_fill(empty, 0.0))
    offset = rows.filled(-1.0 / c)
    # What the sum of a row may be off by before the last step; a bound on the steps would not see thousands of them.
    most = 1.0 + 16.0 * torch.finfo(offset.dtype).eps
    for _ in range(_MOST_STEPS):
        total, slope = rows.filled(0.0), rows.filled(0.0)
        for tile in rows:
            weights = normalizer.weights(tile - offset)
            total += weights.sum(-1, keepdim=True)
            slope += normalizer.slopes(weights).sum(-1, keepdim=True)
        # (N - 1) / -N', with N = W^c and N' = -c W^(c - 1) Σ f'. An empty row gives 0 / 0.
        step = (total - total.pow(1.0 - c)) / (c * slope)
        before, offset = offset, offset + step
        if not bool(((total > most) & (offset > before)).any()):
            break
    return offset.masked_fill_(empty, -torch.inf)


def sorted_support(row: Tensor, threshold_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Which numbers of each row [..., S] lie above its threshold, by sorting; without a graph.

    `threshold_of(ordered, count)` gives for each k what the threshold is if the first k numbers are the support.
    """
    with torch.no_grad():
        # No threshold is below the greatest number, 0, less 2.
        ordered = row.clamp(min=-3.0).sort(-1, descending=True).values
        count = torch.arange(1, row.shape[-1] + 1, dtype=row.dtype, device=row.device)
        thresholds = threshold_of(ordered, count)
        size = (ordered > thresholds).sum(-1, keepdim=True)
        return row > thresholds.gather(-1, (size - 1).clamp(min=0))
