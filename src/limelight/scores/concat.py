"""The concat score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limelight.arrays import as_tensor
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector
from limelight.scores.additive import Additive
from limelight.scores.protocol import Score, TileGradient, require_weight


@dataclass(frozen=True, eq=False)
class Concat(Score):
    """See `concat`."""

    vector: Tensor
    weight: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The vector; the weight is used up in `prepare`."""
        return (self.vector,)

    def check(self, query: Tensor, key: Tensor) -> None:
        """The weight is [A, D of the query + D of the key]."""
        width = query.shape[-1] + key.shape[-1]
        require_weight("concat(vector)", self.vector, (self.weight.shape[-2],), query)
        require_weight("concat(weight)", self.weight, (self.weight.shape[-2], width), query)

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """W [q; k] = W_q q + W_k k: each half is applied once per position, so that an additive score is left."""
        width = query.shape[-1]
        halves = Additive(self.vector, self.weight[..., :width], self.weight[..., width:])
        return halves.prepare(query, key)

    def plain_scale(self, width: int) -> float | None:
        """Not a dot product."""
        return None

    def tanh_vector(self) -> Tensor | None:
        """The vector."""
        return self.vector

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Score:
        """An additive score is left."""
        (vector,) = parameters
        return Additive(vector)

    def pair_cost(self, width: int) -> int:
        """As the additive score."""
        return Additive(self.vector).pair_cost(width)

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """As the additive score."""
        return Additive(self.vector).of_heads(parameters, head)

    def proves_finite(self) -> bool:
        """As the additive score."""
        return True

    def saturates(self) -> bool:
        """As the additive score."""
        return True

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As the additive score."""
        return Additive(self.vector).tile(query, key, parameters, block)

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """As the additive score."""
        return Additive(self.vector).tile_gradient(query, key, parameters, block, kept, gradient)


def concat(vector: Tensor, weight: Tensor) -> Score:
    """The concat score: v·tanh(W [q; k]).

    The *concat* score of Luong, Pham, Manning 2015 (arXiv 1508.04025, section 3.1). The concatenation is never built.

    Arguments:
        vector: v, [A] (or one per head, [H, A]).
        weight: W, [A, width of query + width of key] (or [H, A, .]).

    Errors: ArgumentError for a vector or weight of another number of axes and, when used, for widths that do not fit.
    """
    vector, weight = as_tensor(vector), as_tensor(weight)
    if not isinstance(vector, Tensor) or vector.ndim not in (1, 2):
        shape = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ArgumentError(f"concat(vector): vector must be a tensor [A], or [H, A] with one per head; it is {shape}.")
    if not isinstance(weight, Tensor) or weight.ndim not in (2, 3):
        shape = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ArgumentError(f"concat(weight): weight must be a tensor [A, D of query + D of key]; it is {shape}.")
    return Concat(vector, weight)
