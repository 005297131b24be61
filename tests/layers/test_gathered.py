import pytest
import torch
from torch.nn import functional as F

from limelight.layers.gathered import GatheredLinear

NEAR = {"rtol": 1e-12, "atol": 1e-12}


def recurrence(linear, x, inputs):
    """h_t = tanh(W h_{t-1} + b + x_t); the sum of all states."""
    total = 0
    for each in inputs.unbind(0):
        x = (linear(x) + each).tanh()
        total = total + x.sum()
    return total


def case(bias=True):
    torch.manual_seed(3)
    weight = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, dtype=torch.float64, requires_grad=True) if bias else None
    x, inputs = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 7, 5, dtype=torch.float64)
    return weight, b, x, inputs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [4, 1])
def test_gradients_are_those_of_a_linear_map_at_each_step(bias, steps):
    weight, b, x, inputs = case(bias)
    wanted = [weight, x] + ([b] if bias else [])
    expected = recurrence(lambda x: F.linear(x, weight, b), x, inputs[:steps])
    expected_grads = torch.autograd.grad(expected, wanted)
    found = recurrence(GatheredLinear(weight, b), x, inputs[:steps])
    torch.testing.assert_close(found, expected, **NEAR)
    for one, other in zip(torch.autograd.grad(found, wanted), expected_grads, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_backward_twice_gives_the_same_and_not_the_sum():
    weight, b, x, inputs = case()
    total = recurrence(GatheredLinear(weight, b), x, inputs)
    first = torch.autograd.grad(total, (weight, b), retain_graph=True)
    torch.autograd.grad(total, x, retain_graph=True)  # not asked for the weight's
    for one, other in zip(torch.autograd.grad(total, (weight, b)), first, strict=True):
        assert torch.equal(one, other)


def test_one_product_makes_the_weights_gradient():
    weight, b, x, inputs = case()
    total = recurrence(GatheredLinear(weight, b), x, inputs)
    with torch.profiler.profile(record_shapes=True) as seen:
        torch.autograd.grad(total, weight)
    shapes = [event.input_shapes for event in seen.events() if event.name == "aten::mm"]
    assert [[5, 28], [28, 5]] in shapes
    assert [[5, 7], [7, 5]] not in shapes  # none for a single step


def test_steps_that_the_loss_does_not_need_give_nothing():
    weight, _, x, inputs = case(bias=False)
    linear = GatheredLinear(weight)
    needed, _unneeded = linear(x), linear(inputs[0])
    (grad,) = torch.autograd.grad(needed.sum(), weight)
    torch.testing.assert_close(grad, torch.ones(5, 7).double() @ x, **NEAR)


def test_a_weight_that_nothing_is_asked_of():
    weight, b, x, inputs = case()
    linear = GatheredLinear(weight.detach(), b.detach())
    (grad,) = torch.autograd.grad(recurrence(linear, x, inputs), x)
    assert grad.isfinite().all()
    with torch.no_grad():
        assert not GatheredLinear(weight, b)(x).requires_grad


def test_autocast_and_torch_func_take_the_plain_map():
    weight, b, x, inputs = (t.detach().float() for t in case())
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recurrence(GatheredLinear(weight, b), x, inputs).backward()
    assert weight.grad is not None

    def total(weight):
        return recurrence(GatheredLinear(weight, b), x, inputs)

    expected = torch.autograd.grad(recurrence(lambda x: F.linear(x, weight, b), x, inputs), weight)[0]
    torch.testing.assert_close(torch.func.grad(total)(weight.detach()), expected)
