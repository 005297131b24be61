"""The largest scores of a vocabulary: the native pass against torch's product, topk and logsumexp."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.backends import extension
from limelight.backends.rows import Scores, cross_entropy
from limelight.errors import ArgumentError

needs_extension = pytest.mark.skipif(extension.refusal() is not None, reason="the native extension is not there")


def check(x, weight, bias, k):
    """The answer against float64, whose order decides where scores are further apart than fp32 can tell."""
    scores = x.double() @ weight.double().T + bias
    value, index, lse = Scores(weight, bias).strongest(x, k)
    assert value.dtype == lse.dtype == torch.float32
    assert index.dtype == torch.int64
    near = {"rtol": 2e-6, "atol": 2e-6 * float(x.abs().sum(-1).max() * weight.abs().max() + 1)}
    torch.testing.assert_close(value.double(), scores.topk(k, -1)[0], **near)
    torch.testing.assert_close(scores.gather(-1, index), value.double(), **near)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), **near)
    assert (value.diff(dim=-1) <= 0).all()
    assert all(len(set(row)) == k for row in index.reshape(-1, k).tolist())


@needs_extension
@given(
    rows=st.sampled_from([0, 1, 5, 7, 97, 600]),  # 600: several blocks a thread
    columns=st.integers(1, 700),
    depth=st.sampled_from([1, 3, 64, 255, 256, 257, 600]),
    share=st.floats(0.01, 1),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_rows_of_any_size(rows, columns, depth, share, size, seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(rows, depth) * size, torch.randn(columns, depth), torch.randn(columns)
    if rows:
        check(x, weight, bias, max(1, round(share * columns)))
    else:
        assert [len(part) for part in Scores(weight, bias).strongest(x, 1)] == [0, 0, 0]


@needs_extension
@pytest.mark.parametrize("k", [1, 10, 40])
def test_a_vocabulary_with_banned_tokens(k):
    torch.manual_seed(3)
    x, weight, bias = torch.randn(7, 5, 130), torch.randn(4001, 130), torch.randn(4001)
    bias[[0, 1, 4000]] = -torch.inf
    x[..., 0], weight[[0, 1, 4000], 0] = 1, 60.0  # they would be the strongest
    check(x, weight, bias, k)
    assert not {0, 1, 4000} & set(Scores(weight, bias).strongest(x, k)[1].flatten().tolist())


@needs_extension
def test_the_kernel_itself_answers():
    scores = Scores(torch.randn(300, 20), torch.zeros(300))
    assert scores._packed is not None
    assert scores._native(torch.randn(9, 20), 4, *scores._packed) is not None


@needs_extension
def test_of_equal_scores_the_lower_column_comes_first():
    scores = Scores(torch.zeros(600, 8), torch.zeros(600))
    assert scores.strongest(torch.ones(2, 8), 3)[1].tolist() == [[0, 1, 2]] * 2


def test_features_and_weights_that_are_no_slice_of_memory():
    check(torch.randn(6, 50).t(), torch.randn(6, 90).t(), torch.randn(90), 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["features", "weight", "bias"])
def test_what_the_kernel_does_not_answer_torch_does(bad, where):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(3, 20), torch.randn(400, 20), torch.randn(400)
    {"features": x[1], "weight": weight[333], "bias": bias if bad < 0 else bias[70:71]}[where][:] = bad
    scores = x @ weight.T + bias
    value, _, lse = Scores(weight, bias).strongest(x, 2)
    torch.testing.assert_close(value, scores.topk(2, -1)[0], equal_nan=True)
    torch.testing.assert_close(lse, scores.logsumexp(-1), equal_nan=True)


@needs_extension
@pytest.mark.parametrize("row", [0, 199])
def test_any_thread_may_find_the_row_that_the_kernel_does_not_answer(row):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scores, x = Scores(torch.ones(400, 64), torch.zeros(400)), torch.ones(200, 64)
        assert scores._native(x, 1, *scores._packed) is not None
        x[row, 3] = torch.nan
        assert scores._native(x, 1, *scores._packed) is None
    finally:
        torch.set_num_threads(before)


def test_scores_of_every_size_are_told_without_overflow():
    weight, bias = torch.randn(500, 4), torch.zeros(500)
    check(torch.randn(3, 4) * 1e4, weight, bias, 3)
    check(torch.zeros(3, 4), weight, bias - 1e4, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    x, weight, bias = torch.randn(3, 20).to(dtype), torch.randn(90, 20).to(dtype), torch.randn(90)
    value, index, lse = Scores(weight, bias).strongest(x, 5)
    scores = (x @ weight.T).float() + bias
    assert torch.equal(value, scores.topk(5, -1)[0])
    assert torch.equal(scores.gather(-1, index), value)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def check_cross_entropy(logits, bias, target, kept, scale=1.0):
    z = logits.double() + bias
    each = torch.nn.functional.cross_entropy(z, target, reduction="none")
    shares = z.softmax(-1)
    expected = shares.clone()
    expected[range(len(target)), target] -= kept
    grad, sums, likelihood = cross_entropy(logits.clone(), bias, target, kept)
    # The roundings are those of a share, also where little is left of it once `kept` is taken off.
    assert ((grad.double() - expected).abs() <= 1e-6 * scale * shares + 2e-7).all()
    torch.testing.assert_close(sums.double(), expected.sum(0), rtol=1e-5, atol=1e-6 * len(target))
    torch.testing.assert_close(likelihood.double(), each, rtol=1e-6, atol=1e-6 * scale)


@needs_extension
@given(
    rows=st.sampled_from([1, 2, 7, 97, 300]),
    columns=st.one_of(st.integers(1, 70), st.integers(71, 3000)),
    kept=st.sampled_from([1.0, 0.9, 0.1]),
    size=st.sampled_from([1e-3, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_cross_entropy_of_any_size(rows, columns, kept, size, seed):
    torch.manual_seed(seed)
    logits, bias, target = torch.randn(rows, columns) * size, torch.randn(columns), torch.randint(columns, (rows,))
    check_cross_entropy(logits, bias, target, kept, scale=1 + size)


@needs_extension
def test_cross_entropy_of_huge_logits():
    logits, target = torch.tensor([[1e4, -1e4, 9.9e3, 0.0], [-1e4, -1e4, -1e4, -1e4]]), torch.tensor([1, 2])
    grad, _, likelihood = cross_entropy(logits.clone(), torch.zeros(4), target, 1.0)
    assert grad.tolist() == [[1.0, -1.0, 0.0, 0.0], [0.25, 0.25, -0.75, 0.25]]
    assert likelihood.tolist() == pytest.approx([2e4, 1.3862944])


@needs_extension
@pytest.mark.parametrize("where", [0, 9, 17])
def test_cross_entropy_shows_nan(where):
    logits = torch.zeros(3, 18)
    logits[1, where] = torch.nan
    grad, sums, likelihood = cross_entropy(logits, torch.zeros(18), torch.tensor([1, 2, 3]), 1.0)
    assert likelihood.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().all()
    assert sums.isnan().all()
    assert grad[[0, 2]].isfinite().all()


@needs_extension
def test_cross_entropy_gives_the_same_bits_again():
    logits, target = torch.randn(201, 1009), torch.randint(1009, (201,))
    first, second = (cross_entropy(logits.clone(), torch.ones(1009), target, 0.9) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@needs_extension
@pytest.mark.parametrize("bad", [-100, -1, 18])
def test_cross_entropy_refuses_a_target_that_is_no_column(bad):
    with pytest.raises(ArgumentError, match=r"target: must be tokens in \[0, 18\), got .*; leave padding out"):
        cross_entropy(torch.zeros(3, 18), torch.zeros(18), torch.tensor([4, bad, 5]), 1.0)


@needs_extension
def test_cross_entropy_of_no_rows():
    grad, sums, likelihood = cross_entropy(torch.zeros(0, 18), torch.zeros(18), torch.zeros(0, dtype=torch.int64), 1.0)
    assert grad.shape == (0, 18)
    assert sums.tolist() == [0] * 18
    assert likelihood.shape == (0,)
