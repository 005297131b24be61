"""ALiBi: scores fall linearly with the distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.biases.protocol import Bias, check_table, distances, require_table
from limelight.contract import require_choice
from limelight.errors import ArgumentError
from limelight.masks.block import Block
from limelight.masks.causal import Align


@dataclass(frozen=True, eq=False)
class Alibi(Bias):
    """See `alibi`."""

    slopes: Tensor | None = None
    align: Align = "end"

    def check(self, query: Tensor) -> None:
        """One slope per head."""
        if self.slopes is not None:
            check_table("alibi(slopes)", self.slopes[:, None], query)

    def by_distance(self, whole: Block, dtype: torch.dtype) -> Tensor:
        """-slope |distance|."""
        slopes = self.slopes
        if slopes is None:
            slopes = torch.tensor(alibi_slopes(whole.heads), dtype=dtype, device=whole.device)
        return -slopes.to(dtype)[:, None] * distances(whole, self.align).abs()


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of the paper: 2^(-8 h / H), h = 1 ... H, where H is a power of two.

    For another H those of the largest power of two P below it, then the first of those for 2 P at odd h, as many as are
    missing (as the authors' code has it; the paper speaks of powers of two).
    """
    power = 1 << max(0, heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    return slopes + [2.0 ** (-4.0 * h / power) for h in range(1, 2 * (heads - power), 2)]


def alibi(slopes: Tensor | Sequence[float] | None = None, *, align: Align = "end") -> Bias:
    """-slope_h |j - p| for key j and query i, p = S - T + i being the place of the query (p = i with `align="start"`).

    Attention with linear biases: Press, Smith, Lewis 2022 (arXiv 2108.12409, section 3), there with a causal mask;
    without one it falls off on both sides.

    Arguments:
        slopes: float [H], or [1] for all heads alike; gradients flow to a tensor. None: those of the paper for the
            call's number of heads, see `alibi_slopes`.
        align: as in `causal`.

    Errors: ArgumentError if the slopes are not numbers in one axis, for another `align` and, when used, for another
    number of heads.

    Example: `attend(q, k, v, mask=causal(), bias=alibi())`.
    """
    require_choice("align", align, ("end", "start"))
    if slopes is not None and not isinstance(slopes, Tensor):
        slopes = _numbers(slopes)
    if slopes is not None:
        require_table("alibi(slopes): slopes", slopes, (1,), "[H]")
    return Alibi(slopes, align)


def _numbers(slopes: object) -> Tensor:
    try:
        numbers = [float(one) for one in slopes]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ArgumentError(f"alibi(slopes): slopes must be finite numbers, one per head, or None; it is {slopes!r}.")
    return torch.tensor(numbers)
