from __future__ import annotations

import math

import pytest
import torch
from tests.support.inputs import Sizes, blocks_of, score_case, tensors

import limelight
from limelight.errors import ArgumentError

Q, K = torch.zeros(2, 3, 5, 11), torch.zeros(2, 3, 7, 13)


def _weights(score, query, key):
    return limelight.look(query, key, key, score=score)[1].dense()


def test_general_by_hand():
    # q W k with q = (1, 2), W = [[0, 1], [ln 3 / 2, 0]]: scores of the unit keys are ln 3 and 1.
    query = torch.tensor([[[1.0, 2.0]]])
    weight = torch.tensor([[0.0, 1.0], [math.log(3) / 2, 0.0]])
    weights = _weights(limelight.general(weight), query, torch.eye(2)[None])
    torch.testing.assert_close(weights, torch.tensor([[[3.0, math.e]]]) / (3 + math.e))


def test_general_joins_widths_that_differ():
    weight = torch.randn(11, 13)
    query, key = torch.randn(2, 3, 5, 11), torch.randn(2, 3, 7, 13)
    expected = torch.softmax(torch.einsum("bhtd,de,bhse->bhts", query, weight, key) * 0.5, -1)
    torch.testing.assert_close(_weights(limelight.general(weight, 0.5), query, key), expected)
    heads = torch.randn(3, 11, 13)
    expected = torch.softmax(torch.einsum("bhtd,hde,bhse->bhts", query, heads, key), -1)
    torch.testing.assert_close(_weights(limelight.general(heads), query, key), expected)


def test_additive_and_concat_by_hand():
    # v tanh(q + k): 2 tanh(0.5 + 0.5) and 2 tanh(0.5 - 0.5).
    query, key = torch.tensor([[[0.5]]]), torch.tensor([[[0.5], [-0.5]]])
    expected = torch.softmax(torch.tensor([[[2 * math.tanh(1), 0.0]]]), -1)
    torch.testing.assert_close(_weights(limelight.additive(torch.tensor([2.0])), query, key), expected)
    halves = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(_weights(limelight.concat(torch.tensor([2.0]), halves), query, key), expected)
    # The first columns belong to the query: with (0, 1) only the key is seen.
    expected = torch.softmax(torch.tensor([[[2 * math.tanh(0.5), 2 * math.tanh(-0.5)]]]), -1)
    key_only = torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(_weights(limelight.concat(torch.tensor([2.0]), key_only), query, key), expected)


def test_additive_may_project_one_side_only():
    query, key, vector = torch.randn(1, 1, 5, 11), torch.randn(1, 1, 7, 13), torch.randn(17)
    left, right = torch.randn(17, 11), torch.randn(17, 13)
    both = _weights(limelight.additive(vector, left, right), query, key)
    torch.testing.assert_close(_weights(limelight.additive(vector, left), query, key @ right.T), both)
    torch.testing.assert_close(_weights(limelight.additive(vector, None, right), query @ left.T, key), both)
    torch.testing.assert_close(_weights(limelight.additive(vector), query @ left.T, key @ right.T), both)


def test_projections_may_differ_from_head_to_head():
    query, key, vector = torch.randn(2, 3, 5, 11), torch.randn(2, 3, 7, 13), torch.randn(3, 17)
    left, right = torch.randn(3, 17, 11), torch.randn(3, 17, 13)
    whole = _weights(limelight.additive(vector, left, right), query, key)
    joined = _weights(limelight.concat(vector, torch.cat((left, right), -1)), query, key)
    for head in range(3):
        one = slice(head, head + 1)
        alone = _weights(limelight.additive(vector[head], left[head], right[head]), query[:, one], key[:, one])
        torch.testing.assert_close(whole[:, one], alone)
        torch.testing.assert_close(joined[:, one], alone)


def test_tile_score_gets_places_in_the_whole_call():
    def distance(q, k, *, query_index, key_index):
        return -(query_index[:, None] - key_index).abs().to(q.dtype).expand(*q.shape[:-1], -1)

    query, key = torch.zeros(2, 3, 5, 11), torch.zeros(2, 3, 7, 11)
    expected = torch.softmax(-(torch.arange(5.0)[:, None] - torch.arange(7.0)).abs(), -1).expand(2, 3, 5, 7)
    torch.testing.assert_close(_weights(limelight.tile_score(distance), query, key), expected)


def test_tile_score_may_return_what_it_was_given():
    query, key = torch.randn(1, 1, 5, 7), torch.randn(1, 1, 7, 7)
    mask = limelight.causal()
    before = query.clone()
    limelight.attend(query, key, key, score=limelight.tile_score(lambda q, k, **_: q), mask=mask)
    assert torch.equal(query, before)


