"""What the C++ kernels gather of the weights themselves, chosen rows and the pooled matrix, against float64."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.kernels import cases, random
from tests.support.views import pooled as dense_pooled

import limelight
from limelight import dot, look, pooled, rows
from limelight.backends import direct, extension, kernels, lookup, pooling

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")

CELLS = (1, 2, 5, 13, 64, 1000)


@contextmanager
def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _agree(inputs, arguments, dtype, observe, score=dot):
    """Of equal numbers in float64 and in `dtype`: rows and map of a call, and of a pass asked for later."""
    narrow = [one.to(dtype) for one in inputs]
    given = {name: one.to(dtype) if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    wide = {name: one.double() if isinstance(one, torch.Tensor) else one for name, one in given.items()}
    truth = look(*(one.double() for one in narrow), score=score(torch.float64), backend="reference", **wide)[1].dense()
    chosen, cells = observe
    places, (across, down), reduce = list(chosen.places), cells.cells, cells.reduce
    _, view = look(*narrow, score=score(dtype), backend="native", observe=("received", *observe), **given)
    _, later = look(*narrow, score=score(dtype), backend="native", **given)
    want = dense_pooled(truth, across, down, reduce)
    for one in (view, later):
        assert one.map(across, down, reduce=reduce).dtype is torch.float32
        torch.testing.assert_close(one.map(across, down, reduce=reduce).double(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.rows(places).double(), truth[..., places, :], rtol=1e-5, atol=1e-6)
    assert torch.equal(view[..., places, 1:], view.rows(places)[..., 1:])
    torch.testing.assert_close(view.received().double(), truth.sum(-2), rtol=1e-5, atol=1e-6 * truth.shape[-2])


@st.composite
def _asked(draw, queries):
    places = draw(st.lists(st.integers(-queries, queries - 1), min_size=1, max_size=6))
    return rows(places), pooled(*(draw(st.sampled_from(CELLS)) for _ in "TS"), draw(st.sampled_from(("mean", "max"))))


DTYPES = st.sampled_from((torch.float32, torch.float32, torch.bfloat16))


@given(case=cases(), data=st.data(), dtype=DTYPES, threads=st.sampled_from((1, 3)))
@settings(max_examples=40, deadline=None)
def test_dot(case, data, dtype, threads):
    inputs, arguments = case
    with _threads(threads):
        _agree(inputs, arguments, dtype, data.draw(_asked(inputs[0].shape[2])), lambda _: dot())


@given(case=cases(additive=True), data=st.data(), dtype=DTYPES, threads=st.sampled_from((1, 3)))
@settings(max_examples=40, deadline=None)
def test_additive(case, data, dtype, threads):
    inputs, arguments = case
    vector = (random(9, inputs[0].shape[-1]) / math.sqrt(inputs[0].shape[-1])).to(dtype)
    with _threads(threads):
        observe = data.draw(_asked(inputs[0].shape[2]))
        _agree(inputs, arguments, dtype, observe, lambda to: limelight.additive(vector.to(to)))


@pytest.mark.parametrize("score", ["dot", "additive"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("threads", [1, 3])
def test_cells_larger_and_smaller_than_blocks_and_parts(score, reduce, threads):
    # Several units of queries for each head, several blocks of keys, and heads that parts share.
    inputs = random(1, 1, 3, 613, 8), random(2, 1, 3, 701, 8), random(3, 1, 3, 701, 8)
    vector = random(4, 8)
    with _threads(threads):
        for cells in ((1, 2), (97, 11), (613, 3), (2, 701)):
            observe = rows([0, 300, 612]), pooled(*cells, reduce)
            made = {"dot": lambda _: dot(), "additive": lambda to: limelight.additive(vector.to(to))}[score]
            _agree(inputs, {"mask": limelight.window(150, 40)}, torch.float32, observe, made)


@pytest.mark.parametrize("score", [dot(), limelight.additive(torch.ones(8))])
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_it_happens_in_the_pass(score, queries, monkeypatch):
    query, key, value = (random(seed, 2, 2, size, 8).float() for seed, size in ((1, queries), (2, 37), (3, 37)))
    want = look(query, key, value, score=score, backend="reference")[1].dense()
    passes = []
    for road, name in ((kernels, "forward"), (direct, "look")):
        run = getattr(road, name)
        monkeypatch.setattr(road, name, lambda *call, run=run: passes.append(call) or run(*call))
    monkeypatch.delattr(lookup, "rows")
    monkeypatch.delattr(pooling, "_cells")
    observe = (rows([-1, 0]), pooled(2, 5), rows([0]), "entropy")
    _, view = look(query, key, value, score=score, backend="native", observe=observe)
    query.fill_(0.0)  # nothing can be computed any more
    torch.testing.assert_close(view.map(2, 5), dense_pooled(want, 2, 5, "mean"))
    torch.testing.assert_close(view.rows([0, -1, 0]), want[..., [0, -1, 0], :])
    torch.testing.assert_close(view[:, 1, 0], want[:, 1, 0])
    assert len(passes) == 1
    with pytest.raises(limelight.errors.StaleViewError):
        view.map(2, 5, reduce="max")


def test_several_maps_of_one_call():
    query, key, value = (random(seed, 2, 2, 37, 8).float() for seed in (1, 2, 3))
    _, view = look(query, key, value, observe=(pooled(3, 5), pooled(3, 5, "max"), pooled(90, 7)))
    want = look(query, key, value, backend="reference")[1].dense()
    query.fill_(0.0)
    for answer, cells, reduce in (
        (view.map(3, 5), (3, 5), "mean"),
        (view.map(3, 5, reduce="max"), (3, 5), "max"),
        (view.map(37, 7), (37, 7), "mean"),
    ):
        torch.testing.assert_close(answer, dense_pooled(want, *cells, reduce))


@pytest.mark.parametrize("queries", [2, 30])
@pytest.mark.parametrize("score", [dot(), limelight.additive(torch.ones(20))])
def test_nan_behind_the_mask_and_in_sight(score, queries):
    query, key, value = (random(seed, 2, 2, size, 20).float() for seed, size in ((1, queries), (2, 37), (3, 37)))
    observe, arguments = (rows([0, -1]), pooled(2, 3, "max")), {"mask": limelight.lengths(torch.tensor([20, 0]))}
    clean = look(query, key, value, score=score, backend="native", observe=observe, **arguments)[1]
    key[0, :, 20:] = math.nan
    spoilt = look(query, key, value, score=score, backend="native", observe=observe, **arguments)[1]
    torch.testing.assert_close(spoilt.rows([0, -1]), clean.rows([0, -1]))
    torch.testing.assert_close(spoilt.map(2, 3, reduce="max"), clean.map(2, 3, reduce="max"))
    assert (clean.rows([0])[1] == 0).all()
    assert (clean.map(2, 3, reduce="max")[1] == 0).all()
    key[0, :, 3] = math.nan
    view, want = (
        look(query, key, value, score=score, backend=one, observe=observe, **arguments)[1]
        for one in ("native", "streaming")
    )
    assert view.rows([0])[0].isnan().any()
    torch.testing.assert_close(view.rows([0, -1]), want.rows([0, -1]), equal_nan=True)
    torch.testing.assert_close(view.map(2, 3, reduce="max"), want.map(2, 3, reduce="max"), equal_nan=True)


def test_weights_that_underflow_beside_a_sink():
    query = torch.ones(1, 1, 40, 1)
    _, view = look(query, query, query, sink=torch.tensor([500.0]), observe=(rows([3]), pooled(4, 4)))
    assert (view.rows([3]) == 0).all()
    assert (view.map(4, 4) == 0).all()
