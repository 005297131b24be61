"""Calls of every shape, right and wrong: what Keras computes ours computes, what Keras refuses ours refuses alike."""

import inspect

import keras
import numpy as np
import pytest
from tests.interop.keras_cases.support import BACKEND, TOLERANCE, array, assert_same, pair, random

import limelight.interop.keras as ours

B, T, S, D = 2, 5, 4, 6
X, Y = random(B, T, D), random(B, S, D, seed=1)
LAYERS = {
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3},
    "GroupQueryAttention": {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2},
    "Attention": {},
    "AdditiveAttention": {},
}
HEADS = ("MultiHeadAttention", "GroupQueryAttention")
LISTED = ("Attention", "AdditiveAttention")


def some(*shape):
    """A pattern that leaves every query its first key: what a row without keys gives is another matter."""
    pattern = np.arange(np.prod(shape)).reshape(shape) % 3 > 0
    pattern[..., 0] = True
    return pattern


def true(*shape):
    return np.ones(shape, bool)


# In the order query, value, key.
INPUTS = {
    "equal": (X, Y),
    "batch of value": (X, random(3, S, D)),
    "one value": (X, random(1, S, D)),
    "one query": (random(1, T, D), Y),
    "one key": (X, Y, random(1, S, D)),
    "one value for keys": (X, random(1, S, D), Y),
    "batch of key": (X, Y, random(3, S, D)),
    "a key too many": (X, Y, random(B, S + 1, D)),
    "one key position": (X, Y, random(B, 1, D)),
    "two axes": (random(T, D), random(S, D)),
    "two axes of value": (X, random(S, D)),
    "four axes": (random(B, 2, T, D), random(B, 2, S, D)),
    "four axes of value": (X, random(B, 2, S, D)),
    "one axis": (random(D), random(D)),
    "no query": (random(B, 0, D), Y),
    "no key": (X, random(B, 0, D)),
    "none": (X, None),
}
LISTED_INPUTS = INPUTS | {
    "width": (X, random(B, S, D + 1)),
    "width of one": (X, Y, random(B, S, 1)),
    "whole numbers": (X.astype("int32"), Y.astype("int32")),
    "four axes and one": (random(B, 3, T, D), random(B, 1, S, D)),
    "four axes and three": (random(3, B, T, D), Y),
}
MASKS = {
    "rows": {"attention_mask": true(B, T + 1, S)},
    "columns": {"attention_mask": true(B, T, S + 1)},
    "batch": {"attention_mask": true(3, T, S)},
    "heads": {"attention_mask": true(B, 7, T, S)},
    "five axes": {"attention_mask": true(1, B, 1, T, S)},
    "one axis": {"attention_mask": some(S)},
    "two axes": {"attention_mask": some(T, S)},
    "four axes": {"attention_mask": some(B, 1, T, S)},
    "whole numbers": {"attention_mask": some(B, T, S).astype("int32")},
    "rows, causal": {"attention_mask": true(B, T + 1, S), "use_causal_mask": True},
    "length of values": {"value_mask": true(B, S + 1)},
    "batch of values": {"value_mask": true(3, S)},
    "values of all": {"value_mask": some(1, S)},
    "values, one axis": {"value_mask": some(S), "use_causal_mask": True},
    "values, one position": {"value_mask": true(B, 1)},
    "values, three axes": {"value_mask": true(B, 1, S)},
    "length of keys": {"key_mask": true(B, S + 1)},
    "batch of keys": {"key_mask": true(3, S)},
    "keys of all, and values": {"key_mask": some(1, S), "value_mask": true(B, S)},
    "a list": {"value_mask": true(B, S).tolist()},
    "a name": {"attention_mask": "causal"},
}
LISTED_MASKS = {
    "length of queries": {"mask": [true(B, T + 1), None]},
    "length of values": {"mask": [None, true(B, S + 1)]},
    "batch of values": {"mask": [None, true(3, S)]},
    "of all": {"mask": [some(1, T), some(1, S)]},
    "queries, one position": {"mask": [np.array([[True], [False]]), None]},
    "values, three axes": {"mask": [None, some(B, T, S)]},
    "values, three axes, causal": {"mask": [None, true(B, T, S)], "use_causal_mask": True},
    "values, one axis": {"mask": [None, some(S)]},
    "values, one axis, causal": {"mask": [None, some(S)], "use_causal_mask": True},
    "floats": {"mask": [true(B, T).astype("float32"), some(B, S).astype("float32")]},
    "a list": {"mask": [None, true(B, S).tolist()]},
}
CALLS = [(name, inputs, {}) for name in HEADS for inputs in INPUTS]
CALLS += [(name, inputs, {}) for name in LISTED for inputs in LISTED_INPUTS]
CALLS += [(name, "equal", MASKS[mask]) for name in HEADS for mask in MASKS]
CALLS += [(name, "equal", LISTED_MASKS[mask]) for name in LISTED for mask in LISTED_MASKS]
CALLS += [(name, "two axes", {"use_causal_mask": True}) for name in LISTED]


