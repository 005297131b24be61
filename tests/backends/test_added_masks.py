"""Masks that are added to the scores as the least float: rows, and the first blocks of rows, that hold nothing else."""

from __future__ import annotations

import pickle

import pytest
import torch

from limelight import attend, look, top
from limelight.backends import lookup
from limelight.backends.select import BACKENDS

LEAST = torch.finfo(torch.float32).min
NAMES = [backend.name for backend in BACKENDS if backend.name != "torch"]


def _case(queries, keys, least):
    drawn = torch.Generator().manual_seed(queries + keys)
    query, key, value = (torch.randn(2, 2, size, 8, generator=drawn) for size in (queries, keys, keys))
    bias = torch.zeros(2, 1, queries, keys)
    bias[0, ..., : keys // 2] = least  # padding on the left
    bias[1, :, queries // 2] = least  # a row of padding: every key counts the same there
    return query, key, value, bias


def _textbook(query, key, value, bias, sink):
    query, key, value, bias = (one.double() for one in (query, key, value, bias))
    # A score of 1 added to -1e9 is lost in fp32.
    scores = (query @ key.mT / query.shape[-1] ** 0.5 + bias).float().double()
    if sink is not None:
        scores = torch.cat((scores, sink.double()[:, None, None].expand(*scores.shape[:3], 1)), -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return weights @ value, weights


def _near(have, expected):
    torch.testing.assert_close(have.detach().double(), expected.detach(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("sink", [None, torch.tensor([0.5, -1.0])])
@pytest.mark.parametrize(("queries", "keys"), [(1, 400), (5, 1000), (40, 401), (203, 640)])
@pytest.mark.parametrize("least", [LEAST, LEAST / 2, -1e9])
def test_output_gradients_and_all_that_is_seen(backend, sink, queries, keys, least):
    *leaves, bias = _case(queries, keys, least)
    leaves = [one.requires_grad_() for one in leaves]
    output, weights = _textbook(*leaves, bias, sink)
    expected = torch.autograd.grad(output.sin().sum(), leaves)
    found = attend(*leaves, bias=bias, sink=sink, backend=backend)
    _near(found, output)
    for mine, theirs in zip(torch.autograd.grad(found.sin().sum(), leaves), expected, strict=True):
        _near(mine, theirs.double())

    query, key, value = (one.detach() for one in leaves)
    observe = ("received", "entropy", top(3))
    _, view = look(query, key, value, bias=bias, sink=sink, backend=backend, observe=observe)
    _, later = look(query, key, value, bias=bias, sink=sink, backend=backend)
    weights = weights.detach()
    for one in (view, later):
        _near(one.received(), weights.sum(-2))
        _near(one.entropy(), torch.special.entr(weights).sum(-1))
        _near(one.top(3).weights, weights.topk(3).values)
    _near(later.dense(), weights)
    _near(later[1, :, queries // 2, ::7], weights[1, :, queries // 2, ::7])
    _near(later @ value[0, 0], weights @ value[0, 0].double())
    _near(torch.ones(queries) @ later, weights.sum(-2))
    _near(later.log_prob([(1, 0, queries // 2, 3)]).exp(), weights[1, :1, queries // 2, 3])
    line = later.map(1, 1, region=(queries // 2, slice(0, keys)))
    _near(line[1], weights[1, :, queries // 2].mean(-1)[:, None, None])


@pytest.mark.parametrize("backend", NAMES)
def test_gradients_of_a_view_of_such_rows(backend):
    query, key, value, bias = _case(5, 30, LEAST)
    query.requires_grad_()
    picked = torch.randn(2, 2, 5, 30)
    _, weights = _textbook(query, key, value, bias, None)
    (expected,) = torch.autograd.grad((weights * picked).sum(), query)
    _, view = look(query, key, value, bias=bias, backend=backend)
    (found,) = torch.autograd.grad((view.dense() * picked).sum(), query)
    _near(found, expected.double())


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
def test_the_weights_of_a_row_sum_to_one_however_large_the_scores(backend, size):
    drawn = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 2, 50, 16, generator=drawn) for _ in range(3))
    query[..., 0], key[..., 0] = size, 1.0 + 1e-4 * torch.randn(50, generator=drawn)
    _, view = look(query, key, value, backend=backend)
    sums = view.dense().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-5)
    _near(view.received().sum(-1), torch.full((1, 2), 50.0, dtype=torch.float64))


def test_only_rows_that_are_asked_for_are_worked_out_and_once(monkeypatch):
    query, key, value, bias = _case(40, 401, LEAST)
    _, weights = _textbook(query, key, value, bias, None)
    _, view = look(query, key, value, bias=bias)
    asked, run = [], lookup._scores_of
    monkeypatch.setattr(
        lookup, "_scores_of", lambda call, block: asked.append(len(block.row_index())) or run(call, block)
    )
    _near(view[1, 0, 3], weights[1, 0, 3])
    assert not asked  # an ordinary row
    for _ in range(2):
        _near(view[1, 0, 20, 7:9], weights[1, 0, 20, 7:9])
        _near(view[1, :, [20, 3]], weights[1, :, [20, 3]])
    assert asked == [1]


@pytest.mark.parametrize("made", [False, True])
def test_a_view_is_asked_in_inference_mode_and_outside(made):
    query, key, value, bias = _case(40, 401, LEAST)
    bias[1, :, 30] = LEAST
    _, weights = _textbook(query, key, value, bias, None)
    with torch.inference_mode(made):
        _, view = look(query, key, value, bias=bias)
    with torch.inference_mode():
        _near(view[1, 0, 20], weights[1, 0, 20])
    _near(view[1, 0, 30], weights[1, 0, 30])


def test_a_view_is_asked_inside_torch_func():
    query, key, value, bias = _case(40, 401, LEAST)
    _, weights = _textbook(query, key, value, bias, None)
    _, view = look(query, key, value, bias=bias)
    torch.func.grad(lambda factor: view[1, 0, 20].sum() * factor)(torch.tensor(1.0))
    _near(view[1, 0, 20], weights[1, 0, 20])
    _near(pickle.loads(pickle.dumps(view))[1, 0, 20], weights[1, 0, 20])
