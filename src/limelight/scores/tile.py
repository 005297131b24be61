"""A score given as any function of a tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limelight.contract import require_count
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector
from limelight.scores.protocol import Score, TileGradient


@dataclass(frozen=True, eq=False)
class TileScore(Score):
    """See `tile_score`."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    cost: int | None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors given after the function."""
        return self.tensors

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Score:
        """The same function of other tensors."""
        return replace(self, tensors=parameters)

    def check(self, query: Tensor, key: Tensor) -> None:
        """The function decides about widths."""

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing to do."""
        return query, key

    def plain_scale(self, width: int) -> float | None:
        """Not known to be a dot product."""
        return None

    def pair_cost(self, width: int) -> int:
        """As given; the width when not given."""
        return self.cost if self.cost is not None else max(1, width)

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """The function may treat heads differently, so it gets them all."""
        return None

    def proves_finite(self) -> bool:
        """Not known."""
        return False

    def saturates(self) -> bool:
        """Not known."""
        return False

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """fn(query, key, *parameters, query_index, key_index), checked for its shape."""
        scores = self.function(query, key, *parameters, query_index=block.row_index(), key_index=block.column_index())
        want = (*query.shape[:-1], key.shape[-2])
        if not isinstance(scores, Tensor) or tuple(scores.shape) != want:
            have = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ArgumentError(
                f"tile_score(fn): fn must return the scores [..., t, s] of its tile, here {list(want)}; it returned "
                f"{have}."
            )
        scores = scores.to(query.dtype)
        # The caller writes into the scores; the function may have returned one of its inputs, or a view of it.
        return (scores if scores.requires_grad else scores.clone()), ()

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """torch.autograd.grad on the tile alone."""
        with torch.enable_grad():
            leaves = tuple(leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in (query, key, *parameters))
            scores, _ = self.tile(leaves[0], leaves[1], leaves[2:], block)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not scores.requires_grad:
            return TileGradient(torch.zeros_like(query), torch.zeros_like(key), (None,) * len(parameters))
        found = iter(torch.autograd.grad(scores, wanted, gradient, allow_unused=True))
        grads = [next(found) if leaf.requires_grad else None for leaf in leaves]
        to_query = grads[0] if grads[0] is not None else torch.zeros_like(query)
        to_key = grads[1] if grads[1] is not None else torch.zeros_like(key)
        return TileGradient(to_query, to_key, tuple(grads[2:]))


def tile_score(fn: Callable[..., Tensor], *parameters: Tensor, pair_cost: int | None = None) -> Score:
    """Any score, written as a function of a tile; gradients flow to query, key and the parameters.

    Arguments:
        fn: fn(query [..., H, t, D], key [..., H, s, D], *parameters, query_index [t], key_index [s]) -> [..., H, t, s]
            (int64 positions in the whole call, in [0, T) and [0, S)). Score (i, j) depends on query i and key j alone.
            Gradients reach only what is passed as a parameter, not tensors that fn closes over.
        parameters: tensors that fn reads.
        pair_cost: numbers that fn holds at once per (query, key) pair, so that blocks stay small; the width D if None.

    Errors: ArgumentError if fn is not callable, a parameter is not a tensor, or fn returns another shape.

    Example (ALiBi): `tile_score(lambda q, k, m, query_index, key_index:
    q @ k.mT - m * (query_index[:, None] - key_index), slopes, pair_cost=3)` with slopes [H, 1, 1].
    """
    if not callable(fn):
        raise ArgumentError(f"tile_score(fn): fn must be a function of a query tile and a key tile; it is {fn!r}.")
    for place, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            raise ArgumentError(
                f"tile_score(fn, *parameters): each parameter must be a tensor; number {place} is "
                f"{type(parameter).__name__}. Bind other things with functools.partial."
            )
    if pair_cost is not None:
        require_count("pair_cost", pair_cost, least=1)
    return TileScore(fn, parameters, pair_cost)
