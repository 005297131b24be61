"""The Transformer encoder-decoder. Vaswani et al. (2017), "Attention is all you need".

Read from the top: the residual branch, the two blocks, the model.
"""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from limelight.layers import Dropout, FeedForward, GroupedQueryAttention, SinusoidalPositions
from limelight.layers.grouped import append_cache
from limelight.masks import Mask, causal, lengths
from limelight.models.config import TransformerConfig
from limelight.models.protocol import DecodingState, Guided, Teacher, TranslationModel


class Residual(nn.Module):
    """x + dropout(branch(norm(x))), or norm(x + dropout(branch(x))): called with what the branch made of `enter(x)`."""

    def __init__(self, width: int, norm: str, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.before = norm == "pre"
        self.dropout = Dropout(dropout)

    def enter(self, x: Tensor) -> Tensor:
        """What the branch reads."""
        return self.norm(x) if self.before else x

    def leave(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of x and the branch's result."""
        total = x + self.dropout(branch)
        return total if self.before else self.norm(total)


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention = GroupedQueryAttention(config.width, config.heads, config.dropout)
        self.attention_residual = Residual(config.width, config.norm, config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout)
        self.feedforward_residual = Residual(config.width, config.norm, config.dropout)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        h = self.attention_residual.enter(x)
        attended, _ = self.attention(h, *self.attention.keys_values(h), mask)
        x = self.attention_residual.leave(x, attended)
        h = self.feedforward_residual.enter(x)
        return self.feedforward_residual.leave(x, self.feedforward(h))


class DecoderBlock(nn.Module):
    """Self-attention over what has been produced, cross-attention over the source, feed-forward."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = GroupedQueryAttention(config.width, config.heads, config.dropout)
        self.self_residual = Residual(config.width, config.norm, config.dropout)
        self.cross_attention = GroupedQueryAttention(config.width, config.heads, config.dropout)
        self.cross_residual = Residual(config.width, config.norm, config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout)
        self.feedforward_residual = Residual(config.width, config.norm, config.dropout)
        self.shown_head = config.alignment_head

    def forward(
        self,
        x: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Mask,
        observe: bool,
        links: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All target positions at once: [B, T, C] -> [B, T, C], weights [B, T, S] or None, log weights [P] or None."""
        h = self.self_residual.enter(x)
        attended, _ = self.self_attention(h, *self.self_attention.keys_values(h), causal())
        x = self.self_residual.leave(x, attended)
        log_weights = None
        if links is not None:
            h = self.cross_residual.enter(x)
            log_weights = self.cross_attention.log_weights(h, memory_key, links, memory_mask, head=self.shown_head)
        return *self._cross(x, memory_key, memory_value, memory_mask, observe), log_weights

    def step(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Mask,
        observe: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """One position of every hypothesis: [B, K, C] -> [B, K, C], weights [B, K, S] or None, keys and values so far.

        The hypotheses of a sentence are K queries to its one memory; each has a past [B, K, H, t, D] of its own.
        """
        h = self.self_residual.enter(x).unsqueeze(2)  # [B, K, 1, C]
        present = append_cache(past, *self.self_attention.keys_values(h))
        attended, _ = self.self_attention(h, *present)
        x = self.self_residual.leave(x, attended.squeeze(2))
        x, weights = self._cross(x, memory_key, memory_value, memory_mask, observe)
        return x, weights, present

    def _cross(
        self, x: Tensor, memory_key: Tensor, memory_value: Tensor, memory_mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        h = self.cross_residual.enter(x)
        attended, weights = self.cross_attention(
            h, memory_key, memory_value, memory_mask, observe=observe, head=self.shown_head
        )
        x = self.cross_residual.leave(x, attended)
        h = self.feedforward_residual.enter(x)
        return self.feedforward_residual.leave(x, self.feedforward(h)), weights


class Transformer(TranslationModel):
    """The encoder-decoder of the paper, with pre- or post-norm."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.scale = config.width**0.5
        self.source_embedding = nn.Embedding(config.source_vocabulary, config.width, padding_idx=config.pad)
        self.target_embedding = (
            self.source_embedding
            if config.shared_embeddings
            else nn.Embedding(config.target_vocabulary, config.width, padding_idx=config.pad)
        )
        self.positions = SinusoidalPositions(config.width)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        last = nn.LayerNorm if config.norm == "pre" else nn.Identity
        self.encoder_norm = last(config.width)
        self.decoder_norm = last(config.width)
        self.output = nn.Linear(config.width, config.target_vocabulary)
        self._initialise()

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor, *, observe: bool = False) -> Teacher:
        """See `TranslationModel.forward`."""
        features, weights, _ = self._read(source, source_lengths, target, observe)
        return Teacher(features, weights)

    def guided(self, source: Tensor, source_lengths: Tensor, target: Tensor, links: Tensor) -> Guided:
        """See `TranslationModel.guided`; of the alignment layer's cross-attention."""
        features, _, log_weights = self._read(source, source_lengths, target, False, links)
        assert log_weights is not None
        return Guided(features, log_weights)

    def start(self, source: Tensor, source_lengths: Tensor) -> DecodingState:
        """See `TranslationModel.start`; the memory is each decoder block's keys and values, and the lengths."""
        memory = self._encode(source, lengths(source_lengths))
        parts = [part for block in self._decoder_blocks() for part in block.cross_attention.keys_values(memory)]
        return DecodingState((source_lengths, *parts), ())

    def step(
        self, tokens: Tensor, state: DecodingState, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None, DecodingState]:
        """See `TranslationModel.step`; the beams are each block's keys and values so far."""
        source_lengths, *parts = state.memory
        mask = lengths(source_lengths)
        x = self._embed(self.target_embedding, tokens.unsqueeze(2), state.position).squeeze(2)  # [B, K, C]
        seen, beams = None, []
        for i, block in enumerate(self._decoder_blocks()):
            past = (state.beams[2 * i], state.beams[2 * i + 1]) if state.beams else None
            x, weights, present = block.step(x, past, parts[2 * i], parts[2 * i + 1], mask, observe and self._shows(i))
            seen = weights if weights is not None else seen
            beams.extend(present)
        logits = self.output(self.decoder_norm(x))
        return logits, seen, DecodingState(state.memory, tuple(beams), state.position + 1)

    def _read(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, observe: bool, links: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features [B, T, C]; of the block that shows, weights [B, T, S] or None and log weights [P] or None."""
        mask = lengths(source_lengths)
        memory = self._encode(source, mask)
        x = self._embed(self.target_embedding, target, 0)
        seen = log_weights = None
        for i, block in enumerate(self._decoder_blocks()):
            key, value = block.cross_attention.keys_values(memory)
            if self._shows(i):
                x, seen, log_weights = block(x, key, value, mask, observe, links)
            else:
                x, _, _ = block(x, key, value, mask, False)
        return self.decoder_norm(x), seen, log_weights

    def _decoder_blocks(self) -> Iterator[DecoderBlock]:
        return cast("Iterator[DecoderBlock]", iter(self.decoder))

    def _shows(self, block: int) -> bool:
        return block == self.config.alignment_layer % self.config.decoder_layers

    def _embed(self, table: nn.Embedding, tokens: Tensor, start: int) -> Tensor:
        return self.dropout(self.positions(table(tokens) * self.scale, start))

    def _encode(self, source: Tensor, mask: Mask) -> Tensor:
        x = self._embed(self.source_embedding, source, 0)
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.width**-0.5)
                nn.init.zeros_(module.weight[self.config.pad].detach())
            elif isinstance(module, FeedForward):
                nn.init.xavier_uniform_(module.expand.weight)
                nn.init.xavier_uniform_(module.contract.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.output.weight)
        if self.config.tied_output:
            self.output.weight = self.target_embedding.weight