def call(layer, *inputs, **options):
    listed = isinstance(layer, (keras.layers.Attention, keras.layers.AdditiveAttention))
    return layer(list(inputs), **options) if listed else layer(*inputs, **options)


def answer(home, name, inputs, options):
    keras.utils.set_random_seed(3)
    layer = getattr(home, name)(**LAYERS[name])
    try:
        return array(call(layer, *inputs, **options))
    except Exception as error:
        return error


def same(found, want):
    return not isinstance(found, Exception) and found.shape == want.shape and np.allclose(found, want, **TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_any_call_is_answered_as_keras_answers_it():
    differing = []
    # TensorFlow and JAX are slow at many little things, and the other two layers share all that matters here.
    names = LAYERS if BACKEND == "torch" else ("MultiHeadAttention", "Attention")
    for name, kind, options in (one for one in CALLS if one[0] in names):
        inputs = LISTED_INPUTS[kind]
        want, found = (answer(home, name, inputs, options) for home in (keras.layers, ours))
        # Whoever catches Keras' error catches ours.
        alike = isinstance(found, type(want)) if isinstance(want, Exception) else same(found, want)
        if name == "GroupQueryAttention" and kind in ("a key too many", "one key position"):
            assert isinstance(found, Exception), "what Keras may read past an end for"
            assert "key and value must have the same number of positions S; key has" in str(found)
        elif not alike:
            differing.append((name, kind, options, want, found))
    assert not differing


@pytest.mark.parametrize("name", LAYERS)
def test_errors_of_shapes_say_what_is_wrong(name):
    layer = getattr(ours, name)(**LAYERS[name])
    call(layer, X, Y)
    with pytest.raises(Exception, match=r"the same batch B; they have 2, 3 and 3|shapes are \[\[2, 5, 6\], \[3"):
        call(layer, X, random(3, S, D))
    masks = {"mask": [None, true(B, S + 1)]} if name in LISTED else {"value_mask": true(B, S + 1)}
    with pytest.raises(Exception, match=r"one value for each position, \[2, 4\]; it is \[2, 5\]"):
        call(layer, X, Y, **masks)
    unequal = (X, Y, random(B, S + 1, D))
    with pytest.raises(ValueError, match=r"return_attention_view=True: key and value must have the same number"):
        call(layer, *unequal, return_attention_view=True)


@pytest.mark.skipif(BACKEND != "torch", reason="Keras' fused attention broadcasts a batch on torch, and partly on JAX")
@pytest.mark.parametrize("inputs", ["one value", "one query", "one key", "one value for keys"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_one_has_its_gradients(name, inputs):
    given = [np.ascontiguousarray(one) for one in INPUTS[inputs]]
    given = [given] if name in LISTED else given
    mine, other = pair(name, *given, **LAYERS[name])
    assert_same(mine, other, *given)
    assert_same(mine, other, *given, use_causal_mask=True)


@pytest.mark.skipif(BACKEND != "torch", reason="that is about torch")
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_one_makes_no_matrix(name):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    positions, most = 301, []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            most.extend(
                one.numel() for one in (found if isinstance(found, tuple) else (found,)) if hasattr(one, "numel")
            )
            return found

    mine = getattr(ours, name)(**LAYERS[name])
    given = [torch.randn(batch, positions, D) for batch in (B, 1)]
    with torch.no_grad(), Sizes():
        call(mine, *given)
    assert 0 < max(most) < positions**2 / 4


@pytest.mark.parametrize("name", LAYERS)
def test_constructors_are_those_of_keras(name):
    mine, other = (inspect.signature(getattr(home, name)) for home in (ours, keras.layers))
    assert mine == other
    calls = [inspect.signature(getattr(home, name).call).parameters for home in (ours, keras.layers)]
    assert [*calls[0]] == [*calls[1], "return_attention_view"]
    assert all(calls[0][one].default == calls[1][one].default for one in calls[1])
