"""A mask in the form that a compiled kernel takes: a band, lengths, runs, and a dense pattern."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNBOUNDED = 1 << 40
"""Farther than any sequence is long."""


class Form(NamedTuple):
    """Key j of query i is allowed if i + low <= j <= i + high, j < lengths[n], first[n, i] <= j < last[n, i], dense.

    lengths: int64 [N], or None; dense: bool [N or 1, H or 1, T or 1, S or 1], or None; first and last: int32
    [N or 1, T], or both None.
    """

    low: int = -UNBOUNDED
    high: int = UNBOUNDED
    lengths: Tensor | None = None
    dense: Tensor | None = None
    first: Tensor | None = None
    last: Tensor | None = None

    def meet(self, other: Form) -> Form | None:
        """Allowed by both; None where two dense patterns would have to be multiplied out."""
        if self.dense is not None and other.dense is not None:
            return None
        lengths = self.lengths if other.lengths is None else other.lengths
        if self.lengths is not None and other.lengths is not None:
            lengths = torch.minimum(self.lengths, other.lengths)
        dense = self.dense if other.dense is None else other.dense
        first, last = (self.first, self.last) if other.first is None else (other.first, other.last)
        if self.first is not None and self.last is not None and other.first is not None and other.last is not None:
            first, last = torch.maximum(self.first, other.first), torch.minimum(self.last, other.last)
        return Form(max(self.low, other.low), min(self.high, other.high), lengths, dense, first, last)


EVERYTHING = Form()
"""Every key is allowed."""
