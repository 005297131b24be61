"""Our layers for Keras against Keras' own, on TensorFlow, torch and JAX: time and peak memory, forward and fit step.

python -m benchmarks.run --only keras                        # all, an hour
python -m benchmarks.run --only keras --case "tensorflow, MultiHeadAttention 512"

Each of Keras' backends runs in a process of its own, one after the other; within a process the sides take turns. Each
side is first held against Keras' layer with the same weights. "kernels" are the native kernels by a callback, "blocks"
the loop in `keras.ops`. A fit step is `train_on_batch` of a model that is the layer alone.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer import Side, serve
from benchmarks.process import Process
from benchmarks.timing import for_a_while

BACKENDS = ("tensorflow", "torch", "jax")
_HEADS, _WIDTH = 8, 64


@dataclass(frozen=True)
class Case:
    """Batch, queries, keys and width of the inputs; masked: causal, and lengths from a mask of Keras."""

    name: str
    layer: str
    shape: tuple[int, int, int, int]
    masked: bool = False


CASES = (
    *(
        Case(
            f"MultiHeadAttention {t}{', causal, lengths' if masked else ''}",
            "MultiHeadAttention",
            (b, t, t, 512),
            masked,
        )
        for b, t in ((4, 512), (1, 2048), (1, 8192))
        for masked in (False, True)
    ),
    Case("GroupQueryAttention 2048, causal, lengths", "GroupQueryAttention", (1, 2048, 2048, 512), True),
    Case("AdditiveAttention (8, 256, 256, 256)", "AdditiveAttention", (8, 256, 256, 256)),
    Case("AdditiveAttention (1, 2048, 2048, 256)", "AdditiveAttention", (1, 2048, 2048, 256)),
)


def rows(seconds: float, only: str = "") -> Iterator[dict[str, Any]]:
    """Time the cases whose "backend, name" contains `only`, for about so many seconds a side."""
    for backend in BACKENDS:
        cases = [case for case in CASES if only in f"{backend}, {case.name}"]
        if not cases:
            continue
        process = Process(Path(sys.executable), backend, "-m", "benchmarks.keras_layers", backend)
        for case in cases:
            for step in ("forward", "fit step"):
                told = asdict(case) | {"step": step, "threads": torch.get_num_threads()}
                names = process.prepare(told)
                memory = {name: process.memory(name) for name in names}
                sides = {name: partial(process.seconds, name) for name in names}
                timings = for_a_while(sides, seconds=seconds) if sides else {}
                theirs = timings.get("Keras")
                for name, timing in timings.items():
                    peak = memory[name]
                    yield {
                        "backend": backend,
                        "case": case.name,
                        "step": step,
                        "side": name,
                        "ms": round(1e3 * timing.median, 2),
                        "ms_quartiles": [round(1e3 * timing.low, 2), round(1e3 * timing.high, 2)],
                        "times_as_fast_as_keras": None if theirs is None else round(theirs.median / timing.median, 2),
                        "peak_MiB": None if peak is None else round(peak / 2**20, 1),
                    }
        process.close()


def sides(case: dict[str, Any]) -> dict[str, Side]:
    """In the process of a backend: what is to be timed."""
    import keras
    import numpy as np

    import limelight.interop.keras as ours

    backend = keras.backend.backend()
    _threads(backend, case["threads"])
    random = np.random.default_rng(1)
    b, t, _, width = case["shape"]
    x = random.standard_normal((b, t, width)).astype(np.float32)
    if case["masked"]:
        x *= (np.arange(t) < random.integers(t // 2, t + 1, (b, 1)))[..., None]
    target = np.zeros((b, t, width), np.float32)
    kinds: dict[str, tuple[Any, str, bool]] = {"Keras": (keras.layers, "auto", False)}
    if backend == "torch":
        kinds["limelight"] = (ours, "auto", False)
    else:
        kinds |= {"limelight, kernels": (ours, "kernels", backend == "jax")}
        kinds |= {"limelight, blocks": (ours, "blocks", backend == "jax")}
        kinds["Keras"] = (keras.layers, "auto", backend == "jax")
    if backend == "tensorflow":
        kinds |= {"Keras, XLA": (keras.layers, "auto", True), "limelight, blocks, XLA": (ours, "blocks", True)}
    found: dict[str, Side] = {}
    weights: Any = None
    want: Any = None
    for name, (home, way, compiled) in kinds.items():
        model = _model(home, case)
        weights = model.get_weights() if weights is None else weights
        model.set_weights(weights)
        model.compile("sgd", "mse", jit_compile=compiled)
        small = x[:1, : min(t, 512)]
        with ours.computed(way):
            got = model.predict_on_batch(small)
        want = got if want is None else want
        # Rows of padding see keys in one layer and none in the other.
        there = np.abs(small).sum(-1) > 0
        error = np.linalg.norm((got - want)[there]) / np.linalg.norm(want[there])
        if not error < 1e-5:
            raise AssertionError(f"{name}: relative error {error:.1e} against Keras, not timed")
        found[name] = _step(model, x, target, case["step"], ours.computed, way)
    return found


def _model(home: Any, case: dict[str, Any]) -> Any:
    import keras

    width = case["shape"][3]
    inputs = keras.Input((None, width))
    x = keras.layers.Masking()(inputs) if case["masked"] else inputs
    options = {"use_causal_mask": True} if case["masked"] else {}
    if case["layer"] == "MultiHeadAttention":
        output = home.MultiHeadAttention(_HEADS, _WIDTH)(x, x, **options)
    elif case["layer"] == "GroupQueryAttention":
        output = home.GroupQueryAttention(_WIDTH, _HEADS, 2)(x, x, **options)
    else:
        output = home.AdditiveAttention()([x, x], **options)
    return keras.Model(inputs, output)


def _step(model: Any, x: Any, target: Any, step: str, computed: Any, way: str) -> Side:
    def run() -> object:
        with computed(way):  # what is traced at the first call stays so
            return model.predict_on_batch(x) if step == "forward" else model.train_on_batch(x, target)

    return run


def _threads(backend: str, threads: int) -> None:
    torch.set_num_threads(threads)
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)


if __name__ == "__main__":
    os.environ |= {"KERAS_BACKEND": sys.argv[1], "TF_CPP_MIN_LOG_LEVEL": "3"}
    serve(sides)
