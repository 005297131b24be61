"""What a recurrent decoder asks of its attention: one interface, so that Bahdanau and Luong are interchangeable."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from limelight.attend import attend, look
from limelight.layers.guided import link_log_weights
from limelight.masks import Mask
from limelight.normalizers import Normalizer
from limelight.scores import Score


class MemoryAttention(nn.Module, ABC):
    """Attention of a decoder's states over an encoder's memory, with one head.

    A leaf says how keys are made from the memory, once per sentence (`keys`), and how a query meets a key (`score`).

    Args:
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.
    """

    def __init__(self, normalizer: Normalizer | None = None):
        super().__init__()
        self.normalizer = normalizer

    @abstractmethod
    def keys(self, memory: Tensor) -> Tensor:
        """Keys [B, S, A] of a memory [B, S, M]; computed once, used at every step."""

    @abstractmethod
    def queries(self, state: Tensor) -> Tensor:
        """Queries [B, T, A] of decoder states [B, T, Q]."""

    @abstractmethod
    def score(self) -> Score:
        """The score that a query and a key of this attention meet by."""

    def forward(
        self, state: Tensor, keys: Tensor, memory: Tensor, mask: Mask | None = None, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Context vectors c_t = Σ_s a_ts h_s, and the weights a when `observe` is set.

        Args:
            state: decoder states [B, T, Q].
            keys: what `keys(memory)` gave, [B, S, A].
            memory: the encoder's outputs h, [B, S, M].
            mask: who may attend to whom, usually `lengths(source_lengths)`.
            observe: also return the weights.

        Returns:
            contexts [B, T, M]; weights [B, T, S], or None.
        """
        # [B, T, A] -> one head: [B, 1, T, A]
        query, key, value = self.queries(state).unsqueeze(1), keys.unsqueeze(1), memory.unsqueeze(1)
        score, normalizer = self.score(), self.normalizer
        if not observe:
            return attend(query, key, value, score=score, mask=mask, normalizer=normalizer).squeeze(1), None
        context, view = look(query, key, value, score=score, mask=mask, normalizer=normalizer)
        return context.squeeze(1), view.dense().squeeze(1)

    def log_weights(self, state: Tensor, keys: Tensor, links: Tensor, mask: Mask | None = None) -> Tensor:
        """The log weights of single links, [P], of decoder states [B, T, Q] and keys [B, S, A]: differentiable.

        `links` is int64 [P, 3], (row of the batch, query, key); memory grows with P, not with T x S.
        """
        query, key = self.queries(state).unsqueeze(1), keys.unsqueeze(1)
        return link_log_weights(query, key, links, score=self.score(), mask=mask, normalizer=self.normalizer)
