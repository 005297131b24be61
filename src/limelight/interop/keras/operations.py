"""keras.ops, untyped: their annotations say that any result may be None. And a loop that keeps one turn at a time."""

from collections.abc import Callable
from typing import Any

import keras

ops: Any = keras.ops


def loop(more: Callable[..., Any], step: Callable[..., Any], start: tuple[Any, ...]) -> Any:
    """`ops.while_loop`, one turn after the other: a graph of TensorFlow's begins ten at once, and has all they make."""
    if keras.backend.backend() != "tensorflow":
        return ops.while_loop(more, step, start)
    import tensorflow as tf

    return tf.while_loop(more, step, start, parallel_iterations=1)
