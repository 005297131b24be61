"""The native pass over long rows against torch's topk and logsumexp."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limelight.backends import extension, rows

needs_extension = pytest.mark.skipif(extension.refusal() is not None, reason="the native extension is not there")


def expected(scores, k, bias=0.0):
    scores = scores + bias
    value, index = scores.topk(k, -1)
    return value, index, scores.double().logsumexp(-1)


@needs_extension
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 90)),
    share=st.floats(0.01, 1),
    size=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_rows_of_any_length(shape, share, size, seed):
    torch.manual_seed(seed)
    scores = torch.randn(shape) * size
    k = max(1, round(share * shape[1]))
    value, index, lse = rows._native(scores, k)
    assert torch.equal(value, expected(scores, k)[0])
    assert torch.equal(scores.gather(-1, index), value)
    assert all(len(set(row)) == k for row in index.tolist())
    torch.testing.assert_close(lse.double(), expected(scores, k)[2], rtol=1e-6, atol=2e-6)


@needs_extension
@pytest.mark.parametrize("k", [1, 10, 40])
def test_a_vocabulary_with_banned_tokens(k):
    torch.manual_seed(3)
    scores = torch.randn(7, 5, 4001) * 4
    bias = torch.randn(4001)
    bias[[0, 1, 4000]] = -torch.inf
    found, wanted = rows.strongest(scores, k, bias), expected(scores, k, bias)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[2].double(), wanted[2], rtol=1e-6, atol=2e-6)


@needs_extension
def test_of_equal_scores_the_lower_column_comes_first():
    assert rows.strongest(torch.zeros(2, 100), 3)[1].tolist() == [[0, 1, 2]] * 2


def test_rows_that_are_no_slice_of_memory():
    scores = torch.randn(50, 6).t()
    for found, wanted in zip(rows.strongest(scores, 4), expected(scores, 4), strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_the_kernel_does_not_answer_torch_does(bad):
    scores = torch.randn(3, 20)
    scores[1] = bad
    if extension.refusal() is None:
        assert rows._native(scores, 2) is None
    found, wanted = rows.strongest(scores, 2), expected(scores, 2)
    torch.testing.assert_close(found[0], wanted[0], equal_nan=True)
    torch.testing.assert_close(found[2].double(), wanted[2], equal_nan=True)


def test_other_dtypes():
    scores = torch.randn(3, 20, dtype=torch.float64)
    for found, wanted in zip(rows.strongest(scores, 5), expected(scores, 5), strict=True):
        assert torch.equal(found, wanted)
