"""The kernels at the edges: numbers beyond fp32's range behind masks, rounding to narrow dtypes, work in pieces."""

from __future__ import annotations

import math

import pytest
import torch
from tests.support.narrow import pairs

from limelight import additive, attend, band, causal, dense, dot, interval, lengths, look, relative, top, window
from limelight.backends import extension
from limelight.errors import BackendError

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")

SCORES = [dot(), dot(cap=3.0), additive(torch.ones(16))]


def _random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _with_gradients(query, key, value, **arguments):
    leaves = [one.clone().requires_grad_() for one in (query, key, value)]
    output = attend(*leaves, backend="native", **arguments)
    return output, *torch.autograd.grad(output.sum(), leaves)


@pytest.fixture
def threads():
    """Sets the number of threads; as it was after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _hidden(rows):
    """Keys 30 and above are hidden from all rows, in four ways."""
    bias = _random(9, 1, 1, rows, 41)
    bias[..., 30:] = -math.inf
    seen = torch.rand(1, 1, rows, 41, generator=torch.Generator().manual_seed(9)) < 0.7
    seen[..., 30:] = False
    return {
        "lengths": {"mask": lengths(torch.tensor([30, 7]))},
        "dense": {"mask": dense(seen)},
        "band": {"mask": band(high=30 - rows)},
        "bias": {"bias": bias},
    }


@pytest.mark.parametrize("score", SCORES, ids=["dot", "capped", "additive"])
@pytest.mark.parametrize("rows", [1, 5, 23])
@pytest.mark.parametrize("how", ["lengths", "dense", "band", "bias"])
def test_the_largest_finite_numbers_behind_a_mask_are_never_seen(score, rows, how):
    # They overflow in the products with query and with the gradient, and inf times 0 is NaN.
    query, key, value = (_random(seed, 2, 2, size, 16) for seed, size in ((1, rows), (2, 41), (3, 41)))
    arguments = {"score": score, **_hidden(rows)[how]}
    expected = _with_gradients(query, key, value, **arguments)
    for place, fill in ((1, 3e38), (1, -3e38), (2, 3e38), (2, -3e38)):
        spoilt = [query, key.clone(), value.clone()]
        spoilt[place][..., 30:, :] = fill
        for have, want in zip(_with_gradients(*spoilt, **arguments), expected, strict=True):
            torch.testing.assert_close(have, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [2**40, 10**18, 2**62, 2**63 - 1, 2**70])
def test_windows_and_bands_of_any_size(size):
    query, key, value = (_random(seed, 1, 2, length, 8) for seed, length in ((1, 40), (2, 9), (3, 9)))
    for mask, plain in (
        (window(size, size), None),
        (window(size, 0), causal()),
        (band(-size, 3), band(None, 3)),
        (band(2, size), band(2, None)),
    ):
        expected = attend(query, key, value, mask=plain, backend="native")
        assert torch.equal(attend(query, key, value, mask=mask, backend="native"), expected)
        torch.testing.assert_close(attend(query, key, value, mask=mask, backend="reference"), expected)
    assert not attend(query, key, value, mask=band(size, size), backend="native").any()


def test_more_keys_than_it_can_number_are_refused():
    query = torch.zeros(1, 1, 1, 1)
    many = query.expand(1, 1, 2**31, 1)
    with pytest.raises(BackendError, match="numbers at most 2147483647 keys, and there are 2147483648"):
        attend(query, many, many, backend="native")


def _finite(dtype):
    """Every finite number of a dtype of 16 bits."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 30])
def test_every_narrow_number_is_read_and_written_exactly(dtype, queries):
    # One key: its weight is 1, and the output its value.
    numbers = _finite(dtype)
    value = numbers.view(1, 1, 1, -1)
    query, key = torch.zeros(1, 1, queries, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    output = attend(query, key, value, backend="native")
    if queries > 1 and dtype is torch.bfloat16 and pairs():
        normal = (value.abs() >= torch.finfo(dtype).tiny).squeeze()  # in products of pairs the others may count as 0
        value, output = value[..., normal], output[..., normal]
    assert torch.equal(output, value.expand_as(output))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 30])
