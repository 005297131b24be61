"""What a backend is, and the one checked form of a call that all backends take."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from limelight.masks import Block, Mask
from limelight.masks.block import Selector
from limelight.scores import Score


class Gather(NamedTuple):
    """What is to be observed beside the output: received mass, entropy, the `top` strongest links (0: none)."""

    received: bool = False
    entropy: bool = False
    top: int = 0


NOTHING = Gather()


class Gathered(NamedTuple):
    """What a backend observed on the way, without a graph; None for what it did not.

    received [N, H, S]; entropy [N, H, T], nats; top: indices (int64) and weights [N, H, T, k], strongest first.
    """

    received: Tensor | None = None
    entropy: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None


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
    gather: Gather = NOTHING

    def with_tensors(
        self, query: Tensor, key: Tensor, value: Tensor, parameters: tuple[Tensor, ...] | None = None
    ) -> Call:
        """The same call of other tensors; with other parameters of the score where they are given."""
        score = self.score if parameters is None else self.score.with_parameters(parameters)
        return replace(self, query=query, key=key, value=value, score=score)

    def without_tensors(self) -> Call:
        """The call without query, key and value, for what must not keep them alive."""
        gone = self.query.new_empty(0)
        return replace(self, query=gone, key=gone, value=gone)

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
    gathered: what `call.gather` asked for, as far as the backend does that on the way.
    """

    output: Tensor
    lse: Tensor | None
    weights: Tensor | None = None
    gathered: Gathered | None = None


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

    def gathers(self) -> bool:
        """Whether `run` answers `call.gather` on the way."""
        return False

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
