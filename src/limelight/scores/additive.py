"""The additive score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.errors import ArgumentError
from limelight.masks.block import Block, Selector, pick
from limelight.scores.projection import project
from limelight.scores.protocol import Score, TileGradient, require_same_width, require_weight


@dataclass(frozen=True, eq=False)
class Additive(Score):
    """See `additive`."""

    vector: Tensor
    query_weight: Tensor | None = None
    key_weight: Tensor | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The vector; the weights are used up in `prepare`."""
        return (self.vector,)

    def check(self, query: Tensor, key: Tensor) -> None:
        """Both sides have the vector's width once they are projected."""
        width = self.vector.shape[-1]
        require_weight("additive(vector)", self.vector, (width,), query)
        for name, inputs, weight in (("query", query, self.query_weight), ("key", key, self.key_weight)):
            if weight is not None:
                require_weight(f"additive({name}_weight)", weight, (width, inputs.shape[-1]), inputs)
            elif inputs.shape[-1] != width:
                raise ArgumentError(
                    f"score additive: {name} must have the width of the vector, {width}; it has {inputs.shape[-1]}. "
                    f"Project it first, or give {name}_weight [{width}, {inputs.shape[-1]}]."
                )
        if self.query_weight is None and self.key_weight is None:
            require_same_width("additive", query, key)

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(W s, U h)."""
        return project(query, self.query_weight), project(key, self.key_weight)

    def plain_scale(self, width: int) -> float | None:
        """Not a dot product."""
        return None

    def tanh_vector(self) -> Tensor | None:
        """The vector."""
        return self.vector

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Score:
        """Another vector."""
        (vector,) = parameters
        return Additive(vector)

    def pair_cost(self, width: int) -> int:
        """One tanh per feature."""
        return max(1, width)

    def of_heads(self, parameters: tuple[Tensor, ...], head: Selector) -> tuple[Tensor, ...] | None:
        """The vector, or its rows."""
        (vector,) = parameters
        return parameters if vector.ndim == 1 else (pick(vector, 0, head),)

    def proves_finite(self) -> bool:
        """NaN shows in the score; inf saturates, and its slope is 0."""
        return True

    def saturates(self) -> bool:
        """Inside the tanh."""
        return True

    def tile(
        self, query: Tensor, key: Tensor, parameters: tuple[Tensor, ...], block: Block
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """v·tanh(q + k) as 2 v·r - Σ v with r = sigmoid(2 (q + k)), four times as fast as tanh in torch; keeps r."""
        rise = torch.add((query + query).unsqueeze(3), key.unsqueeze(2), alpha=2).sigmoid_()
        (vector,) = parameters
        if vector.ndim == 1:
            # Heads that lie side by side leave `rise` in an order of its own.
            scores = torch.mv(rise.reshape(-1, rise.shape[-1]), vector).view(rise.shape[:-1])
            total = vector.sum()
        else:
            scores = torch.matmul(rise, vector[:, None, :, None]).squeeze(-1)
            total = vector.sum(-1)[:, None, None]
        return torch.sub(scores + scores, total), (rise,)

    def tile_gradient(
        self,
        query: Tensor,
        key: Tensor,
        parameters: tuple[Tensor, ...],
        block: Block,
        kept: tuple[Tensor, ...],
        gradient: Tensor,
    ) -> TileGradient:
        """With u = g r (1 - r): d q = 4 v Σ_j u, d k = 4 v Σ_i u, d v = Σ_ij g (2 r - 1)."""
        (rise,), (vector,) = kept, parameters
        if vector.ndim == 1:
            to_vector = torch.mv(rise.reshape(-1, rise.shape[-1]).T, gradient.reshape(-1))
            to_vector = 2.0 * to_vector - gradient.sum()
            row = 4.0 * vector
        else:
            to_vector = torch.einsum("nhts,nhtsa->ha", gradient, rise)
            to_vector = (2.0 * to_vector - gradient.sum((0, 2, 3)).unsqueeze(-1)).sum_to_size(vector.shape)
            row = 4.0 * vector.unsqueeze(1)
        slope = torch.ops.aten.sigmoid_backward(gradient.unsqueeze(-1), rise)
        if slope.shape[2] == 1:
            to_key = slope.squeeze(2).mul_(row)
            return TileGradient(to_key.sum(2, keepdim=True), to_key, (to_vector,))
        return TileGradient(slope.sum(3) * row, slope.sum(2) * row, (to_vector,))


def additive(vector: Tensor, query_weight: Tensor | None = None, key_weight: Tensor | None = None) -> Score:
    """The additive score: v·tanh(W q + U k).

    The alignment model of Bahdanau, Cho, Bengio 2014 (arXiv 1409.0473, appendix A.1.2). A bias inside the tanh is added
    to the query by the caller.

    Arguments:
        vector: v, [A] (or one per head, [H, A]).
        query_weight: W, [A, width of query] as in `nn.Linear` (or [H, A, .]); None: the query is projected already.
        key_weight: U, [A, width of key], in the same way.

    Errors: ArgumentError if `vector` is not a tensor of one or two axes and, when used, for widths that do not fit.

    Example: `attend(s, h, h, score=additive(v, W, U))` with s [B, 1, T, D], h [B, 1, S, E], W [A, D], U [A, E].
    """
    vector, query_weight, key_weight = as_tensor(vector), as_tensor(query_weight), as_tensor(key_weight)
    if not isinstance(vector, Tensor) or vector.ndim not in (1, 2):
        shape = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ArgumentError(
            f"additive(vector): vector must be a tensor [A], or [H, A] with one per head; it is {shape}."
        )
    return Additive(vector, query_weight, key_weight)
