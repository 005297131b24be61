"""What a position bias is: one number per head and distance between key and query."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from limelight.contract import float_dtypes
from limelight.errors import ArgumentError
from limelight.masks.block import Block
from limelight.masks.causal import Align, offset


class Bias(ABC):
    """Interface of all position biases. To add one, add a file with a frozen dataclass that implements these methods.

    When and how often: both once per call. `by_distance` runs in ordinary autograd and in O(H (T + S)): the backends
    gather from its result and hand back its gradient, and autograd brings that to the bias's own tensors.
    """

    __slots__ = ()

    @abstractmethod
    def check(self, query: Tensor) -> None:
        """Raise ArgumentError if the bias does not fit a query [..., H, T, D]."""

    @abstractmethod
    def by_distance(self, whole: Block, dtype: torch.dtype) -> Tensor:
        """[H or 1, T + S - 1] in that dtype: place u is what is added to pair (i, j) with j - i = u - (T - 1).

        `whole` is the block that is the whole matrix. -inf forbids.
        """


def distances(whole: Block, align: Align) -> Tensor:
    """Key minus place of the query, p = S - T + i (p = i with `align="start"`), for every u: int64 [T + S - 1]."""
    first = -(whole.queries - 1) - offset(align, whole)
    return torch.arange(first, first + max(0, whole.queries + whole.keys - 1), device=whole.device)


def check_table(name: str, table: Tensor, query: Tensor) -> None:
    """Raise ArgumentError unless a tensor [H or 1, ...], or without a head axis, has the query's heads and device."""
    if table.ndim == 2 and table.shape[0] not in (1, query.shape[-3]):
        raise ArgumentError(
            f"bias {name} has a head axis of {table.shape[0]}, but there are {query.shape[-3]} heads. "
            f"Give one row per head, or a single one."
        )
    if table.device != query.device:
        raise ArgumentError(
            f"bias {name} must be on the device of query, {query.device}; it is on {table.device}. "
            f"Use .to(query.device)."
        )


def require_table(name: str, table: object, axes: tuple[int, ...], shape: str) -> Tensor:
    """The table, a float tensor with one of these numbers of axes and at least one number; else ArgumentError."""
    if not isinstance(table, Tensor) or table.dtype not in float_dtypes:
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise ArgumentError(f"{name} must be a float tensor {shape}; it is {kind}.")
    if table.ndim not in axes or table.numel() == 0:
        raise ArgumentError(f"{name} must be a tensor {shape}; its shape is {list(table.shape)}.")
    return table
