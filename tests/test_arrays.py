"""NumPy arrays in, NumPy arrays out."""

import numpy as np
import pytest
import torch

from limelight import additive, attend, causal, dense, dot, interval, look, relative, top
from limelight.errors import ArgumentError


@pytest.fixture
def given():
    random = np.random.default_rng(5)
    return [random.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 13))]


def test_an_array_comes_out(given):
    tensors = [torch.from_numpy(one) for one in given]
    output = attend(*given, mask=causal())
    assert isinstance(output, np.ndarray)
    np.testing.assert_array_equal(output, attend(*tensors, mask=causal()).numpy())
    looked, view = look(*given, mask=causal(), observe=("entropy", top(2)))
    np.testing.assert_array_equal(looked, output)
    assert torch.equal(view.entropy(), look(*tensors, mask=causal(), observe=("entropy",))[1].entropy())


def test_float64_strides_read_only_and_bias(given):
    q, k, v = (one.astype(np.float64) for one in given)
    bias = np.full((5, 11), 0.25)
    bias[:, 3] = -np.inf
    plain = attend(q, k, v, bias=bias, sink=np.zeros(3))
    assert plain.dtype == np.float64
    q.flags.writeable = False
    turned = np.ascontiguousarray(k.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(attend(q, turned, v, bias=bias, sink=np.zeros(3)), plain)


def test_parts_of_a_call_may_be_arrays(given):
    random = np.random.default_rng(6)
    vector, table = random.standard_normal(7).astype(np.float32), random.standard_normal(9).astype(np.float32)
    allowed, first = random.random((5, 11)) > 0.3, np.arange(5)
    for options, same in (
        ({"mask": dense(allowed)}, {"mask": dense(torch.from_numpy(allowed))}),
        ({"mask": interval(first, first + 3)}, {"mask": interval(torch.arange(5), torch.arange(5) + 3)}),
        ({"score": additive(vector)}, {"score": additive(torch.from_numpy(vector))}),
        ({"bias": relative(table)}, {"bias": relative(torch.from_numpy(table))}),
        ({"dropout": np.float32(0.25), "seed": np.int64(3)}, {"dropout": 0.25, "seed": 3}),
        ({"score": dot(np.float32(0.5), cap=np.float64(2.0))}, {"score": dot(0.5, cap=2.0)}),
    ):
        np.testing.assert_array_equal(attend(*given, **options), attend(*given, **same))


def test_a_read_only_array_is_not_copied():
    # Repeated, it would take 32 GiB.
    key = np.broadcast_to(np.zeros((1, 1, 1, 8), np.float32), (1, 1, 2**30, 8))
    assert not key.flags.writeable
    query = np.ones((1, 1, 1, 8), np.float32)
    output = attend(query, key, key, mask=interval(np.array([5]), np.array([9])))
    np.testing.assert_array_equal(output, np.zeros_like(query))


def test_mistakes(given):
    q, k, v = given
    with pytest.raises(ArgumentError, match=r"key must be a NumPy array where query is one; it is a torch.Tensor"):
        attend(q, torch.from_numpy(k), v)
    with pytest.raises(ArgumentError, match=r"key must be a torch.Tensor"):
        attend(torch.from_numpy(q), k, v)
    with pytest.raises(ArgumentError, match=r"query: torch cannot take an array of dtype"):
        attend(q.astype("U3"), k, v)
    with pytest.raises(ArgumentError, match=r"value: torch cannot take an array of dtype float32 and strides"):
        attend(q, k, v[..., ::-1])
