"""The attention of a Keras layer on the JAX backend: the CPU kernels through a callback, in jit and grad too."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from limelight.interop.keras import host
from limelight.interop.keras.problem import DIFFERENTIABLE, Settings, Tensors


def reachable() -> bool:
    """Whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"


def eager(tensor: Any) -> bool:
    """Whether the tensor has values now."""
    return not isinstance(tensor, jax.core.Tracer)


def attention(settings: Settings, tensors: Tensors) -> Any:
    """Output [B, T, H, E]."""
    return _attention(settings, tuple(tensors[:DIFFERENTIABLE]), tuple(tensors[DIFFERENTIABLE:]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings: Settings, inputs: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
    return _forward(settings, inputs, others)[0]


def _forward(settings: Settings, inputs: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
    query, _, value, _ = inputs
    wide = jnp.float64 if query.dtype == jnp.float64 else jnp.float32
    shapes = host.shapes_of(query.shape, value.shape)
    dtypes = (value.dtype, wide, wide)
    results = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    found = _call(host.forward, settings, results, (), inputs, others)
    return found[0], (inputs, others, *found)


def _backward(settings: Settings, kept: Any, to_output: Any) -> Any:
    inputs, others, output, lse, rows = kept
    results = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in inputs if one is not None)
    grads = iter(_call(host.backward, settings, results, (output, lse, rows, to_output), inputs, others))
    return tuple(None if one is None else next(grads) for one in inputs), None


_attention.defvjp(_forward, _backward)


def _call(
    function: Any, settings: Settings, results: Any, first: tuple[Any, ...], inputs: tuple[Any, ...], others: Any
) -> Any:
    present = tuple(one is not None for one in (*inputs, *others))

    def callback(*arrays: Any) -> Any:
        return function(settings, present, *(_array(one) for one in arrays))

    arrays = (*first, *(one for one in (*inputs, *others) if one is not None))
    return jax.pure_callback(callback, results, *arrays, vmap_method="sequential")


def _array(one: Any) -> Any:
    import numpy as np

    return np.asarray(one)
