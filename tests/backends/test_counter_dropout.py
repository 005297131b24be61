from __future__ import annotations

import math

import pytest
import torch
from tests.support.inputs import Sizes, blocks_of, call, score_case, tensors
from tests.support.masks import causal_case
from tests.support.oracle import answer
from tests.support.tolerance import assert_near

import limelight
from limelight.backends.dropout import kept_over_rate
from limelight.masks import Block


def _whole(n, H, T, S, seed=3, rate=0.3):
    block = Block((n,), H, T, S, slice(0, n), slice(0, H), slice(0, T), slice(0, S), torch.device("cpu"))
    return block, kept_over_rate(block, rate, seed, torch.float64)


@pytest.mark.parametrize("backend", ["reference", "streaming"])
@pytest.mark.parametrize("budget", [1, 50, 1 << 21])
@pytest.mark.parametrize("name", ["dot", "additive per head"])
def test_dropout_agrees_with_the_oracle_forward_and_backward(name, budget, backend):
    sizes = Sizes(lead=(2, 2), H=2, G=1)
    score, mask = score_case(name, sizes), causal_case(sizes)
    _, keep = _whole(4, 2, sizes.T, sizes.S, seed=11, rate=0.4)
    exact, ours = tensors(sizes), tensors(sizes)
    expected = answer(*exact, score.oracle(*score.leaves), mask.truth, keep=keep.view(sizes.full))
    with blocks_of(budget):
        output = call(score, *ours, mask=mask.mask, dropout=0.4, seed=11, backend=backend)
        assert_near(output, expected.output, torch.float64, sizes.terms)
        to_output = torch.randn_like(output)
        have = torch.autograd.grad(output, [*ours, *score.leaves], to_output)
    want = torch.autograd.grad(expected.output, [*exact, *score.leaves], to_output)
    for one, other in zip(have, want, strict=True):
        assert_near(one, other, torch.float64, sizes.terms)


def test_a_part_of_the_pattern_is_the_pattern_of_the_part():
    block, whole = _whole(3, 5, 7, 11)
    rows, head = torch.tensor([6, 0, 3]), slice(1, 4)
    part = block._replace(batch=slice(2, 3), head=head, rows=rows, columns=slice(4, 9))
    assert torch.equal(kept_over_rate(part, 0.3, 3, torch.float64), whole[2:3, 1:4][:, :, rows][..., 4:9])


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_kept_overall_and_in_every_row_and_column(rate):
    _, scale = _whole(7, 3, 61, 67, rate=rate)
    kept = (scale > 0).double()
    assert torch.allclose(scale[scale > 0], torch.tensor(1 / (1 - rate), dtype=torch.float64))
    sigma = math.sqrt(rate * (1 - rate))
    assert abs(float(kept.mean()) - (1 - rate)) < 4 * sigma / math.sqrt(kept.numel())
    # 1,281 rows and 1,407 columns of each plane: five standard deviations for the worst of them.
    assert float((kept.mean(-1) - (1 - rate)).abs().max()) < 5.5 * sigma / math.sqrt(67) + 1 / 67
    assert float((kept.mean(-2) - (1 - rate)).abs().max()) < 5.5 * sigma / math.sqrt(61) + 1 / 61


def test_neighbours_are_independent():
    _, scale = _whole(5, 3, 127, 131, rate=0.5)
    sign = (scale > 0).double() * 2 - 1
    pairs = sign.numel()
    products = [
        sign[..., 1:] * sign[..., :-1],
        sign[..., 1:, :] * sign[..., :-1, :],
        sign[:, 1:] * sign[:, :-1],
        sign[1:] * sign[:-1],
        # Four corners of a rectangle: what a mix of row bits and column bits that is too weak gets wrong.
        sign[..., 1:, 1:] * sign[..., :-1, 1:] * sign[..., 1:, :-1] * sign[..., :-1, :-1],
        sign * _whole(5, 3, 127, 131, seed=4, rate=0.5)[1].sub(1).sign(),
    ]
    for product in products:
        assert abs(float(product.mean())) < 4.5 / math.sqrt(pairs / 2)


def test_the_seed_decides_and_torchs_generator_draws_it():
    query, key, value = tensors(Sizes(T=31, S=37))

    def run(seed=None):
        return limelight.attend(query, key, value, dropout=0.5, seed=seed)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    assert not torch.equal(run(3), run(3 + (1 << 40)))
    assert not torch.equal(run(), run())
    torch.manual_seed(5)
    first = run()
    torch.manual_seed(5)
    assert torch.equal(run(), first)


def test_views_show_the_weights_before_dropout():
    query, key, value = tensors(Sizes())
    _, dropped = limelight.look(query, key, value, dropout=0.5, seed=1)
    _, whole = limelight.look(query, key, value)
    assert torch.equal(dropped.dense(), whole.dense())
