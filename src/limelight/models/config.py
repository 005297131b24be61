"""The sizes and choices of each kind of model, with their rules."""

from dataclasses import dataclass
from typing import Literal, get_args

from limelight.errors import ArgumentError
from limelight.layers.recurrent import Cell, check_cell

Attention = Literal["bahdanau", "coverage", "dot", "general", "concat", "location", "local-m", "local-p", "none"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
GUIDABLE: tuple[Attention, ...] = ("bahdanau", "dot", "general", "concat")
"""Those of a recurrent model that can learn from word links: a weight is known from one state and one key."""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes and choices of a `Seq2Seq` model.

    Attributes:
        source_vocabulary: number of source tokens.
        target_vocabulary: number of target tokens.
        embedding: width of both embeddings.
        hidden: width of the decoder, of each direction of the encoder and of the attention.
        layers: recurrent layers in the encoder and in the decoder.
        cell: "gru" or "lstm".
        attention: "bahdanau", "coverage" (Bahdanau's, with what has been attended to as a feature), Luong's "dot",
            "general", "concat", "location", "local-m" or "local-p" (both with the general score), or "none".
        input_feeding: Luong only: the attentional output of a step is part of the next step's input.
        window: D, local attention only: keys up to so many positions from its centre.
        source_positions: location attention only: it attends to so many source positions; what lies beyond is not seen.
        dropout: share of units dropped in training, on embeddings, between layers and before the output layer.
        shared_embeddings: one table for source and target; needs one joint vocabulary.
        tied_output: the output layer's weight is the target embedding.
        pad: the padding token.

    Raises:
        ArgumentError: a value breaks a rule.
    """

    source_vocabulary: int
    target_vocabulary: int
    embedding: int = 256
    hidden: int = 256
    layers: int = 1
    cell: Cell = "gru"
    attention: Attention = "bahdanau"
    input_feeding: bool = False
    window: int = 10
    source_positions: int = 256
    dropout: float = 0.15
    shared_embeddings: bool = False
    tied_output: bool = True
    pad: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self, "embedding", "hidden", "layers", "window", "source_positions")
        check_cell(self.cell)
        if self.attention not in ATTENTIONS:
            raise ArgumentError(f"attention: must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if self.input_feeding and self.attention in ("bahdanau", "coverage", "none"):
            raise ArgumentError(
                f"input_feeding: belongs to Luong attention, got attention={self.attention!r}; "
                "take 'dot', 'general', 'concat', 'location', 'local-m' or 'local-p', or leave input feeding off"
            )


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a `Transformer` model.

    Attributes:
        source_vocabulary: number of source tokens.
        target_vocabulary: number of target tokens.
        width: C, of embeddings and blocks; even, and a multiple of `heads`.
        feedforward: width inside the feed-forward networks.
        heads: H.
        encoder_layers: blocks in the encoder.
        decoder_layers: blocks in the decoder.
        norm: "pre" (norm inside the residual branch, and once at the end) or "post" (norm after the sum, as in the
            paper).
        dropout: share of units dropped in training, on embeddings, weights, hidden units and branches.
        shared_embeddings: one table for source and target; needs one joint vocabulary.
        tied_output: the output layer's weight is the target embedding. Paper, section 3.4.
        alignment_layer: the decoder block whose cross-attention is the model's attention; counted from the end when
            negative.
        alignment_head: the head of it, from 0; None for the mean over its heads.
        pad: the padding token.

    Raises:
        ArgumentError: a value breaks a rule.
    """

    source_vocabulary: int
    target_vocabulary: int
    width: int = 256
    feedforward: int = 1024
    heads: int = 4
    encoder_layers: int = 3
    decoder_layers: int = 3
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.1
    shared_embeddings: bool = False
    tied_output: bool = True
    alignment_layer: int = -1
    alignment_head: int | None = None
    pad: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self, "width", "feedforward", "heads", "encoder_layers", "decoder_layers")
        if self.width % 2 or self.width % self.heads:
            raise ArgumentError(
                f"width: must be even and a multiple of heads, got {self.width} and {self.heads} heads; "
                f"take width={2 * self.heads * (1 + self.width // (2 * self.heads))}"
            )
        if self.norm not in ("pre", "post"):
            raise ArgumentError(f"norm: must be 'pre' or 'post', got {self.norm!r}")
        if not -self.decoder_layers <= self.alignment_layer < self.decoder_layers:
            raise ArgumentError(
                f"alignment_layer: must name one of the {self.decoder_layers} decoder layers, "
                f"in [-{self.decoder_layers}, {self.decoder_layers - 1}], got {self.alignment_layer}"
            )
        if self.alignment_head is not None and not 0 <= self.alignment_head < self.heads:
            raise ArgumentError(
                f"alignment_head: must name one of the {self.heads} heads, in [0, {self.heads - 1}], or be None for "
                f"their mean, got {self.alignment_head}"
            )


def _check_sizes(config: Seq2SeqConfig | TransformerConfig, *sizes: str) -> None:
    """The rules that all models have in common, and whole numbers of at least 1 for `sizes`."""
    for name in ("source_vocabulary", "target_vocabulary", *sizes):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}: must be a whole number of at least 1, got {value!r}")
    if not isinstance(config.dropout, (int, float)) or not 0 <= config.dropout < 1:
        raise ArgumentError(f"dropout: must be in [0, 1), got {config.dropout!r}; take 0 for none")
    if not 0 <= config.pad < min(config.source_vocabulary, config.target_vocabulary):
        raise ArgumentError(f"pad: must be a token of both vocabularies, got {config.pad}")
    if config.shared_embeddings and config.source_vocabulary != config.target_vocabulary:
        raise ArgumentError(
            "shared_embeddings: needs one vocabulary for both sides, got "
            f"{config.source_vocabulary} and {config.target_vocabulary} tokens; train with a joint vocabulary"
        )
