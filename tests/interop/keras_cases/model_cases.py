"""Whole models: files, configurations, training, compiled functions, memory."""

from pathlib import Path

import keras
import numpy as np
import pytest
from tests.interop.keras_cases.support import BACKEND, TOLERANCE, WAYS, array, outcome, pair, random

import limelight.interop.keras as ours

T, S, D = 7, 5, 6
TOKENS = np.array([[3, 4, 1, 0, 0, 0, 0], [1, 2, 3, 4, 5, 1, 0], [2, 2, 5, 1, 3, 4, 1]])
TARGETS = random(3, T, 1)


def model_of(home):
    """All four layers, masks from the embedding."""
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, D, mask_zero=True)(tokens)
    x = home.MultiHeadAttention(2, 3, use_gate=True)(x, x, use_causal_mask=True)
    x = home.GroupQueryAttention(3, 4, 2)(x, x, use_causal_mask=True)
    x = home.Attention(use_scale=True)([x, x], use_causal_mask=True)
    x = home.AdditiveAttention()([x, x], use_causal_mask=True)
    return keras.Model(tokens, keras.layers.Dense(1)(x))


@pytest.fixture(scope="module")
def models():
    other, mine = model_of(keras.layers), model_of(ours)
    weights = [random(*one.shape, seed=place) / 2 for place, one in enumerate(other.get_weights())]
    other.set_weights(weights)
    mine.set_weights(weights)
    return mine, other


def test_model_of_four(models):
    mine, other = models
    there = TOKENS > 0
    want = array(other(TOKENS))[there]
    for way in WAYS:
        with ours.computed(way):
            np.testing.assert_allclose(array(mine(TOKENS))[there], want, **TOLERANCE)
    assert mine.count_params() == other.count_params()
    assert [one.shape for one in mine.weights] == [one.shape for one in other.weights]
    assert [one.path.split("/", 1)[1] for one in mine.weights] == [one.path.split("/", 1)[1] for one in other.weights]


def test_weight_files_load_both_ways(models, tmp_path):
    for one, other in (models, models[::-1]):
        one.save_weights(tmp_path / "m.weights.h5")
        again = model_of(keras.layers if other is models[1] else ours)
        again.load_weights(tmp_path / "m.weights.h5")
        for found, want in zip(again.get_weights(), one.get_weights(), strict=True):
            np.testing.assert_array_equal(found, want)


def test_saved_models_load_both_ways(models, tmp_path):
    mine, other = models
    there, want = TOKENS > 0, array(other(TOKENS))
    other.save(tmp_path / "theirs.keras")
    converted = ours.convert(keras.models.load_model(tmp_path / "theirs.keras"))
    kinds = [type(layer) for layer in converted.layers]
    assert kinds == [type(layer) for layer in mine.layers]
    np.testing.assert_allclose(array(converted(TOKENS))[there], want[there], **TOLERANCE)
    converted.save(tmp_path / "ours.keras")
    again = keras.models.load_model(tmp_path / "ours.keras")
    assert [type(layer) for layer in again.layers] == kinds
    np.testing.assert_array_equal(array(again(TOKENS)), array(converted(TOKENS)))
    back = ours.revert(again)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in other.layers]
    np.testing.assert_array_equal(array(back(TOKENS)), want)


def test_a_saved_model_goes_on_training_where_it_was(tmp_path):
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3)(inputs, inputs))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    x = random(3, T, D)
    model.train_on_batch(x, x)
    model.save(tmp_path / "theirs.keras")
    mine = ours.convert(keras.models.load_model(tmp_path / "theirs.keras"))
    assert type(mine.layers[1]) is ours.MultiHeadAttention
    losses = [[one.train_on_batch(x, x) for _ in range(3)] for one in (mine, model)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_conversion_reaches_inner_models_and_keeps_compilation(models):
    inner = models[1]
    outer = keras.Sequential([keras.Input((None,), dtype="int32"), inner, keras.layers.Dense(1)])
    outer.compile("adam", "mse", metrics=["mae"])
    found = ours.convert(outer)
    assert type(found.layers[0].layers[2]) is ours.MultiHeadAttention
    assert found.compiled
    assert found.get_compile_config() == outer.get_compile_config()


CONFIGS = {
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3, "dropout": 0.1, "sliding_window": 3, "seed": 4},
    "GroupQueryAttention": {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2, "kernel_regularizer": "l2"},
    "Attention": {"use_scale": True, "score_mode": "concat", "dropout": 0.2, "seed": 3, "dtype": "mixed_bfloat16"},
    "AdditiveAttention": {"use_scale": False, "trainable": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name):
    mine, other = (getattr(home, name)(name="a", **CONFIGS[name]) for home in (ours, keras.layers))
    assert mine.get_config() == other.get_config()
    assert type(mine).from_config(other.get_config()).get_config() == mine.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(mine))
    assert type(again) is type(mine)
    assert again.get_config() == mine.get_config()


