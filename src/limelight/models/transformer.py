"""The Transformer encoder-decoder. Vaswani et al. (2017), "Attention is all you need".

Its blocks are `TransformerEncoderLayer` and `TransformerDecoderLayer`.
"""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from limelight.layers import (
    Dropout,
    FeedForward,
    SinusoidalPositions,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from limelight.masks import Mask, lengths
from limelight.models.config import TransformerConfig
from limelight.models.protocol import DecodingState, Guided, Teacher, TranslationModel


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
        sizes = config.width, config.heads, config.feedforward, config.dropout, config.norm
        self.encoder = nn.ModuleList(TransformerEncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(TransformerDecoderLayer(*sizes) for _ in range(config.decoder_layers))
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
            key, value = parts[2 * i], parts[2 * i + 1]
            x, weights, present = block.step(
                x, past, key, value, mask, observe=observe and self._shows(i), head=self.config.alignment_head
            )
            seen = weights if weights is not None else seen
            beams.extend(present)
        return self.decoder_norm(x), seen, DecodingState(state.memory, tuple(beams), state.position + 1)

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
            x = block.attend_past(x)
            if links is not None and self._shows(i):
                log_weights = block.log_weights(x, key, links, mask, head=self.config.alignment_head)
            x, weights = block.attend_memory(
                x, key, value, mask, observe=observe and self._shows(i), head=self.config.alignment_head
            )
            seen = weights if weights is not None else seen
        return self.decoder_norm(x), seen, log_weights

    def _decoder_blocks(self) -> Iterator[TransformerDecoderLayer]:
        return cast("Iterator[TransformerDecoderLayer]", iter(self.decoder))

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
