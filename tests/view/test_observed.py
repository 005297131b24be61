"""Rows and maps that are observed beforehand, in backends that compute them afterwards, and the view that has them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, gradients, pooled, view_cases

import limelight
from limelight.errors import ArgumentError, DenseSizeError, StaleViewError
from limelight.view import check_observations


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_observed_agrees_with_the_dense_matrix(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, leaves, sizes, _ = data.draw(view_cases())
        dense, T = weights.detach(), sizes.T
        places = data.draw(st.lists(st.integers(-T, T - 1), min_size=1, max_size=4))
        cells, reduce = data.draw(st.tuples(*[st.integers(1, 6)] * 2)), data.draw(st.sampled_from(("mean", "max")))
        later = view.rows(places), view.map(*cells, reduce=reduce)
        view.gather(check_observations((limelight.rows(places), limelight.pooled(*cells, reduce), limelight.rows([1]))))
        for found, picture in (later, (view.rows(places), view.map(*cells, reduce=reduce))):
            assert_near(found, dense[..., places, :], torch.float64, sizes.terms)
            assert_near(picture, pooled(dense, *cells, reduce), torch.float64, sizes.terms)
        with torch.no_grad():
            assert torch.equal(view[..., places, :], view.rows(places))
            assert torch.equal(view[..., -1:, 1, 1:], view.rows([1])[..., -1:, 0, 1:])
        # With gradients on a block is computed again, since an answer has none.
        have, want = view[..., places, :], weights[..., places, :]
        for one, other in zip(gradients(have, leaves), gradients(want, leaves), strict=True):
            assert_near(one, other, torch.float64, 8 * sizes.terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_observed_answers_outlive_what_they_were_made_of(dtype):
    query, key, value = (one.detach() for one in tensors(Sizes(), dtype=dtype))
    want = limelight.look(query, key, value)[1].dense()
    observe = limelight.rows([-1, 2]), limelight.pooled(2, 3, "max")
    _, view = limelight.look(query, key, value, observe=observe)
    views = view, view.copy(), view.detach(), copy.deepcopy(view)
    query.fill_(0.0)
    for one in views:
        assert_near(one[..., 4, 2:], want[..., 4, 2:], dtype, 40)
        assert_near(one.rows([2, 4]), want[..., [2, 4], :], dtype, 40)
        assert_near(one.map(2, 3, reduce="max"), pooled(want, 2, 3, "max"), dtype, 40)
    assert view[0, 0, 2].data_ptr() != view[0, 0, 2].data_ptr()  # copies: writing into one changes no view
    for other in (lambda: view[0, 0, 3], lambda: view.rows([2, 3]), lambda: view.map(2, 3)):
        with pytest.raises(StaleViewError):
            other()


@pytest.mark.parametrize("backend", ["auto", "streaming", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("plain", [False, True])
def test_what_keys_receive_by_weights_is_kept(backend, dtype, plain, tmp_path):
    query, key, value = (one.detach() for one in tensors(Sizes(T=29, S=31), dtype=dtype))
    real, more = torch.rand(2, 1, 29) > 0.4, torch.randn(29, dtype=torch.float64)
    observe = (limelight.received(real), limelight.received(more), *(["received"] if plain else []))
    _, view = limelight.look(query, key, value, mask=limelight.causal(), backend=backend, observe=observe)
    want = view.dense().double()
    view.save(tmp_path / "one")
    views = view, view.copy(), copy.deepcopy(view), limelight.AttentionView.open(tmp_path / "one")
    query.fill_(0.0)
    for one in views:
        for weights in (real, more, real.clone()):
            expected = torch.einsum("nhts,nht->nhs", want, weights.double().expand(2, 3, 29))
            torch.testing.assert_close(one.received(weights).double(), expected, rtol=1e-4, atol=1e-5)
        if plain:
            torch.testing.assert_close(one.received().double(), want.sum(-2), rtol=1e-4, atol=1e-5)
    with pytest.raises(StaleViewError):
        view.received(~real)


def test_what_keys_receive_by_weights_has_gradients_where_they_are_on():
    query, key, value = tensors(Sizes(), dtype=torch.float32)
    weights = torch.rand(5)
    _, view = limelight.look(query, key, value, observe=limelight.received(weights))
    assert view.received(weights).requires_grad
    with torch.no_grad():
        assert view.received(weights) is view.received(weights)


def test_they_count_among_what_is_kept():
    sizes = Sizes(T=11, S=13)
    inputs = [one.detach().float() for one in tensors(sizes)]
    plain = limelight.look(*inputs)[1].copy()
    view = limelight.look(*inputs, observe=(limelight.rows([3, 3, -8]), limelight.pooled(2, 50)))[1].copy()
    assert view.kept_bytes - plain.kept_bytes == 2 * 3 * 4 * (13 + 2 * 13)


def test_a_matrix_without_queries_or_keys():
    query, key = torch.zeros(1, 3, 2), torch.zeros(1, 0, 2)
    _, view = limelight.look(query, key, key, observe=(limelight.rows([1]), limelight.pooled(2, 2)))
    assert view.rows([1]).shape == (1, 1, 0)
    assert view.map(2, 2).shape == (1, 2, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: limelight.rows([]), "must name one query at least"),
        (lambda: limelight.rows(3), "must be a sequence of integers; it is 3"),
        (lambda: limelight.rows([1.0]), r"must be a sequence of integers; it is \[1.0\]"),
        (lambda: limelight.rows([True]), "True and False are no places"),
        (lambda: limelight.rows(torch.tensor([True, False])), "True and False are no places"),
        (lambda: limelight.received(2.0), "one for each query; it is float. .*for one number"),
        (lambda: limelight.received(torch.tensor(1.0)), r"it is torch.float32 \[\]"),
        (lambda: limelight.received(torch.ones(3, requires_grad=True)), "without a gradient"),
        (lambda: limelight.received(torch.tensor([1.0, torch.nan])), "must be finite"),
        (
            lambda: limelight.look(*tensors(Sizes()), observe=limelight.received(torch.ones(3))),
            r"weights: its shape must broadcast to \[..., H, T\] = \[2, 3, 5\]; it is \[3\]",
        ),
        (lambda: limelight.pooled(0, 3), "rows must be an integer of at least 1; it is 0"),
        (lambda: limelight.pooled(1, 2.0), "columns must be an integer of at least 1; it is 2.0"),
        (lambda: limelight.pooled(1, 2, "sum"), "reduce must be one of 'mean', 'max'; it is 'sum'"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_rows_that_are_not_there_and_rows_that_are_too_many():
    inputs = tensors(Sizes())
    for place in (5, -6):
        with pytest.raises(ArgumentError, match=rf"the call has queries \[0, 5\); {place} is out of range"):
            limelight.look(*inputs, observe=limelight.rows([0, place]))
        with pytest.raises(ArgumentError, match=rf"queries \[0, 5\); {place} is out of range"):
            limelight.look(*inputs)[1].rows([place])
    long = torch.zeros(1, 1, 1 << 15, 1)
    with pytest.raises(DenseSizeError, match="would take 4,294,967,296 bytes"):
        limelight.look(long, long, long, observe=limelight.rows(range(1 << 15)))
