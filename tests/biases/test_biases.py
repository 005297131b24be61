from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.masks import mask_cases
from tests.support.oracle import answer
from tests.support.tolerance import assert_near

import limelight
from limelight import alibi, attend, causal, look, relative, t5_buckets
from limelight.backends import extension
from limelight.biases.alibi import alibi_slopes
from limelight.biases.relative import bucket_of
from limelight.errors import ArgumentError

NATIVE = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")
BACKENDS = ("reference", "streaming", pytest.param("native", marks=NATIVE))


def _expanded(bias, numbers, sizes, align="end"):
    """What each pair gets, by loops: [H, T, S], differentiable in `numbers`."""
    move = sizes.S - sizes.T if align == "end" else 0
    rows = [
        torch.stack([bias(numbers, h, j - i - move) for i in range(sizes.T) for j in range(sizes.S)])
        for h in range(sizes.H)
    ]
    return torch.stack(rows).view(sizes.H, sizes.T, sizes.S)


def _bucket(distance, buckets, both, most):
    """T5's bucket, one distance at a time."""
    base = 0
    if both:
        buckets //= 2
        base = buckets if distance > 0 else 0
    size = abs(distance) if both else max(0, -distance)
    exact = buckets // 2
    if size < exact:
        return base + size
    far = exact + int(math.log(size / exact) / math.log(most / exact) * (buckets - exact) + 1e-6)
    return base + min(buckets - 1, far)


