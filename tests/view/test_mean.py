"""The mean over all heads in one pass of the C++ kernels, against float64, and its gradients."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.kernels import cases, random
from torch import nn

import limelight
from limelight import causal, look
from limelight.backends import extension, lookup
from limelight.layers import MultiHeadAttention

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")


@contextmanager
def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _true_mean(inputs, arguments):
    wide = {name: one.double() if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}
    return look(*(one.double() for one in inputs), backend="reference", **wide)[1].dense().mean(-3)


@given(
    case=cases() | cases(few=True),
    dtype=st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
    threads=st.sampled_from((1, 3)),
)
@settings(max_examples=60, deadline=None)
def test_of_generated_calls(case, dtype, threads):
    inputs, arguments = [one.to(dtype) for one in case[0]], dict(case[1])
    for name, one in arguments.items():
        arguments[name] = one.to(dtype) if isinstance(one, torch.Tensor) else one
    with _threads(threads):
        mean = look(*inputs, backend="native", **arguments)[1].mean()
        found = mean.dense()
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), _true_mean(inputs, arguments), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, mean.by_heads(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(1, 3, 613, 701), (5, 4, 30, 61), (2, 2, 1, 300), (1, 1, 97, 97)])
def test_units_blocks_and_threads(shape, threads):
    # Several units of queries, several blocks of keys, and parts that end within a sequence.
    n, heads, queries, keys = shape
    inputs = [random(seed, n, heads, size, 8).float() for seed, size in ((1, queries), (2, keys), (3, keys))]
    for mask in (None, causal(), limelight.window(150, 40)):
        with _threads(threads):
            view = look(*inputs, mask=mask)[1]
            found = view.mean().dense()
            assert torch.equal(found, view.mean().dense())
        with _threads(1):
            assert torch.equal(found, view.mean().dense())
        torch.testing.assert_close(found.double(), _true_mean(inputs, {"mask": mask}), rtol=1e-5, atol=1e-6)


def test_it_is_one_pass_and_of_all_heads_alone(monkeypatch):
    inputs = [random(seed, 2, 3, 4, 40, 8).float() for seed in (1, 2, 3)]
    view = look(*inputs)[1]
    whole, some = view.dense().mean(-3), view.dense()[..., [0, 2], :, :].mean(-3)
    torch.testing.assert_close(view.mean([0, 2]).dense(), some)
    monkeypatch.delattr(lookup, "gathered")
    torch.testing.assert_close(view.mean().dense(), whole)
    with pytest.raises(limelight.errors.DenseSizeError):
        view.mean().dense(limit=100)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_come_when_they_are_asked_for(grouped):
    sizes = ((1, (2, 4, 37, 8)), (2, (2, 2 if grouped else 4, 53, 8)), (3, (2, 2 if grouped else 4, 53, 8)))
    inputs = [random(seed, *shape).float().requires_grad_() for seed, shape in sizes]
    extra = {"bias": random(4, 4, 37, 53).float().requires_grad_(), "sink": random(5, 4).float().requires_grad_()}
    weight = random(6, 2, 37, 53)
    output, view = look(*inputs, mask=causal(), **extra)
    found = view.mean().dense()
    loss = (found * weight.float()).sum() + output.square().sum()
    grads = torch.autograd.grad(loss, [*inputs, *extra.values()])
    wide = [one.detach().double().requires_grad_() for one in (*inputs, *extra.values())]
    output, view = look(*wide[:3], bias=wide[3], sink=wide[4], mask=causal(), backend="reference")
    want = torch.autograd.grad((view.dense().mean(-3) * weight).sum() + output.square().sum(), wide)
    for one, other in zip(grads, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    assert not look(*inputs)[1].detach().mean().dense().requires_grad


def test_a_second_derivative_is_right_or_refused():
    inputs = [random(seed, 1, 2, 40, 8).float().requires_grad_() for seed in (1, 2, 3)]
    mean = look(*inputs)[1].mean().dense()
    (once,) = torch.autograd.grad(mean.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(limelight.errors.BackendError, match="first derivatives only"):
        once.sum().backward()


def test_nan_behind_the_mask_and_in_sight():
    inputs = [random(seed, 2, 2, size, 20).float() for seed, size in ((1, 30), (2, 37), (3, 37))]
    mask = limelight.lengths(torch.tensor([20, 0]))
    clean = look(*inputs, mask=mask)[1].mean().dense()
    assert (clean[1] == 0).all()
    inputs[1][0, :, 20:] = math.nan
    torch.testing.assert_close(look(*inputs, mask=mask)[1].mean().dense(), clean)
    inputs[1][0, 1, 3] = math.nan
    assert look(*inputs, mask=mask)[1].mean().dense()[0].isnan().any()


def test_the_layer_that_returns_weights(monkeypatch):
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    ours = MultiHeadAttention(32, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, weight = torch.randn(2, 300, 32), torch.randn(2, 300, 300)
    padding = torch.arange(300) >= torch.tensor([[300], [190]])
    grads = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        output, weights = layer(given, given, given, key_padding_mask=padding)
        (output.square().sum() + (weights * weight).sum()).backward()
        grads.append((weights.detach(), given.grad, layer.in_proj_weight.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}, {"batch_first": True}])
@pytest.mark.parametrize("masked", ["", "padding", "attention", "both", "added"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_come_with_the_output(monkeypatch, options, masked, dtype):
    torch.manual_seed(2)
    theirs = nn.MultiheadAttention(24, 3, dtype=torch.float64, **options)
    ours = MultiHeadAttention(24, 3, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())  # the same numbers
    query, key = torch.randn(41, 530, 24, dtype=dtype)[:, :1].transpose(0, 1), torch.randn(1, 530, 24, dtype=dtype)
    if not options.get("batch_first"):
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    hidden = torch.rand(41, 530) < 0.4
    masks = {}
    if masked in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(530).unsqueeze(0) >= 517
    if masked in ("attention", "both"):
        masks["attn_mask"] = hidden
    if masked == "added":
        masks["attn_mask"] = torch.zeros(41, 530, dtype=dtype).masked_fill(hidden, -torch.inf)
    wide = {name: one.double() if one.is_floating_point() else one for name, one in masks.items()}
    expected = theirs(query.double(), key.double(), key.double(), **wide)
    limit = 1e-5 if dtype is torch.float32 else 2e-2
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(limelight.layers.multihead, "look", None)  # no second pass
        found = ours(query, key, key, **masks)
    for one, want in zip(found, expected, strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one.double(), want, rtol=limit, atol=limit)
    torch.testing.assert_close(found[1], ours(query, key, key, **masks)[1], rtol=limit, atol=limit)


def test_weights_of_one_sequence_come_with_the_output_as_well():
    layer, x = MultiHeadAttention(24, 3), torch.randn(30, 24)
    tracked = layer(x, x, x)
    with torch.no_grad():
        for one, other in zip(layer(x, x, x), tracked, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)


def test_a_listener_hears_of_a_layer_that_returns_weights():
    layer, x = MultiHeadAttention(24, 3, batch_first=True), torch.randn(1, 30, 24)
    with limelight.watch(layer) as seen, torch.no_grad():
        _, weights = layer(x, x, x)
    torch.testing.assert_close(seen[""][0].mean().dense(), weights)
