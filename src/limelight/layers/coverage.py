"""Additive attention that knows what it has attended to: coverage."""

import torch
from torch import Tensor, nn

from limelight.attend import look
from limelight.masks import Mask
from limelight.normalizers import Normalizer
from limelight.scores import additive


class CoverageAttention(nn.Module):
    """e_ts = v · tanh(W s_t + U h_s + w_c g_ts + b), a_t = softmax(e_t), g_ts = Σ_{t' < t} a_t's, c_t = Σ_s a_ts h_s.

    The coverage g_t is what each source position has received so far; w_c is [A]. See, Liu and Manning (2017), "Get to
    the point", equation 11; Tu et al. (2016), "Modeling coverage for neural machine translation", who divide the sum by
    a learned fertility of each word. Each step needs the weights of the one before, so it goes step by step; g_t
    changes the keys, so on `attend` it is an additive score of keys U h_s + b + w_c g_ts.

    Args:
        query_width: Q, the width of the decoder's state.
        memory_width: M, the width of the encoder's outputs.
        width: A, the width in which the two meet.
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.
    """

    def __init__(self, query_width: int, memory_width: int, width: int, *, normalizer: Normalizer | None = None):
        super().__init__()
        self.normalizer = normalizer
        self.query_projection = nn.Linear(query_width, width, bias=False)
        self.memory_projection = nn.Linear(memory_width, width)
        self.coverage_projection = nn.Linear(1, width, bias=False)
        self.vector = nn.Parameter(torch.empty(width).uniform_(-1, 1) / width**0.5)

    def keys(self, memory: Tensor) -> Tensor:
        """U h + b, [B, S, A] of a memory [B, S, M]; computed once, used at every step."""
        return self.memory_projection(memory)

    def forward(
        self, state: Tensor, keys: Tensor, memory: Tensor, mask: Mask | None, coverage: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of K decoders side by side, such as the hypotheses of a beam.

        Args:
            state: decoder states [B, K, Q].
            keys: what `keys(memory)` gave, [B, S, A].
            memory: the encoder's outputs h, [B, S, M].
            mask: who may attend to whom, usually `lengths(source_lengths)`.
            coverage: g, [B, K, S]; 0 before the first step.

        Returns:
            contexts [B, K, M]; weights [B, K, S]; the coverage of the next step, [B, K, S].
        """
        query = self.query_projection(state)[:, :, None, None]  # [B, K, 1, 1, A]: a sequence for each hypothesis
        key = keys[:, None] + self.coverage_projection(coverage.to(keys.dtype).unsqueeze(-1))  # [B, K, S, A]
        value = memory[:, None].expand(-1, state.shape[1], -1, -1)
        options = {"score": additive(self.vector), "mask": mask, "normalizer": self.normalizer}
        context, view = look(query, key.unsqueeze(2), value.unsqueeze(2), **options)
        weights = view.dense()[:, :, 0, 0]
        return context[:, :, 0, 0], weights, coverage + weights


def coverage_loss(weights: Tensor) -> Tensor:
    """Σ_s min(a_ts, g_ts) of each step: what a step attends to although it has been attended to before.

    See, Liu and Manning (2017), equation 12. Differentiable.

    Args:
        weights: a, [B, T, S].

    Returns:
        [B, T]; leave out the steps that are padding before you sum or average.
    """
    before = weights.cumsum(1) - weights
    return torch.minimum(weights, before).sum(-1)