def test_narrow_numbers_are_rounded_to_the_nearest_and_ties_to_even(dtype, queries):
    # Two keys of equal weight: the mean of neighbours is a tie, that of others falls between.
    numbers = _finite(dtype).sort().values
    numbers = numbers[numbers.abs() < torch.finfo(dtype).max / 4]  # the sum of two, before it is halved, is finite
    others = numbers.roll(-1), numbers.roll(-3), numbers[torch.randperm(len(numbers))]
    query, key = torch.zeros(1, 1, queries, 1, dtype=dtype), torch.zeros(1, 1, 2, 1, dtype=dtype)
    for other in others:
        value = torch.stack((numbers, other)).unsqueeze(0).unsqueeze(0)
        output = attend(query, key, value, backend="native")
        want = (numbers.double() / 2 + other.double() / 2).float().to(dtype)
        if queries > 1 and dtype is torch.bfloat16 and pairs():  # what is below the least normal number counts as 0
            small = torch.stack((numbers, other, want)).abs() < torch.finfo(dtype).tiny
            want, output = want[~small.any(0)], output[..., ~small.any(0)]
        # -0 and 0 have the mean 0.
        torch.testing.assert_close(output, want.expand_as(output), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients_beyond_the_range_are_inf(dtype):
    query = torch.zeros(1, 1, 1, 1, dtype=dtype)
    key = torch.tensor([1.0, -1.0], dtype=dtype).view(1, 1, 2, 1)
    value = (key * torch.finfo(dtype).max / 4).requires_grad_()
    query.requires_grad_()
    output = attend(query, key, value, score=dot(64.0), backend="native")
    (grad,) = torch.autograd.grad(output.sum(), query)
    assert grad.item() == math.inf


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_gradients_of_few_queries_take_the_weights_of_the_forward_pass(size):
    # The weights of a row sum to 1, so the gradient of the values does; a score with another rounding would show.
    query, key, value = _random(1, 1, 2, 3, 61) * size, _random(2, 1, 2, 300, 61), _random(3, 1, 2, 300, 8)
    to_value = _with_gradients(query, key, value)[3]
    torch.testing.assert_close(to_value.sum(2), torch.full((1, 2, 8), 3.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shared", "queries"), [(2, 1), (9, 1), (71, 1), (8, 2), (9, 2), (2, 3)])
def test_queries_that_share_a_key_head_observe_what_each_would_alone(shared, queries):
    query, key, value = _random(1, 2, 2 * shared, queries, 40), _random(2, 2, 2, 633, 40), _random(3, 2, 2, 633, 43)
    observe = ("received", "entropy", "distance", top(5))
    mask = lengths(torch.tensor([633, 130]))
    output, view = look(query, key, value, mask=mask, backend="native", observe=observe)
    for head in range(2 * shared):
        mine, theirs = slice(head, head + 1), slice(head // shared, head // shared + 1)
        inputs = (one.double() for one in (query[:, mine], key[:, theirs], value[:, theirs]))
        expected, alone = look(*inputs, mask=mask, backend="reference", observe=observe)
        torch.testing.assert_close(output[:, mine].double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(view.entropy()[:, mine].double(), alone.entropy(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(view.received()[:, mine].double(), alone.received(), rtol=1e-5, atol=1e-7)
        assert torch.equal(view.top(5).indices[:, mine], alone.top(5).indices)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_gradients_of_a_long_cache_in_pieces_are_those_of_the_whole(threads, count):
    threads(count)
    query, key, value = _random(1, 1, 6, 2, 40), _random(2, 1, 3, 1501, 40), _random(3, 1, 3, 1501, 43)
    bias, to_output = _random(4, 1, 6, 1, 1501), _random(5, 1, 6, 2, 43)

    def gradients(*inputs, backend):
        leaves = [one.detach().clone().requires_grad_() for one in inputs]
        output = attend(*leaves[:3], bias=leaves[3], mask=causal() & window(1400, 0), backend=backend)
        return torch.autograd.grad(output, leaves, to_output.to(output.dtype))

    wide = [one.double() for one in (query, key, value, bias)]
    exact = gradients(*wide, backend="reference")
    for have, want in zip(gradients(query, key, value, bias, backend="native"), exact, strict=True):
        torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("queries", [200, 1031])
def test_long_sums_err_no_more_than_those_of_an_honest_matrix_product(queries):
    shape = {"query": (1, 1, queries, 512), "key": (1, 1, 1031, 512), "value": (1, 1, 1031, 64)}
    inputs = [_random(seed, *size) for seed, size in enumerate(shape.values())]

    def errors(backend):
        exact = attend(*(one.double() for one in inputs), backend="reference")
        return (attend(*inputs, backend=backend).double() - exact).square().mean().sqrt().item()

    assert errors("native") < 2 * errors("reference")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("sink", [None, torch.tensor([0.3, -math.inf, 40.0])])
def test_a_long_cache_in_pieces_observes_what_the_whole_does(threads, count, sink):
    threads(count)
    query, key, value = _random(1, 1, 3, 1, 40), _random(2, 1, 1, 3001, 40), _random(3, 1, 1, 3001, 43)
    key[..., 2000:, :] *= 3  # so that pieces have maxima far apart
    observe = ("received", "entropy", "distance", top(9))
    exact = None if sink is None else sink.double()
    wide = (one.double() for one in (query, key, value))
    output, view = look(query, key, value, sink=sink, backend="native", observe=observe)
    expected, seen = look(*wide, sink=exact, backend="reference")
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(view.lse.double(), seen.lse, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(view.entropy().double(), seen.entropy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(view.distance().double(), seen.distance(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(view.received().double(), seen.received(), rtol=1e-5, atol=1e-7)
    assert torch.equal(view.top(9).indices, seen.top(9).indices)


@pytest.mark.parametrize("score", [dot(), additive(torch.ones(20) / 4)], ids=["dot", "additive"])
@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_work_in_parts_gives_what_one_part_does(threads, score, count):
    # Three key heads for two, three and five parts: heads are cut, and begun by one part and ended by another.
    query, key, value = (_random(seed, 1, heads, 631, 20) for seed, heads in ((1, 6), (2, 3), (3, 3)))
    bias, rows, to_lse = _random(4, 1, 1, 1, 631), _random(5, 1, 6, 631), _random(6, 1, 6, 631)

    def everything(parts):
        threads(parts)
        leaves = [one.clone().requires_grad_() for one in (query, key, value, bias)]
        output, view = look(*leaves[:3], score=score, bias=leaves[3], mask=causal(), backend="native")
        grads = torch.autograd.grad((output.square().sum() + (view.lse * to_lse).sum()), leaves)
        seen = look(query, key, value, score=score, backend="native", observe=("received", "entropy"))[1]
        return output, *grads, seen.received(), seen.entropy(), seen.received(rows)

    for have, want in zip(everything(count), everything(1), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5 * max(1.0, want.abs().max().item()))


def test_the_seed_s_upper_half_and_every_row_have_a_say_in_what_is_dropped():
    query, key, value = torch.zeros(1, 1, 500, 4), torch.zeros(1, 1, 300, 4), torch.ones(1, 1, 300, 1)
    one, other = (attend(query, key, value, dropout=0.5, seed=seed, backend="native") for seed in (3, 3 + 2**40))
    for output in (one, other):
        assert len(output.unique()) > 20
        assert abs(output.mean().item() - 1) < 0.01
        assert output.std().item() == pytest.approx(1 / math.sqrt(300), rel=0.15)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("keys", [64, 512, 700])
@pytest.mark.parametrize("ends", [(-7, None), (1, None), (None, 5), (None, -3), (-40, -2)])
@pytest.mark.parametrize("queries", [5, 41, 192])
def test_bands_end_at_every_place_of_a_block(queries, keys, ends):
    # Whole blocks of keys, so that nothing but the band asks for a mask: one row after the other it moves by one key.
    query, key, value = (_random(seed, 1, 1, length, 8) for seed, length in ((1, queries), (2, keys), (3, keys)))
    _agrees_with_the_reference((query, key, value), mask=band(*ends))


def _agrees_with_the_reference(inputs, **arguments):
    have = _with_gradients(*inputs, **arguments)
    leaves = [one.double().requires_grad_() for one in inputs]
    output = attend(*leaves, backend="reference", **arguments)
    for one, want in zip(have, (output, *torch.autograd.grad(output.sum(), leaves)), strict=True):
        torch.testing.assert_close(one.double(), want, rtol=1e-5, atol=1e-5)


def test_queries_without_keys_stand_between_others():
    # Every third query sees nothing, the next ones see other keys than those before.
    place = torch.arange(60)
    first = torch.where(place % 3 == 1, 660, place * 11)
    mask = interval(first, torch.where(place % 3 == 1, 0, first + 12))
    _agrees_with_the_reference(
        [_random(seed, 1, 2, size, 8) for seed, size in ((1, 60), (2, 660), (3, 660))], mask=mask
    )


@pytest.mark.parametrize(
    "make", [lambda _: dot(), lambda dtype: additive(torch.ones(8, dtype=dtype))], ids=["dot", "additive"]
)
@pytest.mark.parametrize(("queries", "keys"), [(5, 41), (150, 131)])
def test_gradient_of_a_bias_by_distance(make, queries, keys):
    query, key, value = (_random(seed, 1, 2, size, 8) for seed, size in ((1, queries), (2, keys), (3, keys)))
    grads = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        table = _random(4, 2, 2 * keys + 1).to(dtype).requires_grad_()
        inputs = [one.to(dtype) for one in (query, key, value)]
        output = attend(*inputs, score=make(dtype), bias=relative(table), backend=backend)
        grads.append(torch.autograd.grad((output * inputs[0]).sum(), table)[0])
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("width", [1, 2, 13, 64, 97, 512])
def test_scores_of_narrow_numbers_are_those_of_their_exact_products(width, apart):
    # bf16 has 8 bits: products are exact in fp32, in pairs too where the machine multiplies those.
    query, key = (_random(seed, 1, 2, size, width).bfloat16() for seed, size in enumerate((24, 131)))
    value = torch.zeros(1, 2, 131, 1, dtype=torch.bfloat16)
    if apart:  # columns that do not follow one another
        query, key = (one.mT.contiguous().mT for one in (query, key))
    lse = look(query, key, value, backend="native")[1].lse
    exact = look(query.double(), key.double(), value.double(), backend="reference")[1].lse
    wide = look(query.float(), key.float(), value.float(), backend="reference")[1].lse
    limit = 2 * (wide - exact).abs().max() + 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (lse - exact).abs().max() <= limit


def test_rounding_the_weights_of_narrow_numbers_favours_no_side():
    # The weights of a row sum to 1: cut off instead of rounded to the nearest, they would sum to 0.998.
    query, key = (_random(seed, 1, 4, size, 16).bfloat16() for seed, size in ((1, 389), (2, 200)))
    value = torch.ones(1, 4, 200, 8, dtype=torch.bfloat16)
    output, _, _, to_value = _with_gradients(query, key, value)
    assert abs(output.double().mean() - 1) < 5e-4
    assert abs(to_value.double().sum(2).mean() / 389 - 1) < 5e-4


@pytest.mark.parametrize("half", [0, 1])
def test_products_that_leave_the_range_before_they_are_scaled(half):
    # Those of every other column, which are one half of all pairs.
    query, key, value = (_random(seed, 1, 2, 31, 16).bfloat16() for seed in range(3))
    query[..., half::2] *= 2.0**66
    key[..., half::2] *= 2.0**66
    want = attend(*(one.double() for one in (query, key, value)), score=dot(2.0**-132), backend="reference")
    found = _with_gradients(query, key, value, score=dot(2.0**-132))
    torch.testing.assert_close(found[0], want.bfloat16(), atol=0.02, rtol=0.02)
    assert all(one.isfinite().all() for one in found)
