"""Multi-head attention with grouped queries."""

import torch
from torch import Tensor, nn

from limelight.attend import attend, look
from limelight.errors import ArgumentError
from limelight.layers.guided import link_log_weights
from limelight.masks import Mask


class GroupedQueryAttention(nn.Module):
    """Concat(head_1 ... head_H) W_O, head_h = attend(x W_Q^h, m W_K^g, m W_V^g), g = h // (H / G).

    As many key and value heads as query heads: multi-head attention (Vaswani et al. 2017, section 3.2.2); one:
    multi-query attention (Shazeer 2019); between them: grouped-query attention (Ainslie et al. 2023). Keys and values
    are made by `keys_values`, so that a decoder can make those of its memory once and keep those of its past. Dropout
    on the weights is drawn anew at each call in training mode.

    Args:
        width: C; a multiple of `heads`.
        heads: H.
        key_value_heads: G, which divides H; H unless given.
        dropout: the share of weights dropped in training.

    Raises:
        ArgumentError: width is no multiple of heads, or heads none of key_value_heads.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, key_value_heads: int | None = None):
        super().__init__()
        groups = heads if key_value_heads is None else key_value_heads
        if width % heads:
            raise ArgumentError(f"heads: must divide the width {width}, got {heads}")
        if groups < 1 or heads % groups:
            raise ArgumentError(f"key_value_heads: must divide the {heads} heads, got {groups}")
        self.heads, self.key_value_heads = heads, groups
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width // heads * groups)
        self.output = nn.Linear(width, width)
        # Glorot per projection, as if query, key and value stood apart.
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.output.weight):
            nn.init.xavier_uniform_(weight)

    def queries(self, x: Tensor) -> Tensor:
        """[..., T, C] -> [..., H, T, D]."""
        return self.query(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[..., S, C] -> keys and values, each [..., G, S, D]."""
        both = self.key_value(memory).unflatten(-1, (2, self.key_value_heads, -1))  # [..., S, 2, G, D]
        key, value = both.unbind(-3)
        return key.transpose(-3, -2), value.transpose(-3, -2)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask | None = None,
        *,
        observe: bool = False,
        head: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x to keys and values made by `keys_values`.

        Args:
            x: [..., T, C].
            key: [..., G, S, D].
            value: [..., G, S, D].
            mask: who may attend to whom.
            observe: also return the weights.
            head: those of this head; None for their mean over all heads.

        Returns:
            [..., T, C]; weights [..., T, S], or None.
        """
        dropout = self.dropout if self.training else 0.0
        weights = None
        if observe:
            attended, view = look(self.queries(x), key, value, mask=mask, dropout=dropout)
            weights = view.dense().mean(-3) if head is None else view[..., head, :, :]
        else:
            attended = attend(self.queries(x), key, value, mask=mask, dropout=dropout)
        merged = attended.transpose(-3, -2).flatten(-2)  # [..., H, T, D] -> [..., T, C]
        return self.output(merged), weights

    def log_weights(
        self, x: Tensor, key: Tensor, links: Tensor, mask: Mask | None = None, *, head: int | None = None
    ) -> Tensor:
        """The log weights of single links, [P], of x [B, T, C] and keys [B, G, S, D]: differentiable.

        Args:
            x: [B, T, C].
            key: [B, G, S, D], of `keys_values`.
            links: int64 [P, 3], (row of the batch, query, key).
            mask: who may attend to whom.
            head: of this head; None for the log of the mean over all heads.
        """
        query = self.queries(x)
        if head is not None:
            group = head * self.key_value_heads // self.heads
            query, key = query[:, head : head + 1], key[:, group : group + 1]
        return link_log_weights(query, key, links, mask=mask)


def append_cache(past: tuple[Tensor, Tensor] | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of the past with those of the present behind them, along the sequence axis."""
    if past is None:
        return key, value
    return torch.cat([past[0], key], -2), torch.cat([past[1], value], -2)