CASES = {
    "alibi": (lambda heads: (heads,), alibi, lambda x, h, d: -x[h] * abs(d)),
    "clipped": (lambda heads: (heads, 5), relative, lambda x, h, d: x[h, min(2, max(-2, d)) + 2]),
    "clipped, shared": (lambda heads: (3,), relative, lambda x, h, d: x[min(1, max(-1, d)) + 1]),
    "buckets": (
        lambda heads: (heads, 8),
        lambda x, align: t5_buckets(x, max_distance=6, align=align),
        lambda x, h, d: x[h, _bucket(d, 8, True, 6)],
    ),
    "buckets, one way": (
        lambda heads: (heads, 4),
        lambda x, align: t5_buckets(x, False, 5, align=align),
        lambda x, h, d: x[h, _bucket(d, 4, False, 5)],
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_every_bias_agrees_with_the_oracle_forward_and_backward(name, data):
    G = data.draw(st.sampled_from((1, 2)))
    T, S = data.draw(st.sampled_from((1, 2, 5, 9))), data.draw(st.sampled_from((1, 3, 7, 11)))
    sizes = Sizes(lead=data.draw(st.sampled_from(((), (2, 2)))), H=2, G=G, T=T, S=S, D=3, E=5)
    align = data.draw(st.sampled_from(("end", "start")))
    mask = data.draw(st.none() | mask_cases(sizes, depth=1))
    shape, make, rule = CASES[name]
    numbers = torch.randn(shape(sizes.H), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    exact, wide = tensors(sizes), numbers.clone().requires_grad_()
    scale = 1 / math.sqrt(sizes.D)
    expected = answer(
        *exact,
        lambda q, k, h, i, j: (k * q).sum(-1) * scale,
        None if mask is None else mask.truth,
        _expanded(rule, wide, sizes, align),
    )
    to_output = torch.randn(expected.output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tied = expected.output + sum(leaf.flatten()[:0].sum() for leaf in (*exact, wide))
    slopes = torch.autograd.grad(tied, (*exact, wide), to_output)
    rule = None if mask is None else mask.mask
    reasons = limelight.explain(*(one.detach().float() for one in exact), mask=rule, bias=alibi()).reasons
    for backend in ("reference", "streaming", "native"):
        if reasons[backend] is not None:
            continue
        dtype = torch.float32 if backend == "native" else torch.float64
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (*exact, numbers)]
        with blocks_of(data.draw(st.sampled_from((1, 60, 1 << 21)))):
            bias = make(leaves[3], align=align)
            output = attend(*leaves[:3], mask=rule, bias=bias, backend=backend)
            grads = torch.autograd.grad(output, leaves, to_output.to(dtype))
        assert_near(output, expected.output, dtype, sizes.terms, f"{backend}: ")
        for place, (grad, slope) in enumerate(zip(grads, slopes, strict=True)):
            assert_near(grad, slope, dtype, 4 * sizes.terms, f"{backend}, gradient {place}: ")


@NATIVE
@pytest.mark.parametrize("score", [limelight.dot(), limelight.dot(cap=3.0), limelight.additive(torch.ones(20))])
@pytest.mark.parametrize(("T", "S"), [(1, 300), (157, 1), (301, 283), (97, 411)])
def test_native_agrees_with_the_reference_at_length(score, T, S):
    maker = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, H, n, 20, generator=maker) for H, n in ((4, T), (2, S), (2, S))]
    table, sink = torch.randn(4, 63, generator=maker), torch.randn(4, generator=maker)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    runs = []
    for backend, dtype in (("reference", torch.float64), ("native", torch.float32), ("native", torch.float32)):
        leaves = [one.to(dtype).requires_grad_() for one in (*inputs, table, sink)]
        wide = limelight.additive(torch.ones(20, dtype=dtype)) if score.tanh_vector() is not None else score
        bias = relative(leaves[3])
        observe = ("received", "entropy")
        output, view = look(
            *leaves[:3], score=wide, mask=causal(), bias=bias, sink=leaves[4], backend=backend, observe=observe
        )
        grads = torch.autograd.grad((output, view.lse), leaves, (output.detach(), torch.ones_like(view.lse)))
        runs.append([output, view.entropy(), view.received(), view[0, 1, -3:], *grads])
    torch.set_num_threads(before)
    for exact, have, again in zip(*runs, strict=True):
        assert torch.equal(have, again)
        torch.testing.assert_close(have.double(), exact, rtol=1e-4, atol=2e-6 * max(1.0, exact.abs().max().item()))


def test_slopes_of_the_paper():
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(1) == [2.0**-8]
    assert alibi_slopes(16)[:2] == [2.0**-0.5, 2.0**-1]
    # Eight of 8 heads, then those of 16 heads at 1, 3, 5, 7.
    assert alibi_slopes(12) == [*alibi_slopes(8), *[2.0 ** (-h / 2) for h in (1, 3, 5, 7)]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_alibi_worked_by_hand(backend):
    # All scores 0: key j of query i counts 2^-|i - j|, with a slope of ln 2. One query, lined up with the last key.
    query, key = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 3, 8)
    _, view = look(query, key, key, bias=alibi([math.log(2)]), backend=backend)
    torch.testing.assert_close(view.dense().flatten(), torch.tensor([1.0, 2.0, 4.0]) / 7)
    _, view = look(query, key, key, bias=alibi([math.log(2)], align="start"), backend=backend)
    torch.testing.assert_close(view.dense().flatten(), torch.tensor([4.0, 2.0, 1.0]) / 7)


def test_buckets_of_t5():
    distance = torch.tensor([-200, -128, -127, -17, -16, -8, -7, -1, 0, 1, 7, 8, 127, 500])
    assert bucket_of(distance, 32, True, 128).tolist() == [15, 15, 15, 10, 10, 8, 7, 1, 0, 17, 23, 24, 31, 31]
    assert bucket_of(distance, 32, False, 128).tolist() == [31, 31, 31, 16, 16, 8, 7, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_of_minus_infinity_forbids(backend):
    # Only the own place: key and value behind hold NaN.
    query = torch.randn(1, 1, 3, 8)
    key, value = query.clone(), torch.randn(1, 1, 3, 8)
    key[0, 0, 1:], value[0, 0, 1:] = math.nan, math.nan
    table = torch.tensor([-math.inf, 0.0, -math.inf])
    output = attend(query, key, value, bias=relative(table), backend=backend)
    assert torch.equal(output[0, 0, 0], value[0, 0, 0])
    assert output[0, 0, 1:].isnan().all()


def test_views_take_any_rows_and_keys():
    query, key, value = (one.detach() for one in tensors(Sizes()))
    _, view = look(query, key, value, bias=alibi())
    assert torch.equal(view[0, :, [4, 1], [6, 0, 3]], view.dense()[0][:, [4, 1]][:, :, [6, 0, 3]])
    detached = look(query, key, value, bias=alibi(torch.ones(3, requires_grad=True)))[1].detach()
    assert not detached.dense().requires_grad


@pytest.mark.parametrize("backend", ["reference", "streaming"])
@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 5, 4)])
def test_axes_of_size_zero(backend, shape):
    query, key = torch.zeros(shape), torch.zeros(2, 3, 5 - shape[2], 4)
    assert attend(query, key, key, bias=alibi(), backend=backend).shape == shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: alibi("a"), r"alibi\(slopes\): slopes must be finite numbers, one per head, or None; it is 'a'"),
        (lambda: alibi([1.0, math.nan]), r"slopes must be finite numbers"),
        (lambda: alibi(torch.ones(2, 2)), r"slopes must be a tensor \[H\]; its shape is \[2, 2\]"),
        (lambda: alibi(torch.ones(2).long()), r"slopes must be a float tensor \[H\]; it is torch.int64"),
        (lambda: alibi(align="middle"), r"align must be one of 'end', 'start'"),
        (lambda: relative([1.0]), r"relative\(table\): table must be a float tensor .*it is list"),
        (lambda: relative(torch.ones(2, 4)), r"must have 2 R \+ 1 columns.*it has 4"),
        (lambda: relative(torch.ones(2, 4, 3)), r"its shape is \[2, 4, 3\]"),
        (lambda: t5_buckets(torch.ones(2, 5)), r"an even number of buckets, at least 4,.*it has 5.*table.T"),
        (lambda: t5_buckets(torch.ones(1), False), r"at least 2 buckets"),
        (lambda: t5_buckets(torch.ones(8), True, 2), r"max_distance must be an integer of at least 3; it is 2"),
    ],
)
def test_mistakes_when_a_bias_is_made(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (alibi([1.0, 2.0]), r"bias alibi\(slopes\) has a head axis of 2, but there are 3 heads"),
        (relative(torch.ones(2, 3)), r"bias relative\(table\) has a head axis of 2"),
        (t5_buckets(torch.ones(3, 8, device="meta")), r"t5_buckets\(table\) must be on the device of query, cpu"),
        ("alibi", r"bias must be a float tensor.*it is str.*limelight.biases"),
    ],
)
def test_biases_that_do_not_fit_the_call(bias, message):
    query = torch.zeros(2, 3, 5, 4)
    with pytest.raises(ArgumentError, match=message):
        attend(query, query, query, bias=bias)
