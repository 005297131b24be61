"""Which way a Keras layer's attention is computed: by the native kernels, or block by block in `keras.ops`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras

from limelight.contract import require_choice
from limelight.errors import ArgumentError
from limelight.interop.keras.problem import Settings, Tensors

BACKEND = keras.backend.backend()
"""Keras settles it when it is imported."""

_EXPORTERS = ("keras.src.export.", "tensorflow.python.saved_model.", "jax._src.export.")
"""Modules whose functions trace a model to write it to a file."""

_WAYS = ("auto", "kernels", "blocks")
_way: ContextVar[str] = ContextVar("limelight_keras_way", default="auto")


@contextmanager
def computed(way: str) -> Iterator[None]:
    """How the layers compute inside the block (what is traced there stays so).

    "kernels": our own kernels; TensorFlow and JAX reach them by a callback, on the CPU. "blocks": block by block in
    `keras.ops`, which XLA compiles, runs anywhere and can be exported. "auto", as without this: kernels where they can
    be reached, else blocks, also while a model is exported. On the torch backend every way means `limelight.attend`.

    Errors: ArgumentError for another name.

    Example: `with computed("blocks"): model.predict(x)`.
    """
    require_choice("way", way, _WAYS)
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)


def attention(settings: Settings, tensors: Tensors) -> Any:
    """Output [B, T, H, E], differentiable; nothing of T x S is stored but what the caller made."""
    if BACKEND == "torch":
        from limelight.interop.keras import on_torch

        return on_torch.attention(settings, tensors)
    if BACKEND not in ("tensorflow", "jax"):
        raise ArgumentError(
            f"limelight.interop.keras runs on Keras' backends tensorflow, jax and torch; it is {BACKEND!r}. "
            f"Set the environment variable KERAS_BACKEND before Keras is imported."
        )
    if BACKEND == "tensorflow":
        from limelight.interop.keras import on_tensorflow as there
    else:
        from limelight.interop.keras import on_jax as there
    way = _way.get()
    if way == "kernels" or (way == "auto" and there.reachable() and (_eager(tensors) or not _exporting())):
        return there.attention(settings, tensors)
    from limelight.interop.keras import blocks

    return blocks.attention(settings, tensors)


def _exporting() -> bool:
    """Whether what is traced now is to run elsewhere, where there is nothing of ours to call back."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_EXPORTERS):
            return True
        frame = frame.f_back
    return False


def look(settings: Settings, tensors: Tensors) -> Any:
    """(output [B, T, H, E], AttentionView). Errors: ArgumentError inside of a traced graph."""
    from limelight.interop.keras import host, on_torch

    if BACKEND == "torch":
        return on_torch.view(settings, tensors)
    if not _eager(tensors):
        raise ArgumentError(
            "return_attention_view=True needs tensors that have values, outside of tf.function, jit and fit: a view is "
            "no tensor. Call the layer itself on what it attends to, or use return_attention_scores=True."
        )
    # The view needs no more of the value than one column.
    narrow = Tensors(*(None if one is None else host.tensor_of(one) for one in _shortened(tensors)))
    _, view = on_torch.view(settings, narrow)
    return attention(settings, tensors), view


def _shortened(tensors: Tensors) -> Tensors:
    return tensors._replace(value=tensors.value[..., :1])


def _eager(tensors: Tensors) -> bool:
    if BACKEND == "tensorflow":
        from limelight.interop.keras import on_tensorflow

        return on_tensorflow.eager()
    from limelight.interop.keras import on_jax

    return all(on_jax.eager(one) for one in tensors if one is not None)
