"""The C++ kernels against float64: outputs, lse, gradients and what they observe, over generated cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.kernels import cases
from tests.support.kernels import random as _random
from tests.support.narrow import pairs, product_roundings

import limelight
from limelight import attend, causal, dot, lengths, look, segments, top
from limelight.backends import extension, kernels
from limelight.errors import BackendError

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")


def _cotangents(output, lse, dtype):
    return _random(7, *output.shape).to(dtype).to(output.dtype), _random(8, *lse.shape).to(lse.dtype)


def _everything(inputs, arguments, backend, dtype, make=lambda *_: dot()):
    """Output, lse, then the gradients of both to every input."""
    leaves = [one.to(dtype).requires_grad_() for one in inputs]
    score = make(*leaves[3:])
    arguments = {name: one.to(dtype) if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    leaves += [arguments[name].requires_grad_() for name in ("bias", "sink") if name in arguments]
    output, view = look(*leaves[:3], score=score, backend=backend, **arguments)
    lse = view.lse
    to_output, to_lse = _cotangents(output, lse, dtype)
    total = (output * to_output).sum() + (lse.masked_fill(lse == -math.inf, 0) * to_lse).sum()
    return output, lse, *torch.autograd.grad(total, leaves)


def _agree(inputs, arguments, dtype=torch.float32, make=lambda *_: dot(), paired=False):
    """The kernel errs no more than twice as far as the textbook in the same dtype, or a few roundings.

    `paired`: beside that as far as the roundings may take it that products of pairs of bf16 numbers ask for.

    A score's gradient is a difference of two sums of E products, which the textbook takes in the same order and the
    kernel does not: its roundings stay where those of the textbook cancel, so gradients have the bound of `tolerance`.
    """
    terms = sum(one.shape[-1] for one in inputs[:3])
    narrow = [one.to(dtype).double() for one in inputs]
    arguments = {
        name: one.to(dtype).double() if isinstance(one, torch.Tensor) else one for name, one in arguments.items()
    }
    exact = _everything(narrow, arguments, "reference", torch.float64, make)
    honest = _everything(narrow, arguments, "reference", dtype, make)
    ours = _everything(narrow, arguments, "native", dtype, make)
    in_products = [torch.zeros_like(one) for one in exact]
    if paired:
        in_products = product_roundings(narrow, arguments, *_cotangents(*exact[:2], dtype))
    for place, (have, other, want, more) in enumerate(zip(ours, honest, exact, in_products, strict=True)):
        finite = want.isfinite()
        assert torch.equal(have.isfinite(), finite), place
        if not finite.any():
            continue
        size = max(1.0, want[finite].abs().max().item())
        error = ((have - want).abs() - more)[finite].max().item()
        allowed = (other - want)[finite].abs().max().item()
        roundings = 8 if place < 2 else 4 * terms
        limit = 2 * allowed + roundings * torch.finfo(torch.float32).eps * size
        assert error <= limit, f"{place}: {error} against {allowed}"


@pytest.mark.parametrize(("T", "S", "E"), [(389, 200, 3), (389, 389, 1)])
def test_a_bias_of_one_number_loses_none_of_the_pairs_that_share_it(T, S, E):
    inputs = [_random(0, 1, 1, T, 1), _random(1, 1, 1, S, 1), _random(2, 1, 1, S, E)]
    inputs = [one.float().double() for one in inputs]
    arguments = {"mask": causal(), "bias": _random(4, 1, 1, 1, 1), "sink": _random(5, 1, 1)}
    arguments |= {name: arguments[name].float().double() for name in ("bias", "sink")}
    want, have = (
        _everything(inputs, arguments, *how)[5].item()
        for how in (("reference", torch.float64), ("native", torch.float32))
    )
    assert abs(have - want) <= 4 * torch.finfo(torch.float32).eps * max(1.0, abs(want))


@given(case=cases(), cap=st.sampled_from((None, None, 0.7, 30.0)))
@settings(max_examples=60, deadline=None)
def test_dot_agrees_with_the_reference_in_float64(case, cap):
    _agree(*case, make=lambda *_: dot(cap=cap))


@given(case=cases(few=True), cap=st.sampled_from((None, None, 0.7, 30.0)), dtype=st.sampled_from(list(kernels.TYPES)))
@settings(max_examples=60, deadline=None)
def test_few_queries_agree_with_the_reference_in_float64(case, cap, dtype):
    _agree(*case, dtype=dtype, make=lambda *_: dot(cap=cap))


@given(case=cases(), dtype=st.sampled_from((torch.bfloat16, torch.float16)), additive=st.booleans())
@settings(max_examples=60, deadline=None)
def test_narrow_inputs_agree_with_the_reference_in_float64(case, dtype, additive):
    (query, key, value), arguments = case
    inputs = query, key, value + 10.0  # an output that is rounded has lost what the gradients are made of
    if additive:
        return _agree((*inputs, _random(9, query.shape[-1]) / query.shape[-1]), arguments, dtype, limelight.additive)
    return _agree(inputs, arguments, dtype, paired=dtype is torch.bfloat16 and pairs())


@pytest.mark.parametrize("cap", [1e-3, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_capped_scores_of_any_size(cap, scale):
    # Huge scores err where two are nearly equal, in few rows: of many rows both have met some.
    query, key, value = _random(1, 1, 1, 1021, 16), _random(2, 1, 1, 41, 16), _random(3, 1, 1, 41, 16)
    _agree((query * scale, key, value), {"mask": causal()}, make=lambda *_: dot(cap=cap))


@given(case=cases(additive=True), per_head=st.booleans())
@settings(max_examples=60, deadline=None)
def test_additive_agrees_with_the_reference_in_float64(case, per_head):
    inputs, arguments = case
    (_, H, _, D), size = inputs[0].shape, 1 / math.sqrt(inputs[0].shape[-1])
    vector = _random(9, H, D) * size if per_head else _random(9, D) * size
    _agree((*inputs, vector), arguments, make=limelight.additive)


@given(case=cases(), draw_k=st.sampled_from((1, 3, 8, 13, 40)))
@settings(max_examples=40, deadline=None)
def test_observations_agree_with_the_reference(case, draw_k):
    inputs, arguments = case
    arguments = {name: one for name, one in arguments.items() if name not in ("dropout", "seed")}
    expected = look(*inputs, backend="reference", **arguments)[1]
    narrow = {name: one.float() if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    floats = [one.float() for one in inputs]
    k = min(draw_k, inputs[1].shape[2])
    view = look(*floats, backend="native", observe=("received", "entropy", "distance", top(k)), **narrow)[1]
    rows = max(1, inputs[0].shape[2])
    torch.testing.assert_close(view.distance().double(), expected.distance(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(view.entropy().double(), expected.entropy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(view.received().double(), expected.received(), rtol=1e-5, atol=1e-6 * rows)
    found, wanted = view.top(k), expected.top(k)
    torch.testing.assert_close(found.weights.double(), wanted.weights, rtol=1e-5, atol=1e-6)
    other = found.indices != wanted.indices  # equal but for a rounding
    assert (found.weights - wanted.weights)[other].abs().le(1e-6).all()
    assert torch.equal(found.indices < 0, wanted.indices < 0)


@pytest.mark.parametrize("queries", [2, 50])
@pytest.mark.parametrize("k", [1, 5, 8, 20, 33])
def test_of_equal_links_the_first_ones_are_the_strongest(queries, k):
    query, key = torch.ones(1, 1, queries, 4), torch.zeros(1, 1, 300, 4)
    key[0, 0, 170:190] = 1.0  # twenty equals above many, in another block of keys
    key[0, 0, 5] = -1e4
    links = look(query, key, key, backend="native", observe=(top(k),))[1].top(k)
    want = [*range(170, 190), *(j for j in range(170) if j != 5)][:k]
    assert torch.equal(links.indices, torch.tensor(want).expand(1, 1, queries, k))


@pytest.mark.parametrize("queries", [2, 50])
@pytest.mark.parametrize("keys", [5, 16, 21, 32])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_of_equal_links_of_a_short_row_the_first_ones_are_the_strongest(queries, keys, k):
    query, key = torch.ones(1, 1, queries, 4), torch.zeros(1, 1, keys, 4)
    key[0, 0, 3::2] = 1.0
    links = look(query, key, key, backend="native", observe=(top(k),))[1].top(k)
    order = key[0, 0, :, 0].sort(descending=True, stable=True).indices[:k]
    assert torch.equal(links.indices, order.expand(1, 1, queries, -1))


@pytest.mark.parametrize("keys", [255, 257, 512, 513, 769])
@pytest.mark.parametrize("k", [1, 8, 17])
@pytest.mark.parametrize("score", [dot(), limelight.additive(torch.ones(8))])
def test_links_of_rows_that_are_compared_piece_by_piece(score, k, keys):
    # The strongest lie at the ends of pieces, and the last one is not whole.
    query, key = _random(1, 1, 1, 3, 8).float(), _random(2, 1, 1, keys, 8).float()
    for place in (0, 63, 64, 127, 128, 191, 192, 254, 255, 256, 511, keys - 1):
        if place < keys:
            key[..., place, :] = query[..., place % 3, :] * (1 + place / 1000)
    for rows in (query, query.repeat(1, 1, 20, 1)):
        links = look(rows, key, key, score=score, backend="native", observe=(top(k),))[1].top(k)
        dense = look(rows, key, key, score=score, backend="reference")[1].dense()
        torch.testing.assert_close(links.weights, dense.topk(k).values, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(dense.gather(-1, links.indices), links.weights, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("keys", [300, 512, 1030])
@pytest.mark.parametrize("k", [1, 5, 8, 16, 17, 40])
@pytest.mark.parametrize("queries", [3, 40])
def test_links_of_keys_that_grow_stronger_to_the_end(queries, k, keys):
    # Each block has more keys above the weakest link so far than can stay; they come in threes of one strength, of
    # which the first is the strongest.
    query = torch.ones(1, 1, queries, 1)
    key = (torch.arange(keys) // 3).float().reshape(1, 1, keys, 1) / 64
    links = look(query, key, key, backend="native", observe=(top(k),))[1].top(k)
    order = sorted(range(keys), key=lambda j: (-(j // 3), j))[:k]
    assert torch.equal(links.indices, torch.tensor(order).expand(1, 1, queries, -1))


@pytest.mark.parametrize("queries", [3, 40])
def test_links_whose_weight_is_zero_are_still_ranked_by_score(queries):
    # All but the first weights underflow, and those are keys that may be seen nevertheless.
    query, key = torch.ones(1, 1, queries, 1), -1e3 * torch.arange(200.0).view(1, 1, 200, 1)
    links = look(query, key, key, score=dot(1.0), backend="native", observe=(top(9), "received"))[1].top(9)
    assert torch.equal(links.indices, torch.arange(9).expand(1, 1, queries, 9))
    assert torch.equal(links.weights[..., 1:], torch.zeros(1, 1, queries, 8))


@pytest.mark.parametrize("score", [dot(), limelight.additive(torch.ones(20))])
@pytest.mark.parametrize("queries", [3, 31, 250])
def test_received_with_a_weight_for_each_row(score, queries):
    query, key, value = (_random(seed, 2, 3, size, 20).float() for seed, size in ((1, queries), (2, 157), (3, 157)))
    rows = _random(4, 2, 1, queries).float()
    view = look(query, key, value, score=score, mask=causal(), backend="native")[1]
    want = torch.einsum("nhts,nht->nhs", view.dense().double(), rows.double().expand(2, 3, queries))
    torch.testing.assert_close(view.received(rows).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", [None, causal()])
def test_narrow_dtypes_are_storage_only(dtype, mask):
    _agree((_random(1, 1, 2, 67, 40), _random(2, 1, 1, 53, 40), _random(3, 1, 1, 53, 24)), {"mask": mask}, dtype)


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_tiny_and_huge_scores(scale):
    query, key, value = _random(1, 1, 1, 37, 16), _random(2, 1, 1, 41, 16), _random(3, 1, 1, 41, 16)
    _agree((query * scale, key, value), {})


def test_any_strides_give_the_same_bits():
    query, key, value = (_random(seed, 2, 3, 29, 20).float() for seed in (1, 2, 3))
    expected = attend(query, key, value, backend="native")
    turned = [one.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0) for one in (query, key, value)]
    sliced = [torch.cat([one, one], -1)[..., :20] for one in (query, key, value)]
    assert not any(one.is_contiguous() for one in (*turned, *sliced))
    assert torch.equal(attend(*turned, backend="native"), expected)
    assert torch.equal(attend(*sliced, backend="native"), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_repeated_runs_give_the_same_bits(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        inputs = [_random(seed, 1, 3, 300, 32) for seed in (1, 2, 3)]
        runs = [
            _everything(inputs, {"mask": causal(), "dropout": 0.2, "seed": 3}, "native", torch.float32) for _ in "ab"
        ]
        floats = [one.float() for one in inputs]
        received = [look(*floats, backend="native", observe=("received",))[1].received() for _ in "ab"]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*received)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("backend", ["streaming", "reference"])
def test_the_same_weights_are_dropped_as_elsewhere(backend):
    query, key, value = (_random(seed, 2, 3, 37, 20).float() for seed in (1, 2, 3))
    ours, theirs = (attend(query, key, value, dropout=0.5, seed=2**62 + 5, backend=one) for one in ("native", backend))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [1, 2])
def test_what_stands_behind_a_mask_is_never_seen(number, place):
    def run(behind):
        leaves = [_random(seed, 2, 2, size, 20).float() for seed, size in ((1, 30), (2, 37), (3, 37))]
        leaves[place][0, :, 20:] = behind  # beyond the length
        leaves[place][1, :, 30:] = behind  # behind the causal mask
        leaves = [one.requires_grad_() for one in leaves]
        output = attend(*leaves, mask=lengths(torch.tensor([20, 37])) & causal("start"), backend="native")
        return output, *torch.autograd.grad(output.square().sum(), leaves)

    for clean, spoilt in zip(run(0.0), run(number), strict=True):
        torch.testing.assert_close(spoilt, clean, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("queries", [2, 30])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_of_a_query_that_is_not_finite_everything_is_nan(queries, number):
    query, key = _random(1, 1, 1, queries, 8).float(), _random(2, 1, 1, 11, 8).float()
    query[0, 0, 1] = number
    observe = ("entropy", "received", "distance", top(2), limelight.rows([0, 1]))
    output, view = look(query, key, key, backend="native", observe=observe)
    expected, seen = look(query, key, key, backend="reference", observe=observe)
    for have, want in (
        (output, expected),
        (view.entropy(), seen.entropy()),
        (view.distance(), seen.distance()),
        (view.received(), seen.received()),
        (view.rows([0, 1]), seen.rows([0, 1])),
        (view.top(2).weights, seen.top(2).weights),
    ):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_rows_without_keys_give_zeros_whatever_comes_back():
    leaves = [_random(seed, 2, 2, 23, 20).float().requires_grad_() for seed in (1, 2, 3)]
    output, view = look(*leaves, mask=lengths(torch.tensor([0, 5])), backend="native", observe=("entropy", top(2)))
    to_output = torch.ones_like(output)
    to_output[0] = math.nan
    grads = torch.autograd.grad(output, leaves, to_output)
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    assert (view.lse[0] == -math.inf).all()
    assert (view.entropy()[0] == 0).all()
    assert (view.top(2).indices[0] == -1).all()
    for grad in grads:
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))
        assert grad.isfinite().all()


@pytest.mark.parametrize("make", [dot, lambda: limelight.additive(torch.ones(20))])
def test_rows_without_keys_have_the_sink_for_lse(make):
    leaves = [_random(seed, 2, 2, 23, 20).float().requires_grad_() for seed in (1, 2, 3)]
    sink = torch.tensor([0.5, -torch.inf], requires_grad=True)
    mask = lengths(torch.tensor([0, 5]))
    output, view = look(*leaves, score=make(), mask=mask, sink=sink, backend="native", observe=("entropy", top(2)))
    to_output = torch.ones_like(output)
    to_output[0] = math.nan
    *grads, to_sink = torch.autograd.grad((output, view.lse), (*leaves, sink), (to_output, torch.ones_like(view.lse)))
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    assert torch.equal(view.lse[0], sink.detach()[:, None].expand(2, 23))
    assert (view.entropy()[0] == 0).all()
    assert (view.top(2).indices[0] == -1).all()
    for grad in grads:
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))
        assert grad.isfinite().all()
    assert to_sink[0] >= 23  # 1 for each lse of the empty rows, and the shares in those of the others
    assert to_sink[1] == 0


@pytest.mark.parametrize("size", [-1e4, -30.0, 30.0, 1e4])
def test_sinks_of_any_size(size):
    inputs = _random(1, 1, 2, 37, 16), _random(2, 1, 2, 41, 16), _random(3, 1, 2, 41, 16)
    _agree(inputs, {"mask": causal(), "sink": torch.full((2,), size, dtype=torch.float64)})


ADDITIVE = limelight.additive(torch.ones(4))


@pytest.mark.parametrize(
    ("score", "shape"),
    [
        (dot(), (1, 1, 1500, 1600)),
        (dot(), (1, 2, 1500, 1600)),
        (ADDITIVE, (1, 1, 1500, 1600)),
        (dot(), (2, 2, 1500, 1)),
        (dot(), (1600,)),
    ],
)
def test_gradient_of_a_long_bias_however_it_is_shared(score, shape):
    # 2,400,000 numbers are more than two parts sum in memory of their own.
    query, key, value = (_random(seed, 2, 2, size, 4).float() for seed, size in ((1, 1500), (2, 1600), (3, 1600)))
    bias, to_lse = _random(4, *shape).float().requires_grad_(), _random(5, 2, 2, 1500).float()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grads = []
        for backend in ("native", "native", "streaming"):
            output, view = look(query, key, value, score=score, mask=causal(), bias=bias, backend=backend)
            total = (output * query).sum() + (view.lse * to_lse).sum()
            grads.append(torch.autograd.grad(total, bias)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-4, atol=1e-5 * grads[2].abs().max().item())


def test_gradients_of_gradients_are_refused():
    leaf = _random(1, 1, 1, 5, 4).float().requires_grad_()
    (slope,) = torch.autograd.grad(attend(leaf, leaf, leaf, backend="native").sum(), leaf, create_graph=True)
    with pytest.raises(BackendError, match="'native' has first derivatives only"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": ~causal()}, "the mask is not a band"),
        ({"mask": segments(torch.tensor([0, 1, 0, 1, 1]))}, "the mask is not a band"),
        ({"score": limelight.tile_score(lambda q, k, query_index, key_index: q @ k.mT)}, "neither a dot product nor"),
    ],
)
def test_what_it_cannot_run_it_says(change, reason):
    query = torch.zeros(1, 1, 5, 4)
    assert reason in str(limelight.explain(query, query, query, **change).reasons["native"])
    with pytest.raises(BackendError, match=reason):
        attend(query, query, query, backend="native", **change)


@pytest.mark.parametrize("score", [dot(), dot(cap=5.0), limelight.additive(torch.ones(20))])
def test_nan_in_sight_comes_out_as_elsewhere(score):
    def run(backend):
        leaves = [_random(seed, 1, 2, 23, 20).float() for seed in (1, 2, 3)]
        leaves[2][0, 0, 5, 3] = math.nan
        leaves = [one.requires_grad_() for one in leaves]
        output = attend(*leaves, score=score, mask=causal(), backend=backend)
        return output, *torch.autograd.grad(output.nansum(), leaves)

    for ours, theirs in zip(run("native"), run("streaming"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_that_lie_side_by_side_do_so_in_what_comes_out(compiled):
    call = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend

    def results(inputs):
        leaves = [one.detach().requires_grad_() for one in inputs]
        output = call(*leaves)
        return output, *torch.autograd.grad(output, leaves, torch.ones_like(output))

    shapes = (5, 11), (7, 11), (7, 13)
    inputs = [_random(seed, 2, size, 3, width).float().transpose(1, 2) for seed, (size, width) in enumerate(shapes)]
    found, apart = results(inputs), results([one.contiguous() for one in inputs])
    for place, (one, other) in enumerate(zip(found, apart, strict=True)):
        assert torch.equal(one, other), place
        assert one.transpose(1, 2).is_contiguous(), place
        assert other.is_contiguous(), place


@pytest.mark.parametrize("compiled", [False, True])
def test_the_careful_road_keeps_the_layout(compiled):
    inputs = [_random(seed, 2, 5, 3, 11).float().transpose(1, 2) for seed in range(3)]
    inputs[2][0, 0, 0, 0] = math.nan
    call = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    with torch.no_grad():
        assert call(*inputs).transpose(1, 2).is_contiguous()
    leaves = [one.requires_grad_() for one in inputs]
    output = call(*leaves)
    for one in (output, *torch.autograd.grad(output, leaves, torch.ones_like(output))):
        assert one.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(output, attend(*inputs, backend="streaming"), equal_nan=True)
