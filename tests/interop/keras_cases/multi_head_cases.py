"""MultiHeadAttention and GroupQueryAttention."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.interop.keras_cases.support import (
    BACKEND,
    TOLERANCE,
    WAYS,
    array,
    assert_same,
    outcome,
    pair,
    random,
)

import limelight.interop.keras as ours
from limelight import AttentionView

B, T, S = 2, 13, 11
X, Y, Z = random(B, T, 10), random(B, S, 10, seed=1), random(B, S, 10, seed=2)
KEPT = np.arange(S) < np.array([[11], [4]])
GAPS = KEPT & (np.arange(S) != 2)
PATTERN = np.random.default_rng(5).random((B, T, S)) < 0.6
PATTERN[..., 0] = True
LAYERS = {
    "MultiHeadAttention": {"num_heads": 3, "key_dim": 5},
    "GroupQueryAttention": {"head_dim": 5, "num_query_heads": 6, "num_key_value_heads": 2},
}
MASKS = {
    "none": {},
    "causal": {"use_causal_mask": True},
    "lengths": {"value_mask": KEPT},
    "gaps": {"key_mask": GAPS, "use_causal_mask": True},
    "two vectors": {"value_mask": KEPT, "key_mask": np.arange(S) != np.full((B, 1), 2)},
    "pattern": {"attention_mask": PATTERN},
    "pattern for all": {"attention_mask": PATTERN[:1]},
    "everything": {"attention_mask": PATTERN, "value_mask": GAPS, "use_causal_mask": True},
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name, masks):
    mine, other = pair(name, X, Y, Z, **LAYERS[name])
    assert_same(mine, other, X, Y, Z, **MASKS[masks])


@pytest.mark.parametrize("masks", ["none", "causal", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_window(name, masks):
    mine, other = pair(name, X, Y, sliding_window=4, **LAYERS[name])
    # Rows that see no key differ, see below; with a window of 4 over lengths of 4 those from 7 on.
    rows = 7 if masks == "lengths" else T
    assert_same(mine, other, X[:, :rows], Y, **MASKS[masks])


@pytest.mark.parametrize("options", [{"use_bias": False}, {"use_gate": True}, {"use_gate": True, "dropout": 0.3}])
@pytest.mark.parametrize("name", LAYERS)
def test_options(name, options):
    mine, other = pair(name, X, Y, **LAYERS[name], **options)
    assert_same(mine, other, X, Y)


def test_value_and_output_widths():
    # With dropout Keras computes the scores; its fused path on JAX takes no such widths.
    options = {"num_heads": 2, "key_dim": 3, "value_dim": 7, "output_shape": (4, 3), "dropout": 0.1}
    mine, other = pair("MultiHeadAttention", X, Y, Z, **options)
    assert_same(mine, other, X, Y, Z)


@pytest.mark.parametrize("axes", [None, (2,), (1, 2), -2])
def test_attention_axes(axes):
    x, y = random(2, 3, 5, 8), random(2, 3, 5, 8, seed=1)
    mine, other = pair("MultiHeadAttention", x, y, num_heads=2, key_dim=3, attention_axes=axes)
    assert_same(mine, other, x, y)
    mask = np.random.default_rng(1).random((2, 3, 5, 5)) < 0.7
    mask[..., 0] = True
    if axes == (2,):
        np.testing.assert_allclose(
            array(mine(x, y, attention_mask=mask)), array(other(x, y, attention_mask=mask)), **TOLERANCE
        )


@pytest.mark.parametrize("name", LAYERS)
def test_rows_without_keys_give_nothing(name):
    mine, other = pair(name, X, Y, **LAYERS[name])
    pattern = PATTERN.copy()
    pattern[1, 3] = False
    # Where Keras computes the scores, it gives such rows 0 too; its fused path does not.
    want = array(other(X, Y, attention_mask=pattern, return_attention_scores=True)[0])
    for way in WAYS:
        with ours.computed(way):
            output, grads = outcome(mine, X, Y, attention_mask=pattern)
        np.testing.assert_allclose(output, want, **TOLERANCE)
        assert all(np.isfinite(one).all() for one in grads)
        assert not grads[0][1, 3].any()


@pytest.mark.parametrize("name", LAYERS)
def test_nan_behind_padding_stays_there(name):
    mine, _ = pair(name, X, Y, **LAYERS[name])
    dirty = np.where(KEPT[..., None], Y, np.float32(np.nan))
    for way in WAYS:
        with ours.computed(way):
            clean, output = array(mine(X, Y, value_mask=KEPT)), array(mine(X, dirty, value_mask=KEPT))
        np.testing.assert_allclose(output, clean, **TOLERANCE)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_scores_and_view(name, masks):
    options = LAYERS[name] | {"dropout": 0.2, "seed": 1}
    mine, other = pair(name, X, Y, **options)
    output, scores = other(X, Y, return_attention_scores=True, **MASKS[masks])
    for found in mine(X, Y, return_attention_scores=True, **MASKS[masks]), (output, scores):
        np.testing.assert_allclose(array(found[0]), array(output), **TOLERANCE)
        np.testing.assert_allclose(array(found[1]), array(scores), **TOLERANCE)
    seen, view = mine(X, Y, return_attention_view=True, **MASKS[masks])
    assert isinstance(view, AttentionView)
    np.testing.assert_allclose(array(seen), array(output), **TOLERANCE)
    np.testing.assert_allclose(view.dense().detach().numpy(), array(scores), **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_scores_and_dropout_do_not_mind_flash_attention(name):
    mine, other = pair(name, X, Y, **LAYERS[name])
    fast = getattr(ours, name)(**LAYERS[name], dropout=0.1, flash_attention=True)
    fast(X, Y)
    fast.set_weights([*mine.get_weights(), *fast.get_weights()[len(mine.get_weights()) :]])
    found, want = fast(X, Y, return_attention_scores=True), other(X, Y, return_attention_scores=True)
    for one, other_one in zip(found, want, strict=True):
        np.testing.assert_allclose(array(one), array(other_one), **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_masks_of_keras_are_found(name):
    tokens = np.array([[3, 4, 1, 0, 0], [1, 2, 3, 4, 0]])
    embedding = keras.layers.Embedding(6, 10, mask_zero=True)
    mine, other = pair(name, X, X, **LAYERS[name])
    found = [layer(*(embedding(tokens),) * 2, use_causal_mask=True) for layer in (mine, other)]
    masks = [one._keras_mask for one in found]
    assert [one is None for one in masks] == [False, False]
    np.testing.assert_array_equal(*map(array, masks))
    there = tokens > 0
    np.testing.assert_allclose(array(found[0])[there], array(found[1])[there], **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout(name):
    mine, _ = pair(name, X, Y, **LAYERS[name], dropout=0.4, seed=11)
    generator = mine._dropout_layer.seed_generator.state
    start = array(generator.value)

    def trained(way):
        generator.assign(start)
        with ours.computed(way):
            return array(mine(X, Y, training=True))

    first = trained(WAYS[0])
    for way in WAYS:  # the same seed drops the same weights, whatever computes
        np.testing.assert_allclose(trained(way), first, **TOLERANCE)
    again = array(mine(X, Y, training=True))
    assert np.abs(again - first).max() > 1e-3
    mean = array(mine(*(np.repeat(one[:1], 300, axis=0) for one in (X, Y)), training=True)).mean(0)
    calm = array(mine(X, Y))
    assert np.abs(mean - calm[0]).max() < 0.3 * np.abs(first - calm).max()


def test_dropout_gradients_agree_between_ways():
    mine, _ = pair("MultiHeadAttention", X, Y, num_heads=3, key_dim=5, dropout=0.4, seed=11)
    if BACKEND == "jax":
        pytest.skip("the state of the generator is not ours to keep inside of jit")
    generator = mine._dropout_layer.seed_generator.state
    start, found = array(generator.value), []
    for way in WAYS:
        generator.assign(start)
        with ours.computed(way):
            found.append(outcome(mine, X, Y, training=True))
    for one, other in zip(found[0][1], found[-1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


BAD_LAYERS = [
    ("MultiHeadAttention", {"num_heads": 0, "key_dim": 2}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 2.5}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "value_dim": -1}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "sliding_window": 0}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "output_shape": 2.5}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "attention_axes": 2.5}),
    ("GroupQueryAttention", {"head_dim": 2, "num_query_heads": 3, "num_key_value_heads": 2}),
    ("GroupQueryAttention", {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 2, "sliding_window": -1}),
]


@pytest.mark.parametrize(("name", "options"), BAD_LAYERS)
def test_bad_options_raise_the_same(name, options):
    said = []
    for home in (ours, keras.layers):
        with pytest.raises(ValueError, match="`") as caught:
            getattr(home, name)(**options)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", LAYERS)
def test_bad_calls_raise_the_same(name):
    unequal = (X, Y, random(B, S + 1, 10))
    with pytest.raises(Exception, match=r"the same number of positions S; key has|must be equal"):
        getattr(ours, name)(**LAYERS[name])(*unequal)
    # Keras' GroupQueryAttention leaves unequal keys and values to its backend.
    for inputs in ((X,), unequal) if name == "MultiHeadAttention" else ((X,),):
        kinds = []
        for home in (ours, keras.layers):
            with pytest.raises((ValueError, TypeError)) as caught:
                getattr(home, name)(**LAYERS[name])(*inputs)
            kinds.append(caught.type)
        assert kinds[0] is kinds[1]


def test_scores_read_a_mask_of_floats_as_keras_does():
    """For GroupQueryAttention a mask of 0.3 is True where it computes the output alone, False where it gives scores."""
    mine, other = pair("GroupQueryAttention", X, Y, **LAYERS["GroupQueryAttention"])
    mask = np.where(PATTERN, np.float32(1.0), np.float32(0.3))
    found, want = (layer(X, Y, attention_mask=mask, return_attention_scores=True) for layer in (mine, other))
    for one, known in zip(found, want, strict=True):
        np.testing.assert_allclose(array(one), array(known), **TOLERANCE)


def test_masks_of_a_subclass_are_kept():
    def backwards(base):
        class Backwards(base):
            def _compute_causal_mask(self, query, value=None):
                return ops.flip(super()._compute_causal_mask(query, value), axis=1)

        return Backwards

    for name in LAYERS:
        found, want = (backwards(getattr(home, name))(**LAYERS[name]) for home in (ours, keras.layers))
        for layer in (found, want):
            layer(X, Y)
        found.set_weights(want.get_weights())
        masks = {"use_causal_mask": True, "value_mask": KEPT}  # with causal alone Keras asks its backend for it
        np.testing.assert_allclose(array(found(X, Y, **masks)), array(want(X, Y, **masks)), **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_view_has_its_limits(name):
    mine, _ = pair(name, X, Y, **LAYERS[name])
    with pytest.raises(ValueError, match="only one of them may be True"):
        mine(X, Y, return_attention_view=True, return_attention_scores=True)
    with pytest.raises(ValueError, match="this call builds a model"):
        mine(keras.Input((T, 10)), keras.Input((S, 10)), return_attention_view=True)


@pytest.mark.parametrize("name", LAYERS)
def test_own_computation_of_a_subclass_is_kept(name):
    class Own(getattr(ours, name)):
        def _compute_attention(self, query, key, value, attention_mask=None, training=None, *_, **__):
            assert attention_mask.shape == (1, T, T)  # a mask, not a description
            return query * 0.0, None

    layer = Own(**LAYERS[name], use_bias=False)
    assert not array(layer(X, X, use_causal_mask=True)).any()


def test_own_computation_may_call_ours_with_arrays():
    mine, other = pair("MultiHeadAttention", X, Y, num_heads=2, key_dim=3)
    inputs = random(B, T, 2, 3), random(B, S, 2, 3, seed=1), random(B, S, 2, 3, seed=2)
    found, want = (layer._compute_attention(*inputs, PATTERN, use_causal_mask=True)[0] for layer in (mine, other))
    np.testing.assert_allclose(array(found), array(want), **TOLERANCE)


def test_blocks_cross_their_borders(monkeypatch):
    """Blocks of three keys: the last of eleven reaches back."""
    from limelight.interop.keras import blocks

    if BACKEND == "torch":
        pytest.skip("the torch backend has no blocks")
    monkeypatch.setattr(blocks, "_BLOCK", B * T * 3 * 3)
    mine, other = pair("MultiHeadAttention", X, Y, Z, num_heads=3, key_dim=5, sliding_window=9)
    inputs = (X[:, :12], Y, Z)  # the thirteenth row would see no key, which is another test
    with ours.computed("blocks"):
        found = outcome(mine, *inputs, use_causal_mask=True, value_mask=GAPS)
    want = outcome(other, *inputs, use_causal_mask=True, value_mask=GAPS)
    np.testing.assert_allclose(found[0], want[0], **TOLERANCE)
    for one, other_one in zip(found[1], want[1], strict=True):
        np.testing.assert_allclose(one, other_one, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name, policy):
    mine, other = pair(name, X, Y, dtype=policy, **LAYERS[name])
    want = other(X, Y, use_causal_mask=True)
    unit = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[policy]
    for way in WAYS:
        with ours.computed(way):
            found = mine(X, Y, use_causal_mask=True)
        assert keras.backend.standardize_dtype(found.dtype) == keras.backend.standardize_dtype(want.dtype)
        one, other_one = (array(ops.cast(each, "float32")) for each in (found, want))
        assert np.abs(one - other_one).max() <= 8 * unit * np.abs(other_one).max()


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless told so")
@pytest.mark.parametrize("name", LAYERS)
def test_float64(name):
    """Where Keras computes in float64: its fused path on torch casts to float32, and its scale on TensorFlow is rounded
    to float32 everywhere, which 1 / sqrt(4) does not mind."""
    width = {"key_dim": 4} if name == "MultiHeadAttention" else {"head_dim": 4}
    mine, other = pair(name, X, Y, dtype="float64", **LAYERS[name] | width)
    want = array(other(X, Y, use_causal_mask=True, return_attention_scores=True)[0])
    for way in WAYS:
        with ours.computed(way):
            found = array(mine(X, Y, use_causal_mask=True))
        assert found.dtype == want.dtype == np.float64
        assert np.abs(found - want).max() <= 2**-47 * np.abs(want).max()
