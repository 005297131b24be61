"""The loop in `keras.ops`: what a graph of it holds at once, and what it keeps for the backward pass."""

from pathlib import Path

import keras
import numpy as np
import pytest
from tests.interop.keras_cases.support import BACKEND, random

import limelight.interop.keras as ours

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="the torch backend has no blocks")
LAYERS = ("MultiHeadAttention", "AdditiveAttention")
BLOCK = 1 << 16


def model_of(name, width):
    inputs = keras.Input((None, width))
    if name == "MultiHeadAttention":
        return keras.Model(inputs, ours.MultiHeadAttention(1, width)(inputs, inputs, use_causal_mask=True))
    return keras.Model(inputs, ours.AdditiveAttention()([inputs, inputs], use_causal_mask=True))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX says below what it makes")
def test_a_fit_step_holds_few_blocks(monkeypatch):
    """In a graph, at a length whose matrix is 144 MB, in blocks of 1 MB."""
    monkeypatch.setattr("limelight.interop.keras.blocks._BLOCK", 1 << 18)
    length, width = 6_000, 2
    model = model_of("MultiHeadAttention", width)
    model.compile("sgd", "mse", jit_compile=False)
    x = random(1, length, width)
    with ours.computed("blocks"):
        model.train_on_batch(x, x)  # traced, and what is made once
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        model.train_on_batch(x, x)
    assert _memory("VmHWM") - before < 25e6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_begins_one_block_at_a_time(name):
    import tensorflow as tf

    model, dense = model_of(name, 2), ours.AdditiveAttention()
    dense.build([(1, None, 2)] * 2)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output, scores = model(x), dense([x, x], return_attention_scores=True)[1]
            loss = tf.reduce_sum(output) + tf.reduce_sum(scores)
        return tape.gradient(loss, x)

    with ours.computed("blocks"):
        graph = tf.function(step).get_concrete_function(tf.TensorSpec((1, None, 2))).graph
    loops = [one for one in graph.get_operations() if one.type in ("While", "StatelessWhile")]
    assert len(loops) == 4
    assert {one.get_attr("parallel_iterations") for one in loops} == {1}


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
@pytest.mark.parametrize("name", LAYERS)
def test_a_program_has_no_larger_array_than_a_block(monkeypatch, name):
    import jax

    monkeypatch.setattr("limelight.interop.keras.blocks._BLOCK", BLOCK)
    length = 1_000
    model = model_of(name, 2)
    with ours.computed("blocks"):
        program = jax.make_jaxpr(jax.grad(lambda x: model(x).sum()))(random(1, length, 2))
    sizes = list(_sizes(program.jaxpr))
    assert len(sizes) > 100
    assert length < max(sizes) <= BLOCK


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX, which says what it keeps")
@pytest.mark.parametrize("additive", [False, True])
def test_the_backward_pass_keeps_inputs_output_and_a_number_for_each_row(additive):
    import jax
    import jax.numpy as jnp

    from limelight.interop.keras import blocks
    from limelight.interop.keras.problem import Settings, Tensors

    heads = 1 if additive else 3
    inputs = [jnp.asarray(random(2, t, heads, 16, seed=t), "bfloat16") for t in (37, 41, 41)]
    if additive:
        inputs.append(jnp.ones(16, "bfloat16"))
    settings = Settings(causal=True)
    output, pull = jax.vjp(lambda *given: blocks.attention(settings, Tensors(*given)), *inputs)
    kept = sum(one.nbytes for one in jax.tree.leaves(pull))
    assert kept <= sum(one.nbytes for one in inputs) + output.nbytes + 4 * 2 * heads * 37 + 64


def _sizes(program):
    for equation in program.eqns:
        yield from (int(np.prod(one.aval.shape)) for one in equation.outvars)
        for given in equation.params.values():
            for inner in given if isinstance(given, (tuple, list)) else (given,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)


def _memory(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