@pytest.mark.parametrize("name", ["additive", "concat", "general"])
def test_gradients_reach_weights_through_other_layers(name):
    sizes = Sizes()
    score = score_case(name, sizes)
    leaves = [leaf.detach().float() for leaf in score.leaves]
    twice = [leaf.clone().requires_grad_() for leaf in leaves]
    output = limelight.attend(*(x.detach().float() for x in tensors(sizes)), score=score.make(*(2 * x for x in twice)))
    output.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in twice)


def test_a_cap_comes_before_the_bias():
    # Scores 2 atanh(1/2) and 0 become 1 and 0 under a cap of 2; the bias of ln 3 is added to the second as it is.
    query, key = torch.tensor([[[2 * math.atanh(0.5)]]]), torch.tensor([[[1.0], [0.0]]])
    bias = torch.tensor([0.0, math.log(3)])
    for backend in ("reference", "streaming"):
        _, view = limelight.look(query, key, key, score=limelight.dot(1.0, cap=2.0), bias=bias, backend=backend)
        weight = math.e / (math.e + 3)
        torch.testing.assert_close(view.dense(), torch.tensor([[[weight, 1 - weight]]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: limelight.dot("1"), r"dot\(scale\): scale must be a finite number, or None.*'1'"),
        (lambda: limelight.dot(math.nan), r"scale must be a finite number"),
        (lambda: limelight.dot(True), r"scale must be a finite number"),
        (
            lambda: limelight.dot(cap=0.0),
            r"dot\(cap\): cap must be a finite number above 0, or None.*it is 0.0",
        ),
        (lambda: limelight.dot(cap=-1.0), r"cap must be a finite number above 0"),
        (lambda: limelight.dot(cap=math.inf), r"cap must be a finite number above 0"),
        (lambda: limelight.general(torch.zeros(3)), r"general\(weight\): weight must be a tensor \[D of query.*\[3\]"),
        (lambda: limelight.general(torch.zeros(3, 3), math.inf), r"general\(weight, scale\): scale must be"),
        (lambda: limelight.additive(torch.zeros(1, 2, 3)), r"additive\(vector\): vector must be a tensor \[A\]"),
        (lambda: limelight.additive(3), r"additive\(vector\).*it is int"),
        (lambda: limelight.concat(torch.zeros(()), torch.zeros(3, 3)), r"concat\(vector\)"),
        (lambda: limelight.concat(torch.zeros(3), torch.zeros(3)), r"concat\(weight\): weight must be"),
        (lambda: limelight.tile_score(3), r"tile_score\(fn\): fn must be a function"),
        (lambda: limelight.tile_score(len, 3), r"each parameter must be a tensor; number 0 is int.*functools.partial"),
        (lambda: limelight.tile_score(len, pair_cost=0), r"pair_cost must be an integer of at least 1; it is 0"),
    ],
)
def test_mistakes_when_a_score_is_made(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (limelight.dot(), r"score dot: query and key must have the same width D; query has 11 and key 13.*general"),
        (limelight.general(torch.zeros(13, 11)), r"general\(weight\) must have the shape \[11, 13\].*is \[13, 11\]"),
        (limelight.general(torch.zeros(2, 11, 13)), r"general\(weight\) has a head axis of 2, but there are 3 heads"),
        (
            limelight.general(torch.zeros(11, 13).double()),
            r"general\(weight\) must have the dtype of query",
        ),
        (limelight.general(torch.zeros(11, 13, device="meta")), r"must be on the device of query, cpu; it is on meta"),
        (limelight.additive(torch.zeros(11)), r"additive: key must have the width of the vector, 11; it has 13"),
        (limelight.additive(torch.zeros(13)), r"additive: query must have the width of the vector, 13; it has 11"),
        (
            limelight.additive(torch.zeros(17), torch.zeros(17, 13)),
            r"query_weight\) must have the shape \[17, 11\]",
        ),
        (limelight.additive(torch.zeros(2, 11)), r"additive\(vector\) has a head axis of 2"),
        (limelight.concat(torch.zeros(17), torch.zeros(17, 23)), r"concat\(weight\) must have the shape \[17, 24\]"),
        (limelight.concat(torch.zeros(5), torch.zeros(17, 24)), r"concat\(vector\) must have the shape \[17\]"),
        (
            limelight.tile_score(lambda q, k, **_: q),
            r"must return.*here \[2, 3, 5, 7\]; it returned \[2, 3, 5, 11\]",
        ),
        (limelight.tile_score(lambda q, k, **_: 1), r"it returned int"),
    ],
)
def test_scores_that_do_not_fit_the_call(score, message):
    with pytest.raises(ArgumentError, match=message):
        limelight.attend(Q, K, torch.zeros(2, 3, 7, 17), score=score)


