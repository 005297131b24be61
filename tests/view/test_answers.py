"""What a view says of each query and each key, against the dense matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, gradients, view_cases

import limelight
from limelight.errors import ArgumentError
from limelight.pharaoh import parse_pharaoh


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_distance_argmax_and_received_agree_with_the_dense_matrix(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, leaves, sizes, _ = data.draw(view_cases())
        dense, terms = weights.detach(), sizes.terms
        away = (torch.arange(sizes.T)[:, None] + sizes.S - sizes.T - torch.arange(sizes.S)).abs().double()
        total = dense.sum(-1)  # 1, unless the normalizer leaves it free
        assert_near(view.distance(), (dense * away).sum(-1) / total.masked_fill(total == 0, 1), torch.float64, terms)
        best = dense.argmax(-1).masked_fill(dense.sum(-1) == 0, -1)
        level = dense.gather(-1, view.argmax().clamp(min=0).unsqueeze(-1)).squeeze(-1)
        assert_near(level, dense.amax(-1), torch.float64, terms)
        assert torch.equal(view.argmax() < 0, best < 0)
        parts = torch.randn(*sizes.lead[-1:], 1, sizes.T, dtype=torch.float64).requires_grad_()
        have, want = view.received(parts), (parts.unsqueeze(-1) * weights).sum(-2)
        assert_near(have, want, torch.float64, terms)
        for one, other in zip(gradients(have, (*leaves, parts)), gradients(want, (*leaves, parts)), strict=True):
            assert_near(one, other, torch.float64, 8 * terms)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 1, 1)])
def test_weights_of_received_broadcast_along_the_queries(shape):
    query, key, value = tensors(Sizes())
    _, view = limelight.look(query, key, value)
    parts = torch.arange(1.0, 1 + math.prod(shape), dtype=torch.float64).reshape(shape)
    want = (parts.unsqueeze(-1) * view.dense()).sum(-2)
    assert_near(view.received(parts), want, torch.float64, 40)


def test_distance_by_hand():
    # Query 0 of two lies at position 1 of three, query 1 at 2; weights 1/4, 1/4, 1/2 and 0, 0, 1.
    key = torch.eye(3, dtype=torch.float64)[None]
    query = torch.tensor([[[0.0, 0.0, math.log(2)], [-1e4, -1e4, 0.0]]], dtype=torch.float64)
    _, view = limelight.look(query, key, key, score=limelight.dot(1.0))
    torch.testing.assert_close(view.distance(), torch.tensor([[0.75, 0.0]], dtype=torch.float64))
    assert view.argmax().tolist() == [[2, 2]]


def test_rows_without_keys():
    query, key = torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)
    _, view = limelight.look(query, key, key, mask=limelight.causal())
    assert view.argmax().tolist() == [[-1, 0, 0]]
    assert view.distance().tolist() == [[0.0, 0.0, 0.5]]
    _, view = limelight.look(query, key[:, :0], key[:, :0])
    assert view.argmax().tolist() == [[-1, -1, -1]]
    assert view.distance().tolist() == [[0.0, 0.0, 0.0]]


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_mean_over_heads_is_a_virtual_array(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, leaves, sizes, _ = data.draw(view_cases())
        heads = data.draw(st.none() | st.lists(st.integers(-sizes.H, sizes.H - 1), min_size=1, max_size=3))
        mean = view.mean(heads)
        truth = (weights if heads is None else weights[..., heads, :, :]).mean(-3)
        assert mean.shape == truth.shape
        assert_near(mean.dense(), truth.detach(), torch.float64, sizes.terms)
        assert_near(mean[..., [2, 0], 1:], truth[..., [2, 0], 1:].detach(), torch.float64, sizes.terms)
        assert_near(mean[..., 1, 0], truth[..., 1, 0].detach(), torch.float64, sizes.terms)
        x = torch.randn(*sizes.lead[-1:], sizes.S, 2, dtype=torch.float64).requires_grad_()
        y = torch.randn(2, sizes.T, dtype=torch.float64).requires_grad_()
        for have, want in (
            (mean @ x, truth @ x),
            (y @ mean, y @ truth),
            (
                mean @ x[..., 0] if x.ndim == 2 else mean @ x[0, :, 0],
                truth @ (x[..., 0] if x.ndim == 2 else x[0, :, 0]),
            ),
            (y[0] @ mean, y[0] @ truth),
        ):
            assert_near(have, want.detach(), torch.float64, sizes.terms)
            for one, other in zip(gradients(have, (*leaves, x, y)), gradients(want, (*leaves, x, y)), strict=True):
                assert_near(one, other, torch.float64, 8 * sizes.terms)


def test_the_mean_says_what_it_is_and_guards_its_bytes():
    _, view = limelight.look(*(x.detach().float() for x in tensors(Sizes(lead=(2,), H=3, T=5, S=7))))
    mean = view.mean([0, 2])
    assert repr(mean) == "MeanView(shape=[2, 5, 7], of 2 heads, dense would be 280 B)"
    assert len(mean) == 2
    assert mean.dtype is torch.float32
    with pytest.raises(limelight.errors.DenseSizeError, match=r"280 bytes.*limit is 279"):
        mean.dense(limit=279)
    for heads in (3, [0, -4]):
        with pytest.raises(ArgumentError, match=r"heads must be one or several of the 3 heads, from 0 to 2"):
            view.mean(heads)
    with pytest.raises(ArgumentError, match="one head at least"):
        view.mean([])


@pytest.mark.parametrize("budget", BUDGETS)
def test_alignment_links_each_target_with_its_best_source(budget):
    maker = torch.Generator().manual_seed(1)
    query, key = torch.randn(1, 2, 11, 3, generator=maker), torch.randn(1, 2, 7, 3, generator=maker)
    with blocks_of(budget):
        _, view = limelight.look(query, key, key, mask=limelight.lengths(torch.tensor([5])))
        mean = view.dense().mean(1)[0]
        assert parse_pharaoh(view.alignment()).sure == {(int(i), j) for j, i in enumerate(mean.argmax(-1))}
        assert parse_pharaoh(view.alignment(1)).sure == {
            (int(i), j) for j, i in enumerate(view.dense()[0, 1].argmax(-1))
        }
        above = {(int(i), int(j)) for j, i in (mean >= 0.3).nonzero()}
        assert above
        assert parse_pharaoh(view.alignment(threshold=0.3)).sure == above


def test_alignment_by_hand_and_its_mistakes():
    query, key = torch.zeros(1, 3, 2), torch.zeros(1, 2, 2)
    # An empty row gives no link; of equals the first is taken.
    _, view = limelight.look(query, key, key, mask=limelight.causal())
    assert view.alignment() == "0-1 0-2"
    assert view.alignment(threshold=0.5) == "0-1 0-2 1-2"
    for wrong in (0, "0.5"):
        with pytest.raises(ArgumentError, match=rf"threshold must lie in \(0, 1\]; it is {wrong!r}"):
            view.alignment(threshold=wrong)  # pyright: ignore
    _, view = limelight.look(query.expand(2, 1, 3, 2), key.expand(2, 1, 2, 2), key.expand(2, 1, 2, 2))
    with pytest.raises(ArgumentError, match=r"of one sequence; its leading axes are \[2\]"):
        view.alignment()
