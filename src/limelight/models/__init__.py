"""Models: each one file, read top to bottom. They know only `attend` and `look`, by way of the layers."""

from dataclasses import asdict
from typing import Any

from limelight.errors import ArgumentError
from limelight.models.config import GUIDABLE, Seq2SeqConfig, TransformerConfig
from limelight.models.protocol import DecodingState, Guided, Teacher, TranslationModel
from limelight.models.seq2seq import Seq2Seq
from limelight.models.transformer import Transformer

ModelConfig = Seq2SeqConfig | TransformerConfig

_KINDS: dict[str, tuple[type, type]] = {
    "rnn": (Seq2SeqConfig, Seq2Seq),
    "transformer": (TransformerConfig, Transformer),
}


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain data, with its kind, for a JSON file."""
    kind = next(name for name, (config_type, _) in _KINDS.items() if isinstance(config, config_type))
    return {"kind": kind, **asdict(config)}


def model_config(kind: str, **fields: Any) -> ModelConfig:
    """The configuration of a kind of model ("rnn" or "transformer") from its fields.

    Raises:
        ArgumentError: an unknown kind, or a field that this kind does not have.
    """
    if kind not in _KINDS:
        raise ArgumentError(f"model: must be one of {', '.join(_KINDS)}, got {kind!r}")
    try:
        return _KINDS[kind][0](**fields)
    except TypeError as error:
        raise ArgumentError(f"model: a configuration of kind {kind!r} does not take these fields: {error}") from error


def build_model(config: ModelConfig) -> TranslationModel:
    """A new model with fresh weights, drawn from torch's default generator."""
    return next(model for config_type, model in _KINDS.values() if isinstance(config, config_type))(config)


__all__ = [
    "GUIDABLE",
    "DecodingState",
    "Guided",
    "ModelConfig",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Teacher",
    "Transformer",
    "TransformerConfig",
    "TranslationModel",
    "build_model",
    "describe_model",
    "model_config",
]
