"""Luong's local attention: a window of the source around one place, which is given (local-m) or predicted (local-p)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from limelight.attend import look
from limelight.contract import require_count
from limelight.errors import ArgumentError
from limelight.layers.memory_attention import MemoryAttention
from limelight.masks import Mask, interval, lengths
from limelight.scores import gaussian


class LocalAttention(nn.Module, ABC):
    """Attention over the keys in [p_t - D, p_t + D] ∩ [0, S_b - 1], S_b being the length of the source.

    Luong, Pham and Manning (2015), section 3.2. A leaf says where p_t is (`centres`) and what is done around it. How a
    query meets a key is `inner`'s matter.

    Args:
        inner: the attention inside the window, such as `LuongAttention("general", Q, M)`.
        window: D, at least 1; the paper takes 10.

    Raises:
        ArgumentError: D is no integer of at least 1.
    """

    def __init__(self, inner: MemoryAttention, window: int = 10):
        super().__init__()
        require_count("window", window, least=1)
        self.inner = inner
        self.window = window

    def keys(self, memory: Tensor) -> Tensor:
        """Keys [B, S, A] of a memory [B, S, M], as the inner attention makes them; computed once."""
        return self.inner.keys(memory)

    @abstractmethod
    def centres(self, state: Tensor, source_lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """p_t of decoder states [B, T, Q], float, [B, T]."""

    @abstractmethod
    def around(
        self, centre: Tensor, mask: Mask, state: Tensor, keys: Tensor, memory: Tensor, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What `forward` gives, of centres [B, T] and the mask of their windows."""

    def forward(
        self,
        state: Tensor,
        keys: Tensor,
        memory: Tensor,
        source_lengths: Tensor | None = None,
        times: Tensor | None = None,
        *,
        observe: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Context vectors c_t = Σ_s a_ts h_s, and the weights a when `observe` is set.

        Args:
            state: decoder states [B, T, Q].
            keys: what `keys(memory)` gave, [B, S, A].
            memory: the encoder's outputs h, [B, S, M].
            source_lengths: S_b, int64 [B]; S everywhere when not given.
            times: int64 [B, T] (or [T]), the target position of each query; 0 ... T - 1 when not given.
            observe: also return the weights.

        Returns:
            contexts [B, T, M]; weights [B, T, S], or None.
        """
        if source_lengths is None:
            source_lengths = torch.full((len(memory),), memory.shape[1], device=memory.device)
        centre = self.centres(state, source_lengths, times)
        near = centre.detach()
        first, last = (near - self.window).ceil().long(), (near + self.window).floor().long()
        mask = interval(first, last) & lengths(source_lengths)
        return self.around(centre, mask, state, keys, memory, observe)


class LocalMonotonicAttention(LocalAttention):
    """local-m: p_t = min(t, S_b - 1), a_t = softmax of the inner score over the window around it.

    The paper has p_t = t; here a target that is longer than its source goes on looking at the source's end, so that no
    window is empty. Arguments as `LocalAttention`.
    """

    def centres(self, state: Tensor, source_lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """The times themselves, up to the end of the source."""
        times = torch.arange(state.shape[1], device=state.device) if times is None else times
        return torch.minimum(times.expand(state.shape[:2]), source_lengths[:, None] - 1).double()

    def around(
        self, centre: Tensor, mask: Mask, state: Tensor, keys: Tensor, memory: Tensor, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The inner attention, which sees the window only."""
        return self.inner(state, keys, memory, mask, observe=observe)


class LocalPredictiveAttention(LocalAttention):
    """local-p: p_t = S_b sigmoid(v_p · tanh(W_p s_t)), a_ts = softmax_s(e_ts) exp(-(s - p_t)² / 2σ²), σ = D / 2.

    Equations 9 and 10 of section 3.2: the softmax goes over the window [p_t - D, p_t + D], and the Gaussian comes after
    it, so that weights sum to less than 1 and gradients reach p_t. Source positions count from 0.

    On `attend` the Gaussian is part of the score, which gives the same weights up to a factor of each row,
    Σ_s exp(e_ts - (s - p_t)² / 2σ²) / Σ_s exp(e_ts): the ratio of two lse's.

    Args:
        inner: the attention inside the window.
        query_width: Q, the width of the decoder's state. W_p is [Q, Q], v_p [Q].
        window: D, at least 1.

    Raises:
        ArgumentError: D is no integer of at least 1, or the inner attention has another normalizer than softmax.
    """

    def __init__(self, inner: MemoryAttention, query_width: int, window: int = 10):
        super().__init__(inner, window)
        if inner.normalizer is not None and not inner.normalizer.is_softmax:
            raise ArgumentError(
                f"inner: its normalizer must be softmax(), to which the Gaussian is joined by the lse, got "
                f"{inner.normalizer.name}; LocalMonotonicAttention takes any"
            )
        self.place_projection = nn.Linear(query_width, query_width, bias=False)
        self.place_vector = nn.Parameter(torch.empty(query_width).uniform_(-1, 1) / query_width**0.5)

    def centres(self, state: Tensor, source_lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """p_t in (0, S_b) of decoder states [B, T, Q]: float32 or wider, [B, T]; differentiable. Times play no part."""
        logit = (self.place_projection(state).tanh() * self.place_vector).sum(-1)
        wide = torch.promote_types(logit.dtype, torch.float32)
        return source_lengths[:, None].to(wide) * logit.to(wide).sigmoid()

    def around(
        self, centre: Tensor, mask: Mask, state: Tensor, keys: Tensor, memory: Tensor, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The softmax over the window, then the Gaussian."""
        query, key, value = self.inner.queries(state).unsqueeze(1), keys.unsqueeze(1), memory.unsqueeze(1)
        score = self.inner.score()
        pulled, view = look(query, key, value, score=gaussian(score, centre, self.window / 2), mask=mask)
        # Of the softmax without the Gaussian only the lse is needed: any narrow value will do.
        _, plain = look(query, key, value[..., :1], score=score, mask=mask)
        share = torch.exp(view.lse - plain.lse.clamp(min=torch.finfo(plain.dtype).min)).unsqueeze(-1)
        context = (pulled * share.to(pulled.dtype)).squeeze(1)
        return context, (view.dense() * share).squeeze(1) if observe else None
