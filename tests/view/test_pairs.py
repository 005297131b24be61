"""Log weights of single pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, gradients, view_cases

import limelight
from limelight.errors import ArgumentError


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_log_weights_and_their_gradients_agree_with_the_dense_matrix(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, leaves, sizes, _ = data.draw(view_cases())
        one = st.tuples(*(st.integers(-size, size - 1) for size in sizes.full))
        pairs = data.draw(st.lists(one, max_size=9))
        have = view.log_prob(pairs)
        places = torch.tensor(pairs, dtype=torch.int64).reshape(-1, len(sizes.full)).unbind(-1)
        want = weights[places]
        assert_near(have, want.log(), torch.float64, sizes.terms)
        # An infinite log weight has no gradient to compare.
        keep = want > 0
        for found, expected in zip(gradients(have[keep], leaves), gradients(want[keep].log(), leaves), strict=True):
            assert_near(found, expected, torch.float64, 8 * sizes.terms)
        finite = gradients(have.where(keep, 0.0), leaves)
        assert all(gradient.isfinite().all() for gradient in finite)


@pytest.mark.parametrize("name", ["dot", "tile"])
def test_nan_behind_the_mask_reaches_no_gradient(name):
    query, key, value = tensors(Sizes())
    with torch.no_grad():
        key[:, :, 6] = math.nan
    score = limelight.dot() if name == "dot" else limelight.tile_score(lambda q, k, **_: torch.sin(q @ k.mT))
    _, view = limelight.look(query, key, value, score=score, mask=limelight.lengths(torch.tensor([6, 6])))
    have = view.log_prob([(0, 1, 2, 6), (0, 1, 2, 3), (1, 2, 4, 6), (0, 0, 0, 0)])
    assert have.isneginf().tolist() == [True, False, True, False]
    for gradient in torch.autograd.grad(have[[1, 3]].sum(), (query, key)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("mask", [limelight.causal() | limelight.window(3, 3), limelight.causal()])
def test_memory_grows_with_the_pairs(mask):
    length = 7_000
    maker = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 2, length, 4, generator=maker).requires_grad_() for _ in range(2))
    _, view = limelight.look(query, key, key.detach(), mask=limelight.window(1, 1))
    view.sound_call().mask = mask
    places = torch.arange(length)
    pairs = torch.stack((places * 0, places % 2, places, places // 2), -1)
    with Largest() as largest:
        view.log_prob(pairs).sum().backward()
    assert 0 < largest.numel <= 1 << 21


def test_pairs_that_do_not_fit():
    _, view = limelight.look(*tensors(Sizes()))
    with pytest.raises(ArgumentError, match=r"integers \[P, 4\].*they are torch.int64 \[1, 3\]"):
        view.log_prob([(0, 1, 2)])
    with pytest.raises(ArgumentError, match=r"they are torch.float32 \[1, 4\]"):
        view.log_prob([(0.0, 1, 2, 3)])
    with pytest.raises(ArgumentError, match=r"axis 3 has positions \[0, 7\); 7, in pair 1, is out of range"):
        view.log_prob([(0, 1, 2, 3), (0, 1, 2, 7)])
    with pytest.raises(ArgumentError, match=r"one index for each axis"):
        view.log_prob("abc")
    assert view.log_prob([]).shape == (0,)


def test_gradients_are_the_same_bits_every_time_with_several_threads():
    """Thousands of pairs that share rows, as in guided alignment: a sum in a changing order would differ."""
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(3, 1, 37, 128, generator=generator).requires_grad_() for _ in range(2))
    sizes = (3, 1, 37, 37)
    pairs = torch.stack([torch.randint(size, (2000,), generator=generator) for size in sizes], -1)

    def slopes():
        _, view = limelight.look(query, key, key[..., :1])
        return torch.autograd.grad(view.log_prob(pairs).sum(), (query, key))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = slopes()
        assert all(torch.equal(one, other) for _ in range(5) for one, other in zip(slopes(), first, strict=True))
    finally:
        torch.set_num_threads(before)
