"""The matrix pooled to a picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, pooled, view_cases

import limelight
from limelight.errors import ArgumentError


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_map_is_the_dense_matrix_pooled(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, _, sizes, _ = data.draw(view_cases())
        rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
        reduce = data.draw(st.sampled_from(("mean", "max")))
        cuts = [data.draw(st.slices(size).filter(lambda one: one.step in (None, 1))) for size in (sizes.T, sizes.S)]
        region = data.draw(st.sampled_from((None, tuple(cuts))))
        part = weights.detach() if region is None else weights.detach()[(..., *region)]
        assert_near(
            view.map(rows, columns, region, reduce), pooled(part, rows, columns, reduce), torch.float64, sizes.terms
        )


@pytest.mark.parametrize("budget", [200, 3000, 1 << 21])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_blocks_and_cells_need_not_fit_one_another(budget, reduce):
    query, key, value = (x.detach() for x in tensors(Sizes(lead=(2,), T=101, S=89)))
    with blocks_of(budget):
        _, view = limelight.look(query, key, value, mask=limelight.window(40, 11))
        have = view.map(13, 7, (slice(5, 97), slice(3, 88)), reduce)
    assert_near(have, pooled(view.dense()[..., 5:97, 3:88], 13, 7, reduce), torch.float64, 200)


def test_a_map_by_hand():
    # Five keys alike in two cells: [0, 2) and [2, 5).
    zeros = torch.zeros(1, 5, 1)
    _, view = limelight.look(zeros, zeros, zeros, mask=limelight.dense(torch.arange(5) != 4))
    torch.testing.assert_close(view.map(1, 2), torch.tensor([[[0.25, 1 / 6]]]))
    torch.testing.assert_close(view.map(1, 2, reduce="max"), torch.tensor([[[0.25, 0.25]]]))
    assert view.map(9, 9).shape == (1, 5, 5)
    assert view.map(3, 3, (2, slice(1, 1))).shape == (1, 1, 0)


def test_the_cost_is_that_of_the_region():
    asked = []

    def spy(q, k, *, query_index, key_index):
        asked.extend((int(i), int(j)) for i in query_index for j in key_index)
        return q @ k.mT

    for budget in BUDGETS:
        with blocks_of(budget):
            _, view = limelight.look(*tensors(Sizes()), score=limelight.tile_score(spy))
            asked.clear()
            view[0].sum()
            asked.clear()
            view.map(1, 2, (slice(1, 3), slice(2, 6)))
            # Once for each batch piece.
            assert set(asked) == {(i, j) for i in (1, 2) for j in (2, 3, 4, 5)}
            assert len(asked) in (8, 16)


def test_maps_that_do_not_fit():
    _, view = limelight.look(*tensors(Sizes()))
    with pytest.raises(ArgumentError, match="rows must be an integer of at least 1; it is 0"):
        view.map(0, 3)
    with pytest.raises(ArgumentError, match=r"columns must be an integer of at least 1; it is 1.5"):
        view.map(1, 1.5)
    with pytest.raises(ArgumentError, match="reduce must be one of 'mean', 'max'; it is 'sum'"):
        view.map(1, 1, reduce="sum")
    with pytest.raises(ArgumentError, match=r"region must be \(queries, keys\), two slices.*it is 3"):
        view.map(1, 1, 3)
    with pytest.raises(ArgumentError, match=r"runs of positions: slices with step 1"):
        view.map(1, 1, (slice(0, 4, 2), slice(None)))
    with pytest.raises(ArgumentError, match=r"positions \[0, 7\); 7 is out of range"):
        view.map(1, 1, (0, 7))
