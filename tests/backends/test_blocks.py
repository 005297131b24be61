"""Memory: no backend but the reference makes anything of size T x S, forward or backward."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.inputs import Sizes, blocks_of, score_case, tensors

import limelight
from limelight.backends import tiling
from limelight.backends.tiling import block_sizes, pieces
from limelight.masks import Block
from limelight.masks.window import Window

LONG = Sizes(lead=(1,), H=2, G=1, T=131, S=137, D=3, E=5)
BUDGET = 1 << 12


def _run(backend, name, mask, **options):
    score = score_case(name, LONG)
    leaves = tensors(LONG, dtype=torch.float32)
    weights = [leaf.detach().float().requires_grad_() for leaf in score.leaves]
    with blocks_of(BUDGET), Largest() as largest:
        output = limelight.attend(*leaves, score=score.make(*weights), mask=mask, backend=backend, **options)
        torch.autograd.grad(output.sum(), [*leaves, *weights])
    return largest.numel


@pytest.mark.parametrize("name", ["dot", "additive per head", "general", "tile"])
@pytest.mark.parametrize(
    "mask", [None, limelight.causal() & ~limelight.window(3, 0), limelight.lengths(torch.tensor([113]))]
)
def test_streaming_never_holds_more_than_a_block(name, mask):
    assert _run("streaming", name, mask, dropout=0.1, seed=1) <= BUDGET < LONG.T * LONG.S


@pytest.mark.parametrize("bias", [limelight.alibi(), limelight.relative(torch.zeros(2, 9, requires_grad=True))])
def test_a_bias_by_distance_is_never_expanded(bias):
    assert _run("streaming", "dot", limelight.causal(), bias=bias, sink=torch.zeros(2)) <= BUDGET < LONG.T * LONG.S


def test_the_watcher_sees_what_the_reference_makes():
    assert _run("reference", "dot", None) >= LONG.H * LONG.T * LONG.S


def test_views_answer_in_blocks_too():
    leaves = [leaf.detach() for leaf in tensors(LONG, dtype=torch.float32)]
    with blocks_of(BUDGET), Largest() as largest:
        _, view = limelight.look(*leaves, mask=limelight.causal(), observe=("received", "entropy", limelight.top(3)))
        _ = view[0, 1, 5:9]
    # The index of the best k is found beside the scores, one more number per pair and eight bytes wide.
    assert largest.numel <= 3 * BUDGET < LONG.T * LONG.S


def test_blocks_that_the_mask_rules_out_are_not_computed():
    asked = []

    def spy(q, k, *, query_index, key_index):
        asked.append((int(query_index[0]), int(key_index[0])))
        return q @ k.mT

    query, key, value = (leaf.detach() for leaf in tensors(Sizes(lead=(1,), H=1, G=1, T=60, S=60)))
    with blocks_of(100):
        for mask, most in (
            (limelight.causal(), 21),
            (limelight.window(4, 0), 11),
            (limelight.lengths(torch.tensor([7])), 6),
        ):
            asked.clear()
            limelight.attend(query, key, value, score=limelight.tile_score(spy, pair_cost=1), mask=mask)
            assert 0 < len(asked) <= most
        asked.clear()
        limelight.attend(query, key, value, score=limelight.tile_score(spy, pair_cost=1))
        assert len(asked) == 36


@dataclass(frozen=True)
class Counting(Window):
    """A window that counts how often it is asked about a block."""

    asked: list[Block] = field(default_factory=list)

    def rules_out(self, block):
        self.asked.append(block)
        return super().rules_out(block)


def test_a_narrow_window_is_asked_only_about_blocks_near_the_diagonal():
    # 100 pieces of rows and 100 of columns; a window of five keys begins in the block before at the earliest.
    leaves = tensors(Sizes(lead=(1,), H=1, G=1, T=1_000, S=1_000))
    mask = Counting(4, 0)
    with blocks_of(100):
        output = limelight.attend(*leaves, mask=mask & limelight.causal(), backend="streaming")
        assert len(mask.asked) == 199
        torch.autograd.grad(output.sum(), leaves)
    assert len(mask.asked) == 2 * 199
    expected = limelight.attend(*leaves, mask=limelight.window(4, 0), backend="reference")
    torch.testing.assert_close(output, expected)


@given(
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 300),
    st.integers(1, 1 << 21),
)
def test_blocks_stay_within_the_budget(n, H, T, S, cost, budget):
    with blocks_of(budget):
        sizes = block_sizes(n, H, T, S, cost)
    assert all(1 <= one <= most for one, most in zip(sizes, (n, T, S), strict=True))
    assert sizes[0] * sizes[1] * sizes[2] * H * cost <= max(budget, H * cost)


def test_pieces_cover_each_position_once():
    assert [(one.start, one.stop) for one in pieces(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert not list(pieces(0, 3))


def test_a_call_of_one_block_is_told_from_one_of_many():
    query = torch.zeros(2, 3, 5, 7)
    view = limelight.look(query, query, query)[1]
    call = view.sound_call()
    for budget, whole in ((75, True), (74, False)):
        with blocks_of(budget):
            assert tiling.fits(call) is whole
    assert isinstance(call.whole(), Block)
    assert call.whole().whole
