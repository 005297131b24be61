"""The attention of a Keras layer on the TensorFlow backend: the CPU kernels through a callback.

TensorFlow hands a callback its own memory as NumPy arrays. XLA knows no callbacks, and a GPU is elsewhere: there
`blocks.py` computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import tensorflow as tf

from limelight.errors import ArgumentError
from limelight.interop.keras import host
from limelight.interop.keras.problem import DIFFERENTIABLE, Settings, Tensors


def reachable() -> bool:
    """Whether a callback may be used where we are: outside of XLA, without a GPU."""
    graph = tf.compat.v1.get_default_graph() if not tf.executing_eagerly() else None
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return False
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return not tf.config.list_physical_devices("GPU")


def eager() -> bool:
    """Whether tensors have values now."""
    return tf.executing_eagerly()


def attention(settings: Settings, tensors: Tensors) -> Any:
    """Output [B, T, H, E]."""
    present = tuple(one is not None for one in tensors)
    others = [one for one in tensors[DIFFERENTIABLE:] if one is not None]
    known = tensors.query.dtype
    wide = tf.float64 if known == tf.float64 else tf.float32

    @tf.custom_gradient
    def run(*inputs: Any) -> Any:
        arrays = (*inputs, *others)
        output, lse, rows = _call(partial(host.forward, settings, present), arrays, (known, wide, wide))
        shapes = host.shapes_of(inputs[0].shape, inputs[2].shape)
        for one, shape in zip((output, lse, rows), shapes, strict=True):
            one.set_shape(shape)

        def gradient(to_output: Any) -> Any:
            return _gradient(partial(host.backward, settings, present), (output, lse, rows, to_output, *arrays), inputs)

        return output, gradient

    return run(*(one for one in tensors[:DIFFERENTIABLE] if one is not None))


def _gradient(function: Any, arrays: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    def run(*arrays: Any) -> Any:
        grads = _call(function, arrays, tuple(one.dtype for one in inputs))
        for grad, one in zip(grads, inputs, strict=True):
            grad.set_shape(one.shape)
        return tuple(grads)

    return once(run, arrays)


def unrecorded() -> AbstractContextManager[Any]:
    """Where no tape records what is computed at once; in a graph there is no tape."""
    return tf.init_scope() if tf.executing_eagerly() else nullcontext()


def once(function: Callable[..., Any], tensors: tuple[Any, ...]) -> Any:
    """`function(*tensors)`: gradients, which have none themselves."""

    @tf.custom_gradient
    def run(*tensors: Any) -> Any:
        def refuse(*_: Any) -> Any:
            raise ArgumentError(
                "limelight's attention in Keras has no second derivatives on TensorFlow. "
                "Use keras.layers' own layer where you differentiate twice."
            )

        with unrecorded():
            return function(*tensors), refuse

    return run(*tensors)


def _call(function: Any, arrays: tuple[Any, ...], dtypes: tuple[Any, ...]) -> Any:
    if tf.executing_eagerly():
        return [tf.constant(one) for one in function(*(one.numpy() for one in arrays))]
    return tf.numpy_function(function, arrays, dtypes, stateful=False)
