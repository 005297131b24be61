"""What a user would write in plain torch for the same sizes: the other sides of the translation benchmark."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limelight.layers import sinusoidal
from limelight.models import Seq2SeqConfig, TransformerConfig


class TorchTransformer(nn.Module):
    """`nn.Transformer` with tied embeddings and a full cross-entropy over the padded batch."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.source_vocabulary, config.width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.register_buffer("positions", sinusoidal(512, config.width))
        self.transformer = nn.Transformer(
            config.width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.feedforward,
            config.dropout,
            batch_first=True,
            norm_first=config.norm == "pre",
        )

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Mean label-smoothed cross-entropy."""
        read, predict = target[:, :-1], target[:, 1:]
        pad_source, pad_target = source == 0, read == 0
        causal = torch.ones(read.shape[1], read.shape[1], dtype=torch.bool).triu(1)
        features = self.transformer(
            self._embed(source),
            self._embed(read),
            tgt_mask=causal,
            src_key_padding_mask=pad_source,
            tgt_key_padding_mask=pad_target,
            memory_key_padding_mask=pad_source,
        )
        logits = features @ self.embedding.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), predict.flatten(), ignore_index=0, label_smoothing=0.1)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.config.width**0.5
        return x + self.positions[: x.shape[1]]


class TorchBahdanau(nn.Module):
    """Bidirectional GRU and a GRU decoder with additive attention by broadcasting, as tutorials write it."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        embedding, hidden = config.embedding, config.hidden
        self.source_embedding = nn.Embedding(config.source_vocabulary, embedding, padding_idx=0)
        self.target_embedding = nn.Embedding(config.target_vocabulary, embedding, padding_idx=0)
        self.encoder = nn.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        self.first = nn.Linear(2 * hidden, hidden)
        self.cell = nn.GRUCell(embedding + 2 * hidden, hidden)
        self.query, self.key = nn.Linear(hidden, hidden, bias=False), nn.Linear(2 * hidden, hidden)
        self.vector = nn.Linear(hidden, 1, bias=False)
        self.readout = nn.Linear(hidden + embedding + 2 * hidden, hidden)
        self.output = nn.Linear(hidden, config.target_vocabulary)
        self.dropout = nn.Dropout(config.dropout)

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Mean label-smoothed cross-entropy."""
        pad = source == 0
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.source_embedding(source)), (~pad).sum(1), batch_first=True, enforce_sorted=False
        )
        outputs, final = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        state = self.first(torch.cat([final[0], final[1]], -1)).tanh()
        keys = self.key(memory)
        embedded, features = self.dropout(self.target_embedding(target[:, :-1])), []
        for x in embedded.unbind(1):
            scores = self.vector(torch.tanh(self.query(state)[:, None] + keys)).squeeze(-1)
            weights = scores.masked_fill(pad, -torch.inf).softmax(-1)
            context = (weights[:, None] @ memory).squeeze(1)
            state = self.cell(torch.cat([x, context], -1), state)
            features.append(self.readout(torch.cat([state, x, context], -1)).tanh())
        logits = self.output(self.dropout(torch.stack(features, 1)))
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1)
