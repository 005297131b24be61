"""What a backend is, and the one checked form of a call that all backends take."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from limelight.masks import Block, Mask
from limelight.masks.block import Selector
from limelight.scores import Score


@dataclass(slots=True)
class Call:
    """One checked call. Leading axes are folded into N; query and key have been through `score.prepare`.

    query [N, H, T, D'], key [N, G, S, D''], value [N, G, S, E], bias [N or 1, H or 1, T or 1, S or 1] or None. The seed
    is an integer where dropout is above 0. `wants_lse`: the caller looks, so lse has to be returned.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    mask: Mask | None
    bias: Tensor | None
    dropout: float
    seed: int
    lead: tuple[int, ...]
    wants_lse: bool

    def block(self, batch: Selector, rows: Selector, columns: Selector, head: Selector | None = None) -> Block:
        """A block of this call's matrix, all heads unless said otherwise."""
        heads, queries, keys = self.query.shape[1], self.query.shape[2], self.key.shape[2]
        head = slice(0, heads) if head is None else head
        return Block(self.lead, heads, queries, keys, batch, head, rows, columns, self.query.device)

    def whole(self) -> Block:
        """The block that is the whole matrix."""
        n, _, queries, _ = self.query.shape
        return self.block(slice(0, n), slice(0, queries), slice(0, self.key.shape[2]))

    def pair_cost(self) -> int:
        """Numbers held at once per (query, key) pair while a tile is computed."""
        return max(1, self.score.pair_cost(self.key.shape[-1]))

    def pairs(self) -> int:
        """N H T S."""
        return math.prod(self.query.shape[:3]) * self.key.shape[2]


class Result(NamedTuple):
    """Output [N, H, T, E]; lse [N, H, T] in the accumulation dtype (may be None when not wanted).

    weights [N, H, T, S] before dropout, without a graph, where the whole matrix was one block and they are there.
    """

    output: Tensor
    lse: Tensor | None
    weights: Tensor | None = None


class Backend(ABC):
    """Interface of all backends. They never import one another."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name by which a call asks for it."""

    @abstractmethod
    def refusal(self, call: Call) -> str | None:
        """Why it cannot run this call, in a phrase; None if it can."""

    @abstractmethod
    def fastest(self, call: Call) -> bool:
        """Whether "auto" may take it, given that it can run and no backend before it was taken: as measured."""

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Run a call that `refusal` had nothing against."""


def heads_of(tensor: Tensor, heads: int) -> Tensor:
    """Repeat the key heads of [n, G, s, D] to the query heads: query head h meets key head h // (H / G)."""
    n, groups, s, width = tensor.shape
    if groups == heads:
        return tensor
    return tensor.unsqueeze(2).expand(n, groups, heads // groups, s, width).reshape(n, heads, s, width)


def groups_of(gradient: Tensor, groups: int) -> Tensor:
    """The reverse for a gradient [n, H, s, D]: sum over the query heads that share a key head."""
    n, heads, s, width = gradient.shape
    return gradient if heads == groups else gradient.view(n, groups, heads // groups, s, width).sum(2)
