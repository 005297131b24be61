"""Attention and AdditiveAttention."""

import keras
import numpy as np
import pytest
from tests.interop.keras_cases.support import BACKEND, TOLERANCE, WAYS, array, assert_same, outcome, pair, random

import limelight.interop.keras as ours
from limelight import AttentionView

B, T, S, D = 2, 13, 11, 7
X, Y, Z = random(B, T, D), random(B, S, 5, seed=1), random(B, S, D, seed=2)
V = random(B, S, D, seed=4)
KEPT = np.arange(S) < np.array([[11], [4]])
GAPS = KEPT & (np.arange(S) != 2)
THERE = np.arange(T) < np.array([[9], [13]])
LAYERS = {
    "dot": ("Attention", {}),
    "scaled": ("Attention", {"use_scale": True}),
    "concat": ("Attention", {"score_mode": "concat"}),
    "scaled concat": ("Attention", {"score_mode": "concat", "use_scale": True}),
    "additive": ("AdditiveAttention", {}),
    "unscaled additive": ("AdditiveAttention", {"use_scale": False}),
}
MASKS = {
    "none": {},
    "causal": {"use_causal_mask": True},
    "keys": {"mask": [None, KEPT]},
    "all": {"mask": [THERE, GAPS], "use_causal_mask": True},
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients(kind, masks):
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, Y, Z], **options)
    assert_same(mine, other, [X, Y, Z], **MASKS[masks])


@pytest.mark.parametrize("kind", LAYERS)
def test_two_inputs_and_more_axes(kind):
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, V], **options)
    assert_same(mine, other, [X, V])
    inputs = [random(2, 3, 5, D), random(2, 3, 4, D, seed=1)]
    assert_same(mine, other, inputs, use_causal_mask=True)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_scores_and_view(kind, masks):
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, Y, Z], **options)
    output, scores = other([X, Y, Z], return_attention_scores=True, **MASKS[masks])
    found = mine([X, Y, Z], return_attention_scores=True, **MASKS[masks])
    np.testing.assert_allclose(array(found[0]), array(output), **TOLERANCE)
    np.testing.assert_allclose(array(found[1]), array(scores), **TOLERANCE)
    seen, view = mine([X, Y, Z], return_attention_view=True, **MASKS[masks])
    assert isinstance(view, AttentionView)
    np.testing.assert_allclose(array(seen), array(output), **TOLERANCE)
    weights = view.dense().squeeze(1).detach().numpy()
    rows = THERE if masks == "all" else np.ones((B, T), bool)
    np.testing.assert_allclose(weights[rows], array(scores)[rows], **TOLERANCE)
    assert not weights[~rows].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_sequence_without_keys_gives_nothing(kind):
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, V], **options)
    mask = [None, KEPT & np.array([[True], [False]])]
    for way in WAYS:
        with ours.computed(way):
            output, grads = outcome(mine, [X, V], mask=mask)
        assert not output[1].any()
        assert all(np.isfinite(one).all() for one in grads)
    assert array(other([X, V], mask=mask))[1].any()  # Keras gives the mean


def test_dropout_drops_and_keeps_the_mean():
    mine, _ = pair("AdditiveAttention", [X, V], dropout=0.4, seed=3)
    calm, first = array(mine([X, V])), array(mine([X, V], training=True))
    assert np.abs(first - calm).max() > 1e-2
    many = [np.repeat(one[:1], 300, axis=0) for one in (X, V)]
    mean = array(mine(many, training=True)).mean(0)
    assert np.abs(mean - calm[0]).max() < 0.3 * np.abs(first - calm).max()


