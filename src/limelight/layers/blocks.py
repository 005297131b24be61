"""The blocks of a Transformer: attention and feed-forward, each in a residual branch with its norm."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers.dropout import Dropout
from limelight.layers.feedforward import Activation, FeedForward
from limelight.layers.grouped import GroupedQueryAttention, append_cache
from limelight.layers.norm import Norm, make_norm
from limelight.masks import Mask, causal

Place = Literal["pre", "post"]


class Residual(nn.Module):
    """x + dropout(branch(norm(x))), or norm(x + dropout(branch(x))): called with what the branch made of `enter(x)`.

    Post: Vaswani et al. (2017), section 5.4. Pre: Xiong et al. (2020), arXiv 2002.04745, who show why it trains without
    warm-up; a stack of pre-norm blocks has one more norm at its end.

    Args:
        width: C.
        place: "pre" or "post".
        dropout: the share of the branch's units dropped in training.
        norm: "layer" or "rms".

    Raises:
        ArgumentError: an unknown place or norm.
    """

    def __init__(self, width: int, place: Place, dropout: float = 0.0, norm: Norm = "layer"):
        super().__init__()
        if place not in ("pre", "post"):
            raise ArgumentError(f"place: the norm must be 'pre' or 'post', got {place!r}")
        self.norm = make_norm(norm, width)
        self.before = place == "pre"
        self.dropout = Dropout(dropout)

    def enter(self, x: Tensor) -> Tensor:
        """What the branch reads."""
        return self.norm(x) if self.before else x

    def leave(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of x and the branch's result."""
        total = x + self.dropout(branch)
        return total if self.before else self.norm(total)


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each in a `Residual`. Vaswani et al. (2017), section 3.1.

    Args:
        width: C.
        heads: H.
        feedforward: width inside the feed-forward network.
        dropout: share of weights, hidden units and branches dropped in training.
        place: "pre" or "post", where the norm stands.
        norm: "layer" or "rms".
        activation: "relu", "gelu" or "swiglu".
        attention: makes the self-attention; `GroupedQueryAttention(width, heads, dropout)` when not given. Another is
            where grouped heads, rotary positions, a gate or another normalizer come in.

    Raises:
        ArgumentError: a choice that is unknown, or a width that is no multiple of heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        place: Place = "pre",
        *,
        norm: Norm = "layer",
        activation: Activation = "relu",
        attention: Callable[[], GroupedQueryAttention] | None = None,
    ):
        super().__init__()
        self.attention = attention() if attention else GroupedQueryAttention(width, heads, dropout)
        self.attention_residual = Residual(width, place, dropout, norm)
        self.feedforward = FeedForward(width, feedforward, dropout, activation)
        self.feedforward_residual = Residual(width, place, dropout, norm)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """[B, S, C] -> [B, S, C]; with `causal()` it is the layer of a decoder-only model."""
        h = self.attention_residual.enter(x)
        attended, _ = self.attention(h, *self.attention.keys_values(h), mask)
        x = self.attention_residual.leave(x, attended)
        h = self.feedforward_residual.enter(x)
        return self.feedforward_residual.leave(x, self.feedforward(h))


class TransformerDecoderLayer(nn.Module):
    """Self-attention over what has been produced, cross-attention over the source, feed-forward.

    Each in a `Residual`. Vaswani et al. (2017), section 3.1. Arguments and errors as `TransformerEncoderLayer`, and
    `cross_attention`, which makes the cross-attention as `attention` makes the self-attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        place: Place = "pre",
        *,
        norm: Norm = "layer",
        activation: Activation = "relu",
        attention: Callable[[], GroupedQueryAttention] | None = None,
        cross_attention: Callable[[], GroupedQueryAttention] | None = None,
    ):
        super().__init__()
        plain = partial(GroupedQueryAttention, width, heads, dropout)
        self.self_attention = (attention or plain)()
        self.self_residual = Residual(width, place, dropout, norm)
        self.cross_attention = (cross_attention or plain)()
        self.cross_residual = Residual(width, place, dropout, norm)
        self.feedforward = FeedForward(width, feedforward, dropout, activation)
        self.feedforward_residual = Residual(width, place, dropout, norm)

    def forward(
        self,
        x: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Mask | None = None,
        *,
        observe: bool = False,
        head: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All target positions at once, each seeing itself and those before it.

        Args:
            x: [B, T, C].
            memory_key: of `cross_attention.keys_values(memory)`, [B, H, S, D].
            memory_value: of the same.
            memory_mask: who may attend to whom in the source.
            observe: also return the weights over the source.
            head: those of this head; None for their mean over all heads.

        Returns:
            [B, T, C]; weights [B, T, S], or None.
        """
        return self.attend_memory(
            self.attend_past(x), memory_key, memory_value, memory_mask, observe=observe, head=head
        )

    def attend_past(self, x: Tensor) -> Tensor:
        """The first branch alone, self-attention: [B, T, C] -> [B, T, C]."""
        h = self.self_residual.enter(x)
        attended, _ = self.self_attention(h, *self.self_attention.keys_values(h), causal())
        return self.self_residual.leave(x, attended)

    def attend_memory(
        self,
        x: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Mask | None = None,
        *,
        observe: bool = False,
        head: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The other branches, cross-attention and feed-forward, of what `attend_past` gave. Arguments as `forward`."""
        h = self.cross_residual.enter(x)
        attended, weights = self.cross_attention(h, memory_key, memory_value, memory_mask, observe=observe, head=head)
        x = self.cross_residual.leave(x, attended)
        h = self.feedforward_residual.enter(x)
        return self.feedforward_residual.leave(x, self.feedforward(h)), weights

    def log_weights(
        self,
        x: Tensor,
        memory_key: Tensor,
        links: Tensor,
        memory_mask: Mask | None = None,
        *,
        head: int | None = None,
    ) -> Tensor:
        """The log weights [P] of links of the cross-attention; x is what `attend_past` gave.

        See `GroupedQueryAttention.log_weights`.
        """
        return self.cross_attention.log_weights(self.cross_residual.enter(x), memory_key, links, memory_mask, head=head)

    def step(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Mask | None = None,
        *,
        observe: bool = False,
        head: int | None = None,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """One position of every hypothesis: [B, K, C] -> [B, K, C], weights [B, K, S] or None, keys and values so far.

        The hypotheses of a sentence are K queries to its one memory; each has a past [B, K, H, t, D] of its own.
        """
        start = 0 if past is None else past[0].shape[-2]
        h = self.self_residual.enter(x).unsqueeze(2)  # [B, K, 1, C]
        present = append_cache(past, *self.self_attention.keys_values(h, start))
        attended, _ = self.self_attention(h, *present, start=start)
        x = self.self_residual.leave(x, attended.squeeze(2))
        x, weights = self.attend_memory(x, memory_key, memory_value, memory_mask, observe=observe, head=head)
        return x, weights, present
