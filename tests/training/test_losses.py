import pytest
import torch
from tests.support.allocations import Largest
from torch.nn import functional

from limelight.training import losses, output_loss

N, C, V = 31, 7, 17
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])


def case(dtype=torch.float64, n=N):
    torch.manual_seed(59)
    features, weight, bias = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((n, C), (V, C), (V,)))
    return features, weight, bias, torch.randint(V, (n,))


def plain(features, weight, bias, target, smoothing):
    logits = features @ weight.T + bias
    return functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")


def chunks_of(monkeypatch, rows):
    monkeypatch.setattr(losses, "_CHUNK_BYTES", rows * 4 * V)


@SMOOTHINGS
# One block, blocks that leave one row over, blocks of one row, and less than a row's bytes.
@pytest.mark.parametrize("rows", [N, 100, 6, 5, 1, 0])
def test_loss_and_gradients_are_those_of_cross_entropy(monkeypatch, smoothing, rows):
    chunks_of(monkeypatch, rows)
    *inputs, target = case()
    expected = plain(*inputs, target, smoothing)
    expected_grads = torch.autograd.grad(3.0 * expected, inputs)
    loss, likelihood = output_loss(*inputs, target, label_smoothing=smoothing)
    near = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected, **near)
    torch.testing.assert_close(likelihood, plain(*inputs, target, 0.0).detach(), **near)
    for found, wanted in zip(torch.autograd.grad(3.0 * loss, inputs), expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, **near)


def test_a_loss_by_hand():
    # Logits 0, log 2, log 5 give probabilities 1/8, 2/8, 5/8.
    weight, bias = torch.zeros(3, 1), torch.tensor([1.0, 2.0, 5.0]).log()
    loss, likelihood = output_loss(torch.ones(1, 1), weight, bias, torch.tensor([2]), label_smoothing=0.3)
    each = -torch.tensor([1 / 8, 2 / 8, 5 / 8]).log()
    assert likelihood.item() == pytest.approx(each[2].item())
    assert loss.item() == pytest.approx((0.7 * each[2] + 0.1 * each.sum()).item())


@SMOOTHINGS
def test_bfloat16_features_are_right_to_bfloat16(monkeypatch, smoothing):
    chunks_of(monkeypatch, 6)
    features, weight, bias, target = case(torch.float32, n=211)
    narrow = features.detach().bfloat16().requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (narrow, weight, bias)]
    expected = plain(*exact, target, smoothing)
    expected_grads = torch.autograd.grad(expected, exact)
    loss, likelihood = output_loss(narrow, weight, bias, target, label_smoothing=smoothing)
    assert loss.dtype is likelihood.dtype is torch.float32
    # Logits up to about 8 are rounded by at most 2^-8 of that; so is each row's loss.
    assert abs(loss.item() - expected.item()) < 211 * 8 * 2**-8
    grads = torch.autograd.grad(loss, (narrow, weight, bias))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32, torch.float32]
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert (found.double() - wanted).norm() < 0.03 * wanted.norm()


def test_all_logits_are_never_held(monkeypatch):
    chunks_of(monkeypatch, 5)
    *inputs, target = case(torch.float32, n=1009)
    with Largest() as largest:
        loss, _ = output_loss(*inputs, target, label_smoothing=0.1)
        loss.backward()
    # The largest are the features and their gradient, [1009, 7]; the logits would be [1009, 17].
    assert largest.numel == 1009 * C
    with Largest() as largest:
        plain(*inputs, target, 0.1)
    assert largest.numel == 1009 * V


def test_the_likelihood_has_no_gradient_and_no_tokens_have_no_loss():
    *inputs, target = case()
    loss, likelihood = output_loss(*inputs, target)
    assert loss.requires_grad
    assert not likelihood.requires_grad
    nothing, _ = output_loss(inputs[0][:0], *inputs[1:], target[:0], label_smoothing=0.1)
    assert nothing.item() == 0.0


def test_large_logits_do_not_overflow():
    features, target = torch.full((1, 1), 1e4), torch.tensor([1])
    loss, _ = output_loss(features, torch.tensor([[1.0], [0.0]]), torch.zeros(2), target)
    assert loss.item() == 1e4
