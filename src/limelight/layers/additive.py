"""Bahdanau's additive attention."""

import torch
from torch import Tensor, nn

from limelight.layers.memory_attention import MemoryAttention
from limelight.normalizers import Normalizer
from limelight.scores import Score, additive


class BahdanauAttention(MemoryAttention):
    """e_ts = v · tanh(W q_t + U h_s), a = softmax_s(e), c_t = Σ_s a_ts h_s.

    W is [A, Q], U is [A, M], v is [A]. Bahdanau, Cho and Bengio (2014), "Neural machine translation by jointly learning
    to align and translate", section 3.1 and appendix A.1.2. There the query is the decoder's previous state s_{t-1};
    which state to pass is the decoder's choice, not this layer's. U carries a bias, which the paper leaves out.

    Args:
        query_width: Q, the width of the decoder's state.
        memory_width: M, the width of the encoder's outputs.
        width: A, the width in which the two meet.
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.
    """

    def __init__(self, query_width: int, memory_width: int, width: int, *, normalizer: Normalizer | None = None):
        super().__init__(normalizer)
        self.query_projection = nn.Linear(query_width, width, bias=False)
        self.memory_projection = nn.Linear(memory_width, width)
        self.vector = nn.Parameter(torch.empty(width).uniform_(-1, 1) / width**0.5)

    def keys(self, memory: Tensor) -> Tensor:
        """U h, [B, S, A]."""
        return self.memory_projection(memory)

    def queries(self, state: Tensor) -> Tensor:
        """W s, [B, T, A]."""
        return self.query_projection(state)

    def score(self) -> Score:
        """The score v · tanh(query + key)."""
        return additive(self.vector)
