"""The recurrent encoder-decoder: with Bahdanau attention, with Luong attention, or with a fixed vector and none."""

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers import BidirectionalEncoder, Dropout
from limelight.masks import lengths
from limelight.models.config import GUIDABLE, Seq2SeqConfig
from limelight.models.decoders import (
    BahdanauDecoder,
    CoverageDecoder,
    Decoder,
    FixedVectorDecoder,
    LuongDecoder,
    Memory,
)
from limelight.models.protocol import DecodingState, Guided, Teacher, TranslationModel


class Seq2Seq(TranslationModel):
    """Bidirectional recurrent encoder, recurrent decoder, with or without attention."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.source_vocabulary, config.embedding, padding_idx=config.pad)
        self.target_embedding = (
            self.source_embedding
            if config.shared_embeddings
            else nn.Embedding(config.target_vocabulary, config.embedding, padding_idx=config.pad)
        )
        self.encoder = BidirectionalEncoder(config.cell, config.embedding, config.hidden, config.layers, config.dropout)
        decoders = {"bahdanau": BahdanauDecoder, "coverage": CoverageDecoder, "none": FixedVectorDecoder}
        self.decoder: Decoder = decoders.get(config.attention, LuongDecoder)(config)
        # A tied output reads features of the embedding's width.
        self.to_output = (
            nn.Linear(config.hidden, config.embedding, bias=False)
            if config.tied_output and config.hidden != config.embedding
            else nn.Identity()
        )
        self.output = nn.Linear(config.embedding if config.tied_output else config.hidden, config.target_vocabulary)
        self.dropout = Dropout(config.dropout)
        self._initialise()

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor, *, observe: bool = False) -> Teacher:
        """See `TranslationModel.forward`."""
        memory = self._encode(source, source_lengths)
        embedded = self.dropout(self.target_embedding(target))
        features, weights, _ = self.decoder(embedded, memory, lengths(source_lengths), observe)
        return Teacher(self.dropout(self.to_output(features)), weights)

    def guided(self, source: Tensor, source_lengths: Tensor, target: Tensor, links: Tensor) -> Guided:
        """See `TranslationModel.guided`."""
        if self.config.attention not in GUIDABLE:
            raise ArgumentError(
                f"links: can guide the attentions {', '.join(GUIDABLE)}, got a model with "
                f"attention={self.config.attention!r}; take one of these"
            )
        memory = self._encode(source, source_lengths)
        embedded = self.dropout(self.target_embedding(target))
        features, _, log_weights = self.decoder(embedded, memory, lengths(source_lengths), False, links)
        return Guided(self.dropout(self.to_output(features)), log_weights)

    def start(self, source: Tensor, source_lengths: Tensor) -> DecodingState:
        """See `TranslationModel.start`."""
        memory = self._encode(source, source_lengths)
        return DecodingState(memory, self.decoder.start(memory))

    def step(
        self, tokens: Tensor, state: DecodingState, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None, DecodingState]:
        """See `TranslationModel.step`."""
        memory = Memory(*state.memory)
        embedded = self.dropout(self.target_embedding(tokens))
        features, weights, beams = self.decoder.step(
            embedded, state.beams, memory, lengths(memory.source_lengths), observe
        )
        return self.dropout(self.to_output(features)), weights, DecodingState(memory, beams, state.position + 1)

    def _encode(self, source: Tensor, source_lengths: Tensor) -> Memory:
        embedded = self.dropout(self.source_embedding(source))
        values, summary = self.encoder(embedded, source_lengths)
        values = self.dropout(values)
        return Memory(values, self.decoder.keys(values), source_lengths, summary)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("embedding.weight"):
                nn.init.normal_(parameter, std=self.config.embedding**-0.5)
                with torch.no_grad():
                    parameter[self.config.pad].zero_()
            elif "weight_hh" in name:
                for gate in parameter.chunk(parameter.shape[0] // parameter.shape[1]):
                    nn.init.orthogonal_(gate)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias") or "bias_" in name:
                nn.init.zeros_(parameter)
        if self.config.tied_output:
            self.output.weight = self.target_embedding.weight
