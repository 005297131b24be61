"""What a score is: how one query meets one key, computed tile by tile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector


class TileGradient(NamedTuple):
    """Gradients of a tile: to the query tile, the key tile, and one per tensor of `parameters` (None: not wanted)."""

    query: Tensor
    key: Tensor
    parameters: tuple[Tensor | None, ...]


class Score(ABC):
    """Interface of all scores. To add one, add a file with a frozen dataclass that implements these methods.

    When and how often: `check` and `prepare` once per call, in ordinary autograd; `tile` once per block in the forward
    pass and once per block in the backward pass, `tile_gradient` once per block after it. Score (i, j) depends on
    query i and key j only. Tiles arrive in the accumulation dtype: query [n, H, t, D'], key [n, H, s, D''] (key heads
    are repeated to H), already prepared.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that `tile` reads besides query and key; gradients flow to them."""

    @abstractmethod
    def check(self, query: Tensor, key: Tensor) -> None:
        """Raise ArgumentError if the widths of query and key do not fit the score."""

    @abstractmethod
    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What is done once per query and once per key, in O((T + S) D): (query', key') for `tile`."""

    @abstractmethod
    def plain_scale(self, width: int) -> float | None:
        """The number c if the tile is c q·k of the prepared query and key of that width, before `soft_cap`; or None."""

    def soft_cap(self) -> float | None:
        """The number c if a tile that has a `plain_scale` is c tanh(s / c) of the product s; None if it is s itself."""
        return None

    def tanh_vector(self) -> Tensor | None:
        """The vector v, [D] or [H, D], if the tile is v·tanh(q + k) of the prepared query and key; else None."""
        return None

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Score:
        """The same score, already prepared, with other tensors in the place of `parameters`."""
        if parameters:
            raise NotImplementedError(f"{type(self).__name__} has parameters and does not say how to replace them")
        return self

    @abstractmethod
    def pair_cost(self, width: int) -> int:
        """Numbers held at once per (query, key) pair while a tile is computed: 1 for dot, D for additive."""

    @abstractmethod
    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """The parameters for some of the heads only; None if the tile has to be computed for all heads."""

    @abstractmethod
    def proves_finite(self) -> bool:
        """Whether finite scores of a tile prove that where the slope is 0, `tile_gradient` leaves no NaN.

        So for the dot product: a NaN or inf anywhere in query or key shows in a score.
        """

    @abstractmethod
    def saturates(self) -> bool:
        """Whether inf in query or key gives a finite score with a slope of 0, as it does inside a tanh."""

    @abstractmethod
    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores [n, H, t, s], a fresh tensor, and what `tile_gradient` would like kept (nothing: an empty tuple)."""

    @abstractmethod
    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """Gradients from `gradient` [n, H, t, s], that of the scores. It and `kept` may be overwritten."""


def require_same_width(name: str, query: Tensor, key: Tensor) -> None:
    """Raise ArgumentError unless query and key have the same width D."""
    if query.shape[-1] != key.shape[-1]:
        raise ArgumentError(
            f"score {name}: query and key must have the same width D; query has {query.shape[-1]} and key "
            f"{key.shape[-1]}. Project one of them, or use general(weight)."
        )


def require_weight(name: str, weight: Tensor, want: tuple[int, ...], like: Tensor) -> None:
    """Raise ArgumentError unless a score's weight has that shape (in its last axes) and the device of the inputs."""
    if tuple(weight.shape[-len(want) :]) != want or weight.ndim > len(want) + 1:
        raise ArgumentError(
            f"score {name} must have the shape {list(want)}, or that with a head axis in front; it is "
            f"{list(weight.shape)}."
        )
    if weight.ndim == len(want) + 1 and weight.shape[0] not in (1, like.shape[-3]):
        raise ArgumentError(
            f"score {name} has a head axis of {weight.shape[0]}, but there are {like.shape[-3]} heads. "
            f"Give one per head, or none."
        )
    if weight.dtype is not like.dtype and not torch.is_autocast_enabled(like.device.type):
        raise ArgumentError(
            f"score {name} must have the dtype of query, {like.dtype}; it is {weight.dtype}. Use .to(query.dtype)."
        )
    if weight.device != like.device:
        raise ArgumentError(
            f"score {name} must be on the device of query, {like.device}; it is on {weight.device}. "
            f"Use .to(query.device)."
        )
