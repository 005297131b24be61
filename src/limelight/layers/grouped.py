"""Multi-head attention with grouped queries."""

from typing import Any

import torch
from torch import Tensor, nn

from limelight.attend import attend, look
from limelight.errors import ArgumentError
from limelight.layers.guided import link_log_weights
from limelight.layers.rotary import RotaryPositions
from limelight.masks import Mask
from limelight.normalizers import Normalizer
from limelight.scores import cosine


class GroupedQueryAttention(nn.Module):
    """Concat(head_1 ... head_H) W_O, head_h = attend(x W_Q^h, m W_K^g, m W_V^g), g = h // (H / G).

    As many key and value heads as query heads: multi-head attention (Vaswani et al. 2017, section 3.2.2); one:
    multi-query attention (Shazeer 2019); between them: grouped-query attention (Ainslie et al. 2023). Keys and values
    are made by `keys_values`, so that a decoder can make those of its memory once and keep those of its past. Dropout
    on the weights is drawn anew at each call in training mode.

    Args:
        width: C; a multiple of `heads`.
        heads: H.
        dropout: the share of weights dropped in training.
        key_value_heads: G, which divides H; H unless given.
        rotary: turns queries and keys by their positions, such as `RotaryPositions(width // heads)`.
        qk_norm: QK-norm: queries and keys of length 1, times a learned number for each head that starts here, such as
            `qk_norm_start(256)`. Henry et al. (2020), with one number for all heads.
        gated: what the heads found is multiplied by sigmoid(x W_g + b_g), each column by its own, before W_O. Qiu et
            al. (2025), "Gated attention for large language models", arXiv 2505.06708, section 2.2.
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.

    Raises:
        ArgumentError: width is no multiple of heads, or heads none of key_value_heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        key_value_heads: int | None = None,
        *,
        rotary: RotaryPositions | None = None,
        qk_norm: float | None = None,
        gated: bool = False,
        normalizer: Normalizer | None = None,
    ):
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
        self.rotary = rotary
        self.scale = None if qk_norm is None else nn.Parameter(torch.full((heads,), float(qk_norm)))
        self.gate = nn.Linear(width, width) if gated else None
        self.normalizer = normalizer
        # Glorot per projection, as if query, key and value stood apart.
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.output.weight):
            nn.init.xavier_uniform_(weight)

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """[..., T, C] -> [..., H, T, D]; x begins at position `start`, which only rotary positions ask for."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        return query if self.rotary is None else self.rotary(query, start)

    def keys_values(self, memory: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """[..., S, C] -> keys and values, each [..., G, S, D]; `start` as in `queries`."""
        both = self.key_value(memory).unflatten(-1, (2, self.key_value_heads, -1))  # [..., S, 2, G, D]
        key, value = both.unbind(-3)
        key, value = key.transpose(-3, -2), value.transpose(-3, -2)
        return (key if self.rotary is None else self.rotary(key, start)), value

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask | None = None,
        *,
        start: int = 0,
        observe: bool = False,
        head: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x to keys and values made by `keys_values`.

        Args:
            x: [..., T, C].
            key: [..., G, S, D].
            value: [..., G, S, D].
            mask: who may attend to whom.
            start: the position of x's first element, for rotary positions.
            observe: also return the weights.
            head: those of this head; None for their mean over all heads.

        Returns:
            [..., T, C]; weights [..., T, S], or None.
        """
        options = self._options(mask)
        options["dropout"] = self.dropout if self.training else 0.0
        weights = None
        if observe:
            attended, view = look(self.queries(x, start), key, value, **options)
            weights = view.mean().dense() if head is None else view[..., head, :, :]
        else:
            attended = attend(self.queries(x, start), key, value, **options)
        merged = attended.transpose(-3, -2).flatten(-2)  # [..., H, T, D] -> [..., T, C]
        if self.gate is not None:
            merged = merged * self.gate(x).sigmoid()
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
        return link_log_weights(query, key, links, **self._options(mask))

    def _options(self, mask: Mask | None) -> dict[str, Any]:
        """How queries and keys meet, as `attend` takes it."""
        score = None if self.scale is None else cosine(self.scale)
        return {"score": score, "mask": mask, "normalizer": self.normalizer}


def append_cache(past: tuple[Tensor, Tensor] | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of the past with those of the present behind them, along the sequence axis."""
    if past is None:
        return key, value
    return torch.cat([past[0], key], -2), torch.cat([past[1], value], -2)
