"""Small models of every kind, and a source batch, for tests of models and decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.models import TranslationModel, build_model, model_config

SOURCES, TARGETS = 19, 23
COUNTS = (7, 2, 5)

_RNN: dict[str, dict[str, Any]] = {
    "bahdanau": {"attention": "bahdanau"},
    "bahdanau-lstm-2": {"attention": "bahdanau", "cell": "lstm", "layers": 2},
    "dot": {"attention": "dot"},
    "dot-lstm-fed": {"attention": "dot", "cell": "lstm", "input_feeding": True},
    "general-2": {"attention": "general", "layers": 2},
    "general-fed-2": {"attention": "general", "layers": 2, "input_feeding": True},
    "general-lstm-tied": {"attention": "general", "cell": "lstm", "tied_output": True},
    "concat": {"attention": "concat"},
    "concat-lstm-fed-2": {"attention": "concat", "cell": "lstm", "layers": 2, "input_feeding": True},
    "location": {"attention": "location", "source_positions": 5},
    "location-fed": {"attention": "location", "input_feeding": True},
    "local-m": {"attention": "local-m", "window": 2},
    "local-m-fed-lstm": {"attention": "local-m", "window": 1, "input_feeding": True, "cell": "lstm"},
    "local-p": {"attention": "local-p", "window": 3},
    "local-p-fed": {"attention": "local-p", "window": 2, "input_feeding": True},
    "coverage-2": {"attention": "coverage", "layers": 2},
    "none-2": {"attention": "none", "layers": 2},
    "none-lstm": {"attention": "none", "cell": "lstm"},
    "bahdanau-shared": {"attention": "bahdanau", "shared_embeddings": True, "source_vocabulary": TARGETS},
}
_TRANSFORMER: dict[str, dict[str, Any]] = {
    "transformer-pre": {"norm": "pre"},
    "transformer-post": {"norm": "post", "tied_output": False},
    "transformer-first-layer": {"norm": "pre", "alignment_layer": 0, "encoder_layers": 1},
    "transformer-one-head": {"norm": "pre", "alignment_head": 2},
    "transformer-shared": {"norm": "post", "shared_embeddings": True, "source_vocabulary": TARGETS},
}
NAMES = (*_RNN, *_TRANSFORMER)
ATTENDING = tuple(name for name in NAMES if not name.startswith("none"))


def make(name: str, *, dropout: float = 0.0, seed: int = 41) -> TranslationModel:
    """The model of that name, in float64 and in evaluation mode, its weights large enough to have opinions."""
    torch.manual_seed(seed)
    vocabularies = {"source_vocabulary": SOURCES, "target_vocabulary": TARGETS}
    if name in _RNN:
        sizes = {"embedding": 5, "hidden": 7, "dropout": dropout, "tied_output": False}
        model = build_model(model_config("rnn", **vocabularies | sizes | _RNN[name]))
    else:
        sizes = {"width": 12, "feedforward": 17, "heads": 3, "encoder_layers": 2, "decoder_layers": 2}
        model = build_model(
            model_config("transformer", **vocabularies | sizes | {"dropout": dropout} | _TRANSFORMER[name])
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def source_batch(seed: int = 43, counts: tuple[int, ...] = COUNTS) -> tuple[Tensor, Tensor]:
    """Token ids [B, S], each row ending in eos (2) and padded with 0, and the lengths [B]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(counts)
    source = torch.randint(4, SOURCES, (len(counts), max(counts)), generator=generator)
    source[torch.arange(len(counts)), lengths - 1] = 2
    source[torch.arange(max(counts)) >= lengths[:, None]] = 0
    return source, lengths
