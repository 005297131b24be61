"""Luong's global attention: dot, general and concat."""

from typing import Literal

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers.memory_attention import MemoryAttention
from limelight.normalizers import Normalizer
from limelight.scores import Score, additive, dot

LuongScore = Literal["dot", "general", "concat"]


class LuongAttention(MemoryAttention):
    """Global attention with one of three scores of a decoder state s_t and an encoder output h_s.

    - dot:      s_t · h_s, for which both have one width;
    - general:  s_t · (W h_s), W [Q, M];
    - concat:   v · tanh(W [s_t; h_s]), W [A, Q + M].

    Luong, Pham and Manning (2015), "Effective approaches to attention-based neural machine translation", equation 8.
    `general` applies W to the memory and `concat` splits its W in two, so that what belongs to the memory is computed
    once per sentence; the scores are the same.

    Args:
        kind: "dot", "general" or "concat".
        query_width: Q, the width of the decoder's state.
        memory_width: M, the width of the encoder's outputs.
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.

    Raises:
        ArgumentError: an unknown kind, or "dot" with two different widths.
    """

    def __init__(self, kind: LuongScore, query_width: int, memory_width: int, *, normalizer: Normalizer | None = None):
        super().__init__(normalizer)
        if kind not in ("dot", "general", "concat"):
            raise ArgumentError(f"kind: must be 'dot', 'general' or 'concat', got {kind!r}")
        if kind == "dot" and query_width != memory_width:
            raise ArgumentError(
                f"kind: 'dot' needs queries and memory of one width, got {query_width} and {memory_width}; "
                "take 'general', or project the memory first"
            )
        self.kind = kind
        self.query_projection: nn.Module = nn.Identity()
        self.memory_projection: nn.Module = nn.Identity()
        if kind == "general":
            self.memory_projection = nn.Linear(memory_width, query_width, bias=False)
        if kind == "concat":
            self.query_projection = nn.Linear(query_width, query_width, bias=False)
            self.memory_projection = nn.Linear(memory_width, query_width)
            self.vector = nn.Parameter(torch.empty(query_width).uniform_(-1, 1) / query_width**0.5)

    def keys(self, memory: Tensor) -> Tensor:
        """h, W h, or the memory's half of W [s; h]."""
        return self.memory_projection(memory)

    def queries(self, state: Tensor) -> Tensor:
        """s, or the state's half of W [s; h]."""
        return self.query_projection(state)

    def score(self) -> Score:
        """A plain dot product (no scale), or v · tanh(query + key)."""
        return additive(self.vector) if self.kind == "concat" else dot(scale=1.0)
