"""What is particular to views of other normalizers; the rest is in tests/view, which draws all of them."""

from __future__ import annotations

import math

import pytest
import torch
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.normalizers import COMPETING, NORMALIZERS
from torch import nn

import limelight
from limelight.errors import ArgumentError, ViewFileError
from limelight.view import AttentionView


def _view(normalizer, **options):
    query, key, value = (one.detach() for one in tensors(Sizes(T=11, S=13), dtype=torch.float32))
    return limelight.look(2.0 * query, key, value, normalizer=normalizer, **options)[1]


@pytest.mark.parametrize("name", NORMALIZERS)
def test_only_softmax_has_an_lse(name):
    view = _view(NORMALIZERS[name][0])
    with pytest.raises(ArgumentError, match=r"view\.lse is the log of softmax's sum.*view\.threshold"):
        _ = view.lse
    assert view.threshold.shape == (2, 3, 11)
    plain = _view(None)
    assert torch.equal(plain.lse, plain.threshold)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("budget", [40, 1 << 21])
def test_a_key_that_gets_nothing_is_no_link(name, budget):
    with blocks_of(budget):
        view = _view(NORMALIZERS[name][0], mask=limelight.causal(), observe=("entropy", "received"))
        weights = view.dense()
        links = view.top(13)
        count = (weights > 0).sum(-1)
        assert (count < torch.arange(3, 14)).any()
        assert torch.equal((links.indices >= 0).sum(-1), count)
        assert torch.equal(links.indices < 0, links.weights == 0)
        pairs = [(0, 1, 5, j) for j in range(13)]
        logs = view.log_prob(pairs)
        assert torch.equal(logs == -math.inf, weights[0, 1, 5] == 0)
        torch.testing.assert_close(logs.exp(), weights[0, 1, 5])
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        torch.testing.assert_close(view.entropy(), entropy)
        torch.testing.assert_close(view.received(), weights.sum(-2))
    assert (weights.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["reference", "streaming"])
@pytest.mark.parametrize("name", COMPETING)
def test_thresholds_are_kept_so_exactly_that_long_rows_sum_to_one(name, backend):
    # 4,099 keys in the support of scores around 20, where numbers of float32 lie 2e-6 apart: a threshold rounded to
    # one of them would be taken off each key.
    maker = torch.Generator().manual_seed(2)
    row = 20.0 + 1e-4 * torch.rand(1, 1, 3, 4099, generator=maker)
    query, key = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 4099, 1)
    value = torch.ones(1, 1, 4099, 1, requires_grad=True)
    options = {"bias": row, "normalizer": NORMALIZERS[name][0], "backend": backend}
    output, view = limelight.look(query, key, value, **options)
    exact = limelight.look(*(one.detach().double() for one in (query, key, value)), **options)[1].dense()
    ones = torch.ones(3).double()
    for weights in (view.dense(), view[0, 0].unsqueeze(0).unsqueeze(0)):
        assert weights.dtype is torch.float32
        torch.testing.assert_close(weights.double().sum(-1)[0, 0], ones, rtol=0, atol=2e-5)
        torch.testing.assert_close(weights.double(), exact, rtol=0, atol=1e-8)
    received = exact.sum(-2)[0, 0]
    for answer in (view.received(), ones.float() @ view):
        torch.testing.assert_close(answer[0, 0].double(), received, rtol=0, atol=3e-8)
    pairs = [(0, 0, i, j) for i in range(3) for j in range(100)]
    logs = view.log_prob(pairs).double()
    torch.testing.assert_close(logs.exp(), exact[0, 0, :, :100].flatten(), rtol=1e-3, atol=1e-8)
    answers = (view.threshold, view.entropy(), view.distance(), view.map(2, 2), view.top(2).weights)
    assert {one.dtype for one in answers} == {torch.float32}
    (slope,) = torch.autograd.grad(output.sum(), value)
    torch.testing.assert_close(slope[0, 0, :, 0].double(), received, rtol=0, atol=3e-8)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_log_weights_of_pairs_without_a_link_reach_no_gradient(name):
    query, key, value = (leaf.float() for leaf in tensors(Sizes()))
    query, key = (3 * query.detach()).requires_grad_(), key.detach().requires_grad_()
    _, view = limelight.look(query, key, value, normalizer=NORMALIZERS[name][0], mask=limelight.causal())
    logs = view.log_prob([(0, 1, 3, j) for j in range(7)])
    finite = logs > -math.inf
    assert finite.any()
    assert not finite.all()
    for gradient in torch.autograd.grad(logs.where(finite, 0.0).sum(), (query, key)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_sigmoid_weights_so_small_that_they_round_to_0_have_a_log():
    query, key = torch.ones(1, 1, 1), torch.tensor([[[-200.0], [0.0]]])
    _, view = limelight.look(query, key, key, normalizer=limelight.sigmoid(0.0))
    assert view[0, 0, 0] == 0.0
    torch.testing.assert_close(view.log_prob([(0, 0, 0), (0, 0, 1)]), torch.tensor([-200.0, -math.log(2)]))


@pytest.mark.parametrize("normalizer", [limelight.sigmoid(-1.25), *(one for one, _ in NORMALIZERS.values())])
def test_a_saved_view_keeps_its_normalizer(normalizer, tmp_path):
    view = _view(normalizer)
    view.save(tmp_path / "one")
    again = AttentionView.open(tmp_path / "one", verify=True)
    assert torch.equal(again.dense(), view.dense())
    assert torch.equal(again.threshold, view.threshold)
    for copy in (view.copy(), view.detach()):
        assert torch.equal(copy.dense(), view.dense())


def test_files_without_a_normalizer_are_of_softmax_and_wrong_ones_are_told(tmp_path):
    from tests.view.test_storage import _resealed

    path = tmp_path / "one"
    _view(None).save(path)
    dense = AttentionView.open(path).dense()
    _resealed(path, lambda facts, parts: facts.pop("normalizer"))
    assert torch.equal(AttentionView.open(path).dense(), dense)
    _view(None, sink=torch.zeros(3)).save(path)
    for wrong in ({"kind": "other"}, {"kind": "sigmoid", "bias": "x"}, {"kind": "sigmoid"}):
        _resealed(path, lambda facts, parts, wrong=wrong: facts.update(normalizer=wrong))
        with pytest.raises(ViewFileError, match="its parts do not fit one another"):
            AttentionView.open(path)


def test_a_foreign_normalizer_cannot_be_saved(tmp_path):
    class Mine(type(limelight.sparsemax())):
        pass

    with pytest.raises(ArgumentError, match=r"the normalizer Mine cannot be written.*limelight.normalizers can"):
        _view(Mine()).save(tmp_path / "one")


class _Layer(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return limelight.attend(x, x, x, normalizer=limelight.sparsemax(), **self.options)


@pytest.mark.parametrize("options", [{}, {"backend": "streaming"}])
def test_watched_calls_keep_their_normalizer(options):
    x = 2 * torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(_Layer(**options))
    with limelight.watch(model) as seen:
        output = model(x)
    weights = seen["0"][0].dense()
    assert (weights == 0).any()
    torch.testing.assert_close(weights @ x, output)


def test_arrays_and_explanations_take_it_too():
    x = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    options = {"normalizer": limelight.entmax15()}
    output, view = limelight.look(x.numpy(), x.numpy(), x.numpy(), **options)
    torch.testing.assert_close(torch.from_numpy(output), limelight.attend(x, x, x, **options))
    assert (limelight.attend(x.numpy(), x.numpy(), x.numpy(), **options) == output).all()
    torch.testing.assert_close(view @ x, torch.from_numpy(output))
