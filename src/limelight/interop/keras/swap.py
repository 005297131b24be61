"""Models with keras.layers' attention turned into models with ours, and back."""

from __future__ import annotations

from typing import Any

import keras

from limelight.interop.keras.attention import AdditiveAttention, Attention
from limelight.interop.keras.multi_head import GroupedQueryAttention, MultiHeadAttention

_LAYERS = keras.layers
PAIRS: tuple[tuple[Any, Any], ...] = (
    (_LAYERS.MultiHeadAttention, MultiHeadAttention),
    (_LAYERS.GroupQueryAttention, GroupedQueryAttention),
    (_LAYERS.Attention, Attention),
    (_LAYERS.AdditiveAttention, AdditiveAttention),
)
"""Keras' layer and ours."""


def convert(model: Any) -> Any:
    """A model like this one, with our layers in place of keras.layers' attention, and the same weights.

    Arguments:
        model: Functional or Sequential, for instance from `keras.models.load_model`; models inside of it are converted
            too. A subclass of `keras.Model` makes its layers itself: import ours there.

    Result: a new model with weights of its own; compiled in the same way, if it was, its optimizer where that one's is.

    Errors: ValueError of Keras for a model that cannot be cloned.

    Example: `model = convert(keras.models.load_model("translator.keras"))`.
    """
    return _swapped(model, dict(PAIRS))


def revert(model: Any) -> Any:
    """The reverse of `convert`: a model that needs no limelight to be loaded."""
    return _swapped(model, {ours: other for other, ours in PAIRS})


def _swapped(model: Any, into: dict[Any, Any]) -> Any:
    def clone(layer: Any) -> Any:
        # A subclass of the user's is not ours to replace.
        return into.get(type(layer), type(layer)).from_config(layer.get_config())

    again = keras.models.clone_model(model, clone_function=clone, recursive=True)
    again.set_weights(model.get_weights())
    if model.compiled:
        again.compile_from_config(model.get_compile_config())
        if model.optimizer.built:
            again.optimizer.build(again.trainable_variables)
            for mine, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
                mine.assign(theirs)
    return again
