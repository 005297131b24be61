"""Another framework in a process of its own, which times what it is asked to: `python benchmarks/peer.py keras|jax`.

It needs no limelight and no torch. Orders come as JSON, a line each, on standard input, and each is answered by a line:
{"case": {...}} sets up the inputs and the sides, and answers their names; {"side": name} runs one once and answers
seconds; {"memory": name} runs one once and answers the bytes of its peak beyond what was there before.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Side = Callable[[], object]


def keras_sides(case: dict[str, Any]) -> dict[str, Side]:
    """Keras 3 on TensorFlow, in a tf.function, without and with XLA."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(case["threads"])
    random = np.random.default_rng(1)
    b, h, t, d = case["shape"]
    if case["additive"]:
        q, k, v = (tf.constant(random.standard_normal((b, t, d), np.float32)) for _ in range(3))
        scale = tf.constant(random.standard_normal(d).astype(np.float32) / d**0.5)

        def attention(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
            scores = tf.reduce_sum(
                scale * tf.tanh(q[:, :, None] + k[:, None]), axis=-1
            )  # as keras.layers.AdditiveAttention
            weights = tf.nn.softmax(scores, axis=-1)
            return tf.matmul(weights, v), weights

        kinds = {"Keras on TensorFlow": False, "TensorFlow with XLA": True}
    else:
        # Keras' layout: [B, T, H, D].
        q, k, v = (tf.constant(random.standard_normal((b, t, h, d), np.float32)) for _ in range(3))
        layer = keras.layers.MultiHeadAttention(h, d)
        layer.build((b, t, h * d), (b, t, h * d))
        mask = tf.linalg.band_part(tf.ones((1, t, t), tf.bool), -1, 0) if case["causal"] else None

        def attention(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
            return layer._compute_attention(q, k, v, attention_mask=mask, return_attention_scores=True)

        def blind(q: Any, k: Any, v: Any) -> Any:
            return layer._compute_attention(q, k, v, attention_mask=mask)[0]

        kinds = {"Keras on TensorFlow, weights": False, "Keras on TensorFlow": None}
    sides: dict[str, Side] = {}
    for name, kind in kinds.items():
        function = blind if kind is None else attention
        sides[name] = _tf_side(tf, function, (q, k, v), bool(kind), case["backward"], kind is not None)
    return sides


def _tf_side(
    tf: Any, function: Callable[..., Any], inputs: tuple[Any, ...], xla: bool, backward: bool, both: bool
) -> Side:
    @tf.function(jit_compile=xla)
    def forward(*inputs: Any) -> Any:
        return function(*inputs)

    @tf.function(jit_compile=xla)
    def forward_backward(*inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            found = function(*inputs)
            loss = tf.reduce_sum(found[0] if both else found)
        return tape.gradient(loss, inputs)

    step = forward_backward if backward else forward
    return lambda: [x.numpy() for x in _flat(step(*inputs))]


def jax_sides(case: dict[str, Any]) -> dict[str, Side]:
    """JAX, jitted: jax.nn.dot_product_attention, or additive attention as its formula."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(1)
    b, h, t, d = case["shape"]
    shape = (b, t, d) if case["additive"] else (b, t, h, d)
    inputs = tuple(jnp.asarray(random.standard_normal(shape, np.float32)) for _ in range(3))
    vector = jnp.asarray(random.standard_normal(d).astype(np.float32) / d**0.5)

    def attention(q: Any, k: Any, v: Any) -> Any:
        if case["additive"]:
            return jax.nn.softmax(jnp.tanh(q[:, :, None] + k[:, None]) @ vector, axis=-1) @ v
        return jax.nn.dot_product_attention(q, k, v, is_causal=case["causal"])

    step = jax.jit(jax.grad(lambda *x: attention(*x).sum(), argnums=(0, 1, 2)) if case["backward"] else attention)
    return {"JAX": lambda: jax.block_until_ready(step(*inputs))}


def _flat(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


def peak_beyond(call: Side) -> int:
    """Bytes by which the process's memory rose at most while `call` ran; what was freed goes back before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    call()
    return max(0, _memory("VmHWM") - before)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def serve(make: Callable[[dict[str, Any]], dict[str, Side]]) -> None:
    """Answer orders until the input ends; `make` sets up a case and gives its sides."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the framework prints is no answer
    sides: dict[str, Side] = {}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "case" in order:
                sides = {}
                sides = make(order["case"])
                answer: Any = list(sides)
            elif "memory" in order:
                answer = peak_beyond(sides[order["memory"]])
            else:
                start = time.perf_counter()
                sides[order["side"]]()
                answer = time.perf_counter() - start
        except Exception as error:  # out of memory, mostly: the other process has to hear of it
            answer = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve({"keras": keras_sides, "jax": jax_sides}[sys.argv[1]])
