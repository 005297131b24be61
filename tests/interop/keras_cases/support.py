"""Two layers side by side: Keras' own, which is the oracle, and ours with the same weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

import limelight.interop.keras as ours

BACKEND = keras.backend.backend()
WAYS = ("kernels",) if BACKEND == "torch" else ("kernels", "blocks")
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}
# Gradients are sums of up to some hundred terms of size one, each rounded to float32.
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def pair(name: str, *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """(ours, Keras'), built for the inputs, with equal weights that are not those of the start."""
    mine, other = getattr(ours, name)(**options), getattr(keras.layers, name)(**options)
    for layer in (mine, other):
        layer(*inputs)
    weights = [random(*one.shape, seed=7 + place) / 2 for place, one in enumerate(other.get_weights())]
    weights = [one if old.dtype == np.float32 else old for one, old in zip(weights, other.get_weights(), strict=True)]
    other.set_weights(weights)
    mine.set_weights(weights)
    return mine, other


def array(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(tensor)


def outcome(layer: Any, *inputs: Any, **options: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output, and the gradients of a weighted sum of it to all inputs and weights."""
    listed = isinstance(inputs[0], list)
    flat = list(inputs[0]) if listed else list(inputs)

    def call(*tensors: Any) -> Any:
        return layer(list(tensors), **options) if listed else layer(*tensors, **options)

    return globals()[f"_{BACKEND}"](layer, call, flat)


def _slope(output: Any) -> Any:
    return ops.convert_to_tensor(random(*output.shape, seed=3))


def _torch(layer: Any, call: Any, inputs: list[Any]) -> Any:
    import torch

    tensors = [torch.tensor(one, requires_grad=True) for one in inputs]
    output = call(*tensors)
    weights = [one.value for one in layer.trainable_weights]
    grads = torch.autograd.grad((output * _slope(output)).sum(), [*tensors, *weights])
    return array(output), [array(one) for one in grads]


def _tensorflow(layer: Any, call: Any, inputs: list[Any]) -> Any:
    import tensorflow as tf

    tensors = [tf.constant(one) for one in inputs]
    weights = [one.value for one in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = call(*tensors)
        loss = tf.reduce_sum(output * _slope(output))
    return array(output), [array(one) for one in tape.gradient(loss, [*tensors, *weights])]


def _jax(layer: Any, call: Any, inputs: list[Any]) -> Any:
    import jax

    def loss(tensors: Any, weights: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(layer.trainable_variables, weights, strict=True)):
            output = call(*tensors)
        return (output * _slope(output)).sum(), output

    weights = [one.value for one in layer.trainable_variables]
    tensors = [ops.convert_to_tensor(one) for one in inputs]
    (_, output), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(tensors, weights)  # fit is compiled
    return array(output), [array(one) for one in (*grads[0], *grads[1])]


def assert_same(mine: Any, other: Any, *inputs: Any, **options: Any) -> None:
    """Equal outputs and gradients, in each of the ways."""
    output, grads = outcome(other, *inputs, **options)
    for way in WAYS:
        with ours.computed(way):
            found, slopes = outcome(mine, *inputs, **options)
        np.testing.assert_allclose(found, output, **TOLERANCE, err_msg=way)
        assert len(slopes) == len(grads)
        for place, (one, want) in enumerate(zip(slopes, grads, strict=True)):
            np.testing.assert_allclose(one, want, **GRADIENT_TOLERANCE, err_msg=f"{way}, gradient {place}")