def test_cosine_by_hand():
    # q = (3, 4) has length 5; the keys lie along it, against it, across it, and nowhere.
    query = torch.tensor([[[3.0, 4.0]]])
    key = torch.tensor([[[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0]]])
    expected = torch.softmax(torch.tensor([[[2.0, -2.0, 0.0, 0.0]]]), -1)
    torch.testing.assert_close(_weights(limelight.cosine(2.0), query, key), expected)


def test_cosine_takes_a_learned_scale_per_head():
    query, key = (torch.randn(2, 3, n, 11).double().requires_grad_() for n in (5, 7))
    scale = torch.tensor([0.5, 3.0, 10.0]).double().requires_grad_()
    lengths = query.norm(dim=-1)[..., None] * key.norm(dim=-1)[..., None, :]
    expected = torch.softmax(scale[:, None, None] * (query @ key.mT) / lengths, -1) @ key
    rows = torch.randn_like(expected)
    wanted = (query, key, scale)
    for backend in ("reference", "streaming", "auto"):
        found = limelight.attend(query, key, key, score=limelight.cosine(scale), backend=backend)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for one, other in zip(
            torch.autograd.grad(found, wanted, rows),
            torch.autograd.grad(expected, wanted, rows, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_cosine_of_what_a_mask_hides():
    query, key, value = (torch.randn(1, 2, n, 11).requires_grad_() for n in (5, 7, 7))
    with torch.no_grad():
        key[:, :, 4:] = torch.nan
        value[:, :, 4:] = torch.nan
    found = limelight.attend(query, key, value, score=limelight.cosine(), mask=limelight.lengths(torch.tensor([4])))
    found.sum().backward()
    for grad in (query.grad, key.grad, value.grad):
        assert grad.isfinite().all()
    assert not key.grad[:, :, 4:].any()
    zero = torch.zeros(1, 1, 2, 3, requires_grad=True)
    limelight.attend(zero, zero, torch.randn(1, 1, 2, 3), score=limelight.cosine()).sum().backward()
    assert not zero.grad.any()


def test_where_the_scale_of_qk_norm_starts():
    assert limelight.scores.qk_norm_start(2) == 1.0
    assert limelight.scores.qk_norm_start(256) == pytest.approx(math.log2(65280))


def test_a_gaussian_by_hand():
    # Scores of 0 leave the Gaussian alone: exp(-(j - 1.5)² / 2) at j = 0 ... 3.
    query, key = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 4, 3)
    size = torch.exp(-((torch.arange(4.0) - 1.5) ** 2) / 2)
    weights = _weights(limelight.gaussian(limelight.dot(), torch.tensor([[1.5]]), 1.0), query, key)
    torch.testing.assert_close(weights[0, 0, 0], size / size.sum())


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_a_gaussian_has_a_centre_for_each_query_of_each_sequence(backend):
    query, key, value = tensors(Sizes(lead=(2, 3)))
    centre = (torch.rand(2, 3, 5).double() * 7).requires_grad_()
    away = torch.arange(7) - centre[:, :, None, :, None]
    expected = torch.softmax(query @ key.mT - away.square() / 8, -1) @ value
    rows = torch.randn_like(expected)
    wanted = (query, key, value, centre)
    slopes = torch.autograd.grad(expected, wanted, rows)
    for budget in (40, 1 << 21):
        with blocks_of(budget):
            score = limelight.gaussian(limelight.dot(1.0), centre, 2.0)
            found = limelight.attend(query, key, value, score=score, backend=backend)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            for one, other in zip(torch.autograd.grad(found, wanted, rows), slopes, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: limelight.cosine(math.nan), "scale must be a finite number or a tensor; it is nan"),
        (lambda: limelight.cosine(torch.zeros(2, 2)), r"must be float, one number or \[H\]"),
        (lambda: limelight.scores.qk_norm_start(1), "length must be an integer of at least 2; it is 1"),
        (lambda: limelight.gaussian("dot", torch.zeros(1, 5), 1.0), "score must be one of limelight.scores"),
        (lambda: limelight.gaussian(limelight.dot(), 3.0, 1.0), "centre must be a float tensor"),
        (lambda: limelight.gaussian(limelight.dot(), torch.zeros(1, 5), 0.0), "must be a finite number above 0"),
        (
            lambda: limelight.attend(Q, Q, Q, score=limelight.gaussian(limelight.dot(), torch.zeros(2, 4), 1.0)),
            r"one place per query, \[2, 5\]",
        ),
        (lambda: limelight.attend(Q, Q, Q, score=limelight.cosine(torch.zeros(2))), r"one per head, \[3\]"),
    ],
)
def test_mistakes_in_cosine_and_gaussian(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