@pytest.mark.parametrize("kind", ["dot", "additive"])
def test_a_dropout_of_1_drops_everything(kind):
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, V], dropout=1.0, **options)
    found, want = (array(layer([X, V], training=True)) for layer in (mine, other))
    np.testing.assert_array_equal(found, want)
    assert not found.any()


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless told so")
@pytest.mark.parametrize("kind", ["dot", "scaled", "concat", "additive"])
def test_float64_comes_out_as_it_does_of_keras(kind):
    """On torch Keras' matmul makes float32 of float64, and so its layers do."""
    name, options = LAYERS[kind]
    mine, other = pair(name, [X, V], dtype="float64", **options)
    for calls in ({}, {"return_attention_scores": True}):
        found, want = (layer([X, V], **calls) for layer in (mine, other))
        for one, known in zip(*(each if calls else (each,) for each in (found, want)), strict=True):
            assert keras.backend.standardize_dtype(one.dtype) == keras.backend.standardize_dtype(known.dtype)
            np.testing.assert_allclose(array(one), array(known), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless told so")
def test_without_autocast_dtypes_meet_as_in_keras():
    for inputs in ([X, V.astype("float64")], [X.astype("float64"), V, V.astype("float64")]):
        found, want = (home.Attention(autocast=False)(inputs) for home in (ours, keras.layers))
        assert keras.backend.standardize_dtype(found.dtype) == keras.backend.standardize_dtype(want.dtype)
        np.testing.assert_allclose(array(found), array(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [((B, 0, D), (B, S, D)), ((B, T, D), (B, 0, D)), ((B, T, D), (B, B, S, D))])
def test_scores_of_odd_inputs_are_those_of_keras(sizes):
    mine, other = pair("AdditiveAttention", [X, V])
    inputs = [random(*size, seed=place) for place, size in enumerate(sizes)]
    found, want = (layer(inputs, return_attention_scores=True) for layer in (mine, other))
    for one, known in zip(found, want, strict=True):
        np.testing.assert_allclose(array(one), array(known), **TOLERANCE)


def test_masks_of_keras_are_found_and_handed_on():
    tokens = np.array([[3, 4, 1, 0, 0], [1, 2, 3, 4, 0]])
    embedded = keras.layers.Embedding(6, D, mask_zero=True)(tokens)
    mine, other = pair("AdditiveAttention", [X, V])
    found = [layer([embedded, embedded]) for layer in (mine, other)]
    np.testing.assert_allclose(array(found[0]), array(found[1]), **TOLERANCE)
    np.testing.assert_array_equal(*(array(one._keras_mask) for one in found))


def test_bad_calls_raise_the_same():
    calls = [
        ((X,), {}),
        (([X],), {}),
        (([X, V, V, V],), {}),
        (([X, V],), {"mask": KEPT}),
        (([X, V],), {"mask": [KEPT]}),
    ]
    for name in ("Attention", "AdditiveAttention"):
        for inputs, options in calls:
            said = []
            for home in (ours, keras.layers):
                with pytest.raises(ValueError, match="layer") as caught:
                    getattr(home, name)()(*inputs, **options)
                said.append(str(caught.value).split("Received")[0])
            assert said[0] == said[1]
    for home in (ours, keras.layers):
        with pytest.raises(ValueError, match="Invalid value for argument score_mode"):
            home.Attention(score_mode="scaled_dot")


def test_own_scores_of_a_subclass_are_kept():
    def doubled(base):
        class Doubled(base):
            def _calculate_scores(self, query, key):
                return 2 * super()._calculate_scores(query, key)

        return Doubled()

    np.testing.assert_allclose(
        array(doubled(ours.Attention)([X, V])), array(doubled(keras.layers.Attention)([X, V])), **TOLERANCE
    )
    with pytest.raises(ValueError, match="computes its attention itself"):
        doubled(ours.Attention)([X, V], return_attention_view=True)


def test_view_in_a_graph_is_refused():
    if BACKEND == "torch":
        pytest.skip("torch computes at once")
    layer = ours.AdditiveAttention()
    layer([X, V])

    def call(x):
        return layer([x, x], return_attention_view=True)[0]

    if BACKEND == "jax":
        import jax

        call = jax.jit(call)
    else:
        import tensorflow as tf

        call = tf.function(call, autograph=False)
    with pytest.raises(ValueError, match="needs tensors that have values"):
        call(X)
