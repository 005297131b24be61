"""NaN, inf and rows without keys: what is forbidden never shows, what is allowed shows in its own row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, blocks_of, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.oracle import answer
from tests.support.tolerance import bound

import limelight
from limelight.numerics import Strays, weighted_sum

BACKENDS = ("reference", "streaming")
BUDGETS = (1, 40, 1 << 21)


def _same(have, expected, sizes, what):
    """Finite in the same places, and near there; NaN in one place may be inf in the other."""
    have, expected = have.detach(), expected.detach()
    assert torch.equal(have.isfinite(), expected.isfinite()), f"{what}: {have} expected {expected}"
    finite = expected.isfinite()
    error = (have[finite] - expected[finite]).abs()
    assert not error.numel() or error.max() <= bound(expected, torch.float64, sizes.terms), what


def _compare(sizes, score, case, backend, budget, poison, to_output):
    exact = tensors(sizes)
    with torch.no_grad():
        for place, index, number in poison:
            exact[place][index] = number
    ours = [leaf.detach().clone().requires_grad_() for leaf in exact]
    weights = [leaf.detach().clone().requires_grad_() for leaf in score.leaves]
    expected = answer(*exact, score.oracle(*score.leaves), case.truth)
    wanted = [*exact, *score.leaves]
    tied = expected.output + sum(leaf.flatten()[:0].sum() for leaf in wanted)
    slopes = torch.autograd.grad(tied, wanted, to_output)
    with blocks_of(budget):
        output = limelight.attend(*ours, score=score.make(*weights), mask=case.mask, backend=backend)
        grads = torch.autograd.grad(output, [*ours, *weights], to_output)
    _same(output, expected.output, sizes, "output")
    for name, grad, slope in zip(("query", "key", "value", *"abc"), grads, slopes, strict=False):
        _same(grad, slope, sizes, f"gradient of {name}")
    return output, grads


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_nonfinite_numbers_anywhere_behave_as_if_each_row_gathered_its_keys(data):
    sizes = Sizes(lead=(2,), H=2, G=1, T=3, S=5, D=2, E=3)
    score = score_case(
        data.draw(st.sampled_from(("dot", "general", "additive", "additive per head", "concat", "tile"))), sizes
    )
    case = data.draw(mask_cases(sizes))
    poison = []
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from((0, 1, 2)))
        shape = tensors(sizes)[place].shape
        index = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        # An inf key is not 0 · inf in every formula for a sine; NaN is NaN in all.
        number = data.draw(st.sampled_from((math.nan, math.inf, -math.inf) if place == 2 else (math.nan,)))
        poison.append((place, index, number))
    to_output = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    backend, budget = data.draw(st.sampled_from(BACKENDS)), data.draw(st.sampled_from(BUDGETS))
    if backend == "streaming" and data.draw(st.booleans()):
        to_output[1, data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))] = math.nan
    _compare(sizes, score, case, backend, budget, poison, to_output)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["dot", "general", "additive", "additive per head", "concat"])
def test_padding_of_nan_and_inf_changes_no_bit(name, number, budget, backend):
    sizes = Sizes()
    mask = limelight.lengths(torch.tensor([4, 7])) & limelight.causal()
    score = score_case(name, sizes)

    def run(padding):
        leaves = [leaf.detach() for leaf in tensors(sizes)]
        for leaf in leaves[1:]:
            leaf[0, :, 4:] = padding
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with blocks_of(budget):
            output = limelight.attend(*leaves, score=score.make(*score.leaves), mask=mask, backend=backend)
            return output, *torch.autograd.grad(output.square().sum(), [*leaves, *score.leaves])

    for clean, padded in zip(run(0.0), run(number), strict=True):
        assert padded.isfinite().all()
        torch.testing.assert_close(padded, clean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["general", "additive", "concat"])
def test_a_query_without_keys_adds_nothing_to_the_gradient_of_a_weight(name, number, autocast):
    sizes = Sizes()
    score = score_case(name, sizes)
    mask = limelight.lengths(torch.tensor([0, 7]))

    def run(unused):
        query, key, value = (leaf.detach().float() for leaf in tensors(sizes))
        query[0] = unused
        weights = [leaf.detach().float().requires_grad_() for leaf in score.leaves]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = limelight.attend(query, key, value, score=score.make(*weights), mask=mask)
        return torch.autograd.grad(output.float().square().sum(), weights)

    for clean, poisoned in zip(run(0.0), run(number), strict=True):
        assert clean.abs().max() > 0
        unit = torch.finfo(torch.bfloat16 if autocast else torch.float32).eps
        assert (poisoned - clean).abs().max() <= 4 * unit * clean.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_without_keys_give_zeros(dtype, budget, backend):
    sizes = Sizes()
    query, key, value = tensors(sizes, dtype=dtype)
    mask = limelight.lengths(torch.tensor([0, 3]))
    with blocks_of(budget):
        output, view = limelight.look(query, key, value, mask=mask, backend=backend)
        # The gradient of an empty row's output may be anything, its query too.
        to_output = torch.ones_like(output)
        to_output[0] = math.nan
        grads = torch.autograd.grad(output, (query, key, value), to_output)
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    assert torch.equal(view[0], torch.zeros_like(view[0]))
    assert (view.lse[0] == -math.inf).all()
    for grad in grads:
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))
        assert grad.isfinite().all()
    assert grads[2][1, :, :3].abs().min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_nan_that_is_allowed_shows_in_its_row_only(budget, backend):
    query, key, value = tensors(Sizes(lead=(1,), H=1, G=1, T=5, S=5))
    with torch.no_grad():
        key[0, 0, 3, 2] = math.nan
        value[0, 0, 4, 1] = math.inf
    with blocks_of(budget):
        output = limelight.attend(query, key, value, mask=limelight.causal(), backend=backend)
    assert output[0, 0, :3].isfinite().all()
    assert output[0, 0, 3].isnan().all()
    assert not output[0, 0, 4].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_bias_of_minus_inf_forbids(budget, backend):
    sizes = Sizes(lead=(), H=1, G=1, T=2, S=3)
    query, key, value = tensors(sizes)
    with torch.no_grad():
        key[0, 1], value[0, 1] = math.nan, math.inf
    bias = torch.tensor([[0.0, -math.inf, 0.5], [-math.inf] * 3], dtype=torch.float64, requires_grad=True)
    with blocks_of(budget):
        output, view = limelight.look(query, key, value, bias=bias, backend=backend)
        grads = torch.autograd.grad(output.sum(), (query, key, value, bias))
    assert torch.equal(output[0, 1], torch.zeros_like(output[0, 1]))
    assert view[0, 0, 1] == 0
    assert abs(view[0, 0].sum().item() - 1) < 1e-12
    assert all(grad.isfinite().all() for grad in grads)


def test_inf_saturates_an_additive_score_alike_at_every_block_size():
    sizes = Sizes()
    score = score_case("additive per head", sizes)
    grads = []
    for budget in BUDGETS:
        query, key, value = tensors(sizes)
        with torch.no_grad():
            key[1, 2, 3] = math.inf
        with blocks_of(budget):
            output = limelight.attend(query, key, value, score=score.make(*score.leaves), mask=limelight.causal())
            grads.append(torch.autograd.grad(output.sum(), (query, key, value)))
    for other in grads[1:]:
        for have, want in zip(other, grads[0], strict=True):
            assert have.isfinite().all()
            torch.testing.assert_close(have, want)


def test_weighted_sum_by_hand():
    weights = torch.tensor([[[[0.5, 0.5, 0.0]], [[0.25, 0.75, 0.0]]]])
    allowed = torch.tensor([[[[True, True, False]], [[True, True, False]]]])
    value = torch.tensor(
        [[[[1.0, 2.0], [3.0, math.inf], [math.nan, 1.0]], [[math.inf, 4.0], [-math.inf, 8.0], [1, 1]]]]
    )
    total = weighted_sum(weights, value, allowed)
    assert total[0, 0].tolist() == [[2.0, math.inf]]
    assert math.isnan(float(total[0, 1, 0, 0]))
    assert float(total[0, 1, 0, 1]) == 7.0
    assert Strays().apply(total) is total


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_padding_key_whose_scores_are_all_minus_inf_leaves_no_trace(budget):
    # Its weight is 0 with or without the mask, so only the gradient of the query would show it, as 0 · inf.
    query = torch.ones(1, 1, 2, 3, requires_grad=True)
    key, value = torch.randn(1, 1, 5, 3), torch.randn(1, 1, 5, 7)
    key[:, :, 4] = -math.inf
    with blocks_of(budget):
        output = limelight.attend(query, key, value, mask=limelight.lengths(torch.tensor([4])), backend="streaming")
        (grad,) = torch.autograd.grad(output.square().sum(), query)
    assert grad.isfinite().all()
    assert grad.abs().min() > 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_nan_in_the_gradient_of_one_row_reaches_only_what_the_row_may_attend_to(budget):
    query, key, value = tensors(Sizes(lead=(1,), H=1, G=1, T=5, S=5))
    to_output = torch.ones(1, 1, 5, 13, dtype=torch.float64)
    to_output[0, 0, 2] = math.nan
    with blocks_of(budget):
        output = limelight.attend(query, key, value, mask=limelight.causal(), backend="streaming")
        to_query, to_key, to_value = torch.autograd.grad(output, (query, key, value), to_output)
    assert to_query[0, 0].isnan().any(-1).tolist() == [False, False, True, False, False]
    assert to_key[0, 0].isnan().any(-1).tolist() == [True, True, True, False, False]
    assert to_value[0, 0].isnan().any(-1).tolist() == [True, True, True, False, False]
