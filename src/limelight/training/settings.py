"""The settings of `train` and `resume`, which come by name: whose each is, and which may change."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from limelight.errors import ArgumentError
from limelight.models import GUIDABLE, Seq2SeqConfig, TransformerConfig, model_config
from limelight.training.config import DataConfig, TrainingConfig

CHANGEABLE = ("epochs", "updates", "minutes", "patience", "save_seconds", "device", "threads")
"""What may be set anew when a run is resumed."""

_MODEL_FIELDS = {"rnn": Seq2SeqConfig, "transformer": TransformerConfig}
_DERIVED = ("source_vocabulary", "target_vocabulary", "pad")  # known only once the vocabularies are

# What suits a kind of model where the user says nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "rnn": {"rate": 2e-3, "warmup": 200},
    "transformer": {"rate": 1e-3, "warmup": 1000},
}


def sort_settings(
    model: str, settings: Mapping[str, Any], *, guided: bool = False
) -> tuple[DataConfig, TrainingConfig, dict[str, Any]]:
    """Which setting belongs to the data, which to training, which to the model; checked.

    With `guided` the attention learns from word links: by default in one head of the last but one decoder block of a
    Transformer (Garg et al. 2019), which then is its alignment.

    Raises:
        ArgumentError: a name that none has (with near misses), or a value out of range.
    """
    if model not in _MODEL_FIELDS:
        raise ArgumentError(f"model: must be one of {', '.join(_MODEL_FIELDS)}, got {model!r}")
    known = {kind: {f.name for f in fields(kind)} for kind in (DataConfig, TrainingConfig, _MODEL_FIELDS[model])}
    sorted_out: dict[type, dict[str, Any]] = {kind: {} for kind in known}
    for name, value in (_DEFAULTS[model] | dict(settings)).items():
        kind = next((kind for kind, names in known.items() if name in names and name not in _DERIVED), None)
        if kind is None:
            every = [n for names in known.values() for n in names if n not in _DERIVED]
            near = difflib.get_close_matches(name, every, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(every))}"
            article = "an" if model == "rnn" else "a"
            raise ArgumentError(f"{name}: is no setting of {article} {model} model or its training{hint}")
        sorted_out[kind][name] = value
    data, training = DataConfig(**sorted_out[DataConfig]), TrainingConfig(**sorted_out[TrainingConfig])
    sizes = sorted_out[_MODEL_FIELDS[model]]
    if guided and model == "transformer":
        blocks = sizes.get("decoder_layers", TransformerConfig.decoder_layers)
        sizes = {"alignment_head": 0, "alignment_layer": -2 if blocks != 1 else -1} | sizes
    if guided and sizes.get("attention", GUIDABLE[0]) not in GUIDABLE:
        raise ArgumentError(
            f"guided_alignment: word links can guide the attentions {', '.join(GUIDABLE)}, "
            f"got attention={sizes['attention']!r}; choose one of these"
        )
    if "guided_weight" in settings and not guided:
        raise ArgumentError("guided_weight: needs word links to learn from; give guided_alignment (FILE) too")
    if training.coverage_weight and sizes.get("attention") != "coverage":
        raise ArgumentError(
            "coverage_weight: is for attention='coverage' (--attention coverage); choose that, or leave it out"
        )
    if sizes.get("shared_embeddings") and not data.joint:
        raise ArgumentError("shared_embeddings: needs one vocabulary for both sides; set joint too (--joint)")
    # The model's own rules speak now, not after the corpus has been read; any size of vocabulary will do.
    model_config(model, source_vocabulary=data.vocabulary, target_vocabulary=data.vocabulary, **sizes)
    return data, training, sizes


def changes(stored: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Those of `settings` that may change when a run is resumed; all others must be as they are stored.

    Raises:
        ArgumentError: one is not.
    """
    model = dict(stored.get("model", {}))
    known = {"model": model.pop("kind", None)} | model | stored["data"] | stored["training"]
    for name in sorted(settings.keys() - set(CHANGEABLE)):
        value = list(settings[name]) if isinstance(settings[name], tuple) else settings[name]  # as JSON has it
        if name not in known or known[name] != value:
            was = f"it is {known[name]!r}, got {value!r}; " if name in known else ""
            raise ArgumentError(
                f"{name}: cannot change when a run is resumed, only {', '.join(CHANGEABLE)} can; {was}leave it out, "
                "or start anew"
            )
    return {name: value for name, value in settings.items() if name in CHANGEABLE}
