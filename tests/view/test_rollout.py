from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, gradients, view_cases

import limelight
from limelight.errors import ArgumentError


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_rollout_is_the_product_of_the_layers(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS[1:]))):
        first = data.draw(view_cases(square=True))
        more = st.lists(view_cases(square=True, lead=first.sizes.lead), max_size=2)
        cases = [first, *data.draw(more)]
        product = torch.eye(5, dtype=torch.float64)
        for case in cases:
            product = (0.5 * case.weights.mean(-3) + 0.5 * torch.eye(5, dtype=torch.float64)) @ product
        targets = data.draw(st.integers(-5, 4) | st.lists(st.integers(-5, 4), max_size=3))
        have = limelight.rollout([case.view for case in cases], targets)
        want = product[..., targets, :]
        leaves = tuple(leaf for case in cases for leaf in case.leaves)
        assert_near(have, want, torch.float64, 3 * first.sizes.terms)
        for one, other in zip(gradients(have, leaves), gradients(want, leaves), strict=True):
            assert_near(one, other, torch.float64, 24 * first.sizes.terms)


def test_rollout_by_hand():
    # Two layers, each of which looks at both positions alike: [3/4, 1/4] times the same.
    zeros = torch.zeros(1, 2, 1)
    _, view = limelight.look(zeros, zeros, zeros)
    torch.testing.assert_close(limelight.rollout([view, view], 0), torch.tensor([0.625, 0.375]))
    torch.testing.assert_close(limelight.rollout([view], [1]), torch.tensor([[0.25, 0.75]]))


def test_rollout_mistakes():
    _, square = limelight.look(*tensors(Sizes(T=5, S=5)))
    _, other = limelight.look(*tensors(Sizes(T=5, S=7)))
    for wrong in ([], square, [square, 3]):
        with pytest.raises(ArgumentError, match="give a list of views, one per layer at least"):
            limelight.rollout(wrong, 0)  # pyright: ignore
    with pytest.raises(ArgumentError, match=r"they are \[\[2, 5, 5\], \[2, 5, 7\]\]"):
        limelight.rollout([square, other], 0)
    with pytest.raises(ArgumentError, match=r"they are \[\[2, 5, 7\]\]"):
        limelight.rollout([other], 0)
    with pytest.raises(ArgumentError, match="5 is out of range"):
        limelight.rollout([square], [5])
