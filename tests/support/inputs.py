"""Inputs for the operation: random tensors of prime sizes, each score and mask beside what the oracle takes for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tests.support.oracle import RowScore
from torch import Tensor

import limelight
from limelight.backends import tiling
from limelight.scores import Score


@dataclass
class Sizes:
    """Primes where they can be: a swapped axis shows."""

    lead: tuple[int, ...] = (2,)
    H: int = 3
    G: int = 3
    T: int = 5
    S: int = 7
    D: int = 11
    E: int = 13

    @property
    def terms(self) -> int:
        return self.T * math.prod(self.lead) * self.H + self.S + self.D + self.E

    @property
    def full(self) -> tuple[int, ...]:
        return (*self.lead, self.H, self.T, self.S)


def tensors(sizes: Sizes, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value: leaves that want gradients."""
    maker = torch.Generator().manual_seed(seed)
    shapes = ((sizes.H, sizes.T, sizes.D), (sizes.G, sizes.S, sizes.D), (sizes.G, sizes.S, sizes.E))
    query, key, value = (torch.randn(*sizes.lead, *shape, generator=maker, dtype=torch.float64) for shape in shapes)
    return query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_(), value.to(dtype).requires_grad_()


@dataclass
class ScoreCase:
    """`make` turns leaf tensors into the library's score and the oracle's, `leaves` are those tensors."""

    leaves: tuple[Tensor, ...]
    make: Callable[..., Score]
    oracle: Callable[..., RowScore]


def _leaf(maker: torch.Generator, *shape: int) -> Tensor:
    return (torch.randn(*shape, generator=maker, dtype=torch.float64) / 2).requires_grad_()


def score_case(name: str, sizes: Sizes, seed: int = 1) -> ScoreCase:
    """The score of that name in float64."""
    maker = torch.Generator().manual_seed(seed + 1000)
    D, H, A = sizes.D, sizes.H, 17
    if name == "dot":
        scale = 1 / math.sqrt(D)
        return ScoreCase((), lambda: limelight.dot(), lambda: lambda q, k, h, i, j: (k * q).sum(-1) * scale)
    if name == "plain dot":
        return ScoreCase((), lambda: limelight.dot(1.0), lambda: lambda q, k, h, i, j: (k * q).sum(-1))
    if name == "capped dot":
        c = 1.5
        return ScoreCase(
            (), lambda: limelight.dot(1.0, cap=c), lambda: lambda q, k, h, i, j: c * torch.tanh((k * q).sum(-1) / c)
        )
    if name == "general":
        leaves = (_leaf(maker, D, D),)
        return ScoreCase(leaves, limelight.general, lambda w: lambda q, k, h, i, j: (k * (q @ w)).sum(-1))
    if name == "additive":
        leaves = (_leaf(maker, A), _leaf(maker, A, D), _leaf(maker, A, D))
        return ScoreCase(
            leaves, limelight.additive, lambda v, w, u: lambda q, k, h, i, j: (torch.tanh(w @ q + k @ u.T) * v).sum(-1)
        )
    if name == "additive per head":
        return ScoreCase(
            (_leaf(maker, H, D),),
            limelight.additive,
            lambda v: lambda q, k, h, i, j: (torch.tanh(q + k) * v[h]).sum(-1),
        )
    if name == "concat":
        leaves = (_leaf(maker, A), _leaf(maker, A, 2 * D))
        return ScoreCase(
            leaves,
            limelight.concat,
            lambda v, w: lambda q, k, h, i, j: (torch.tanh(torch.cat((q.expand_as(k), k), -1) @ w.T) * v).sum(-1),
        )
    if name == "gaussian":
        leaves = (_leaf(maker, sizes.T), _leaf(maker, D))
        return ScoreCase(
            leaves,
            lambda c, v: limelight.gaussian(limelight.additive(v), c.expand(*sizes.lead, sizes.T) * 3, 1.5),
            lambda c, v: lambda q, k, h, i, j: (torch.tanh(q + k) * v).sum(-1) - (j - c[i] * 3) ** 2 / (2 * 1.5**2),
        )
    assert name == "tile"
    leaves = (_leaf(maker, H, 1, 1), _leaf(maker, D))
    return ScoreCase(
        leaves,
        lambda m, c: limelight.tile_score(_tile, m, c, pair_cost=3),
        lambda m, c: lambda q, k, h, i, j: torch.sin((k * q * c).sum(-1)) + m[h, 0, 0] * (i - j) * 0.1,
    )


def _tile(q: Tensor, k: Tensor, m: Tensor, c: Tensor, *, query_index: Tensor, key_index: Tensor) -> Tensor:
    return torch.sin((q * c) @ k.mT) + m * (query_index[:, None] - key_index) * 0.1


SCORES = ("dot", "plain dot", "capped dot", "general", "additive", "additive per head", "concat", "gaussian", "tile")


def call(score: ScoreCase, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """`attend` with the score's leaves in the dtype of the inputs."""
    return limelight.attend(query, key, value, score=score.make(*(x.to(query.dtype) for x in score.leaves)), **options)


@contextmanager
def blocks_of(budget: int) -> Iterator[None]:
    """Cut every call into blocks of at most that many numbers."""
    before, tiling.BUDGET = tiling.BUDGET, budget
    try:
        yield
    finally:
        tiling.BUDGET = before