def test_automatic_names():
    for name, options in CONFIGS.items():
        found = [getattr(home, name)(**options).name.rstrip("0123456789_") for home in (ours, keras.layers)]
        assert found[0] == found[1]


def test_symbolic_shapes():
    query, value = keras.Input((T, D)), keras.Input((S, D))
    for name, options in CONFIGS.items():
        mine, other = (getattr(home, name)(**options) for home in (ours, keras.layers))
        listed = "Attention" in name and "head" not in str(options)
        inputs = ([query, value],) if listed else (query, value)
        found, want = (layer(*inputs, return_attention_scores=True) for layer in (mine, other))
        assert found[0].shape == want[0].shape
        assert found[0].dtype == want[0].dtype
        assert found[1].dtype == want[1].dtype
        assert found[1].shape[-2:] == (T, S)
        assert mine(*inputs).shape == found[0].shape


def test_training_is_the_same():
    histories = []
    weights = None
    for home in (keras.layers, ours):
        model = model_of(home)
        weights = [random(*one.shape, seed=place) / 2 for place, one in enumerate(model.get_weights())]
        model.set_weights(weights)
        model.compile(keras.optimizers.SGD(0.05), "mse")
        histories.append(model.fit(TOKENS, TARGETS, epochs=3, batch_size=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no XLA")
def test_training_compiled_by_xla_is_the_same():
    losses = []
    for home in (keras.layers, ours):
        inputs = keras.Input((T, D))
        x = home.MultiHeadAttention(2, 3)(inputs, inputs, use_causal_mask=True)
        model = keras.Model(inputs, home.AdditiveAttention()([x, x]))
        model.set_weights([random(*one.shape, seed=place) / 2 for place, one in enumerate(model.get_weights())])
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=True)
        losses.append([model.train_on_batch(random(3, T, D), TARGETS) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_training_with_dropout_learns():
    inputs = keras.Input((T, D))
    x = ours.MultiHeadAttention(2, 3, dropout=0.2, seed=1)(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(0.03), "mse")
    x = np.tile(random(8, T, D), (10, 1, 1))
    losses = model.fit(x, x[..., :1], epochs=4, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_functions_of_tensorflow():
    import tensorflow as tf

    mine, other = pair("MultiHeadAttention", random(2, T, D), random(2, T, D), num_heads=2, key_dim=3)
    x = random(2, T, D)
    want = array(other(x, x, use_causal_mask=True))
    for compiled in (False, True):
        traced = tf.function(
            lambda x: mine(x, x, use_causal_mask=True),
            jit_compile=compiled,
            input_signature=[tf.TensorSpec((None, None, D))],
        )
        np.testing.assert_allclose(array(traced(x)), want, **TOLERANCE)
        operations = {one.type for one in traced.get_concrete_function().graph.get_operations()}
        assert ("PyFuncStateless" in operations) is not compiled
    x = tf.constant(x)
    for way in WAYS:
        with tf.GradientTape() as outer, ours.computed(way):
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = mine(x, x)
            first = inner.gradient(y, x)
        with pytest.raises(ValueError, match="no second derivatives"):
            outer.gradient(first, x)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_exported_model_runs_on_its_own(tmp_path):
    import tensorflow as tf

    inputs = keras.Input((None, D))
    x = ours.MultiHeadAttention(2, 3)(inputs, inputs, use_causal_mask=True)
    mine = keras.Model(inputs, ours.AdditiveAttention()([x, x]))
    x = random(3, T, D)
    mine.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    written = served.signatures["serving_default"].graph.as_graph_def()
    operations = {
        node.op for part in (written.node, *(one.node_def for one in written.library.function)) for node in part
    }
    assert "MatMul" in " ".join(operations)
    assert not [one for one in operations if "PyFunc" in one]
    np.testing.assert_allclose(array(served.serve(tf.constant(x))), array(mine(x)), **TOLERANCE)


def test_unknown_way():
    with pytest.raises(ValueError, match="way must be one of"), ours.computed("fast"):
        pass


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["MultiHeadAttention", "AdditiveAttention"])
def test_nothing_of_queries_times_keys(monkeypatch, name, way):
    """Forward and backward at a length whose matrix would be 144 MB; in blocks, a dozen tensors of 4 MB at a time."""
    if way == "blocks":
        monkeypatch.setattr("limelight.interop.keras.blocks._BLOCK", 1 << 20)
    length, width = 6_000, 2
    x = random(1, length, width)
    options = {"num_heads": 1, "key_dim": width} if name == "MultiHeadAttention" else {}
    inputs = (x, x) if options else ([x, x],)
    small = (x[:, :50], x[:, :50]) if options else ([x[:, :50], x[:, :50]],)
    mask = {"use_causal_mask": True}
    mine, _ = pair(name, *small, **options)
    with ours.computed(way):
        outcome(mine, *small, **mask)  # what is made once
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        outcome(mine, *inputs, **mask)
    assert _memory("VmHWM") - before < 100e6


def _memory(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
