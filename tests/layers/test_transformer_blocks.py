"""Norms, feed-forward networks, gates and whole blocks against their formulas or torch's own, in float64."""

import math

import pytest
import torch
from torch import nn

from limelight.errors import ArgumentError
from limelight.layers import (
    FeedForward,
    GroupedQueryAttention,
    Residual,
    RMSNorm,
    RotaryPositions,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from limelight.masks import causal, lengths

NEAR = {"rtol": 0.0, "atol": 1e-12}
C = 12


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(29)


def scrambled(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.double()


def test_rms_norm_by_hand():
    layer = RMSNorm(2, epsilon=0.0).double()
    # The mean of 9 and 16 is 12.5.
    found = layer(torch.tensor([3.0, 4.0]).double())
    torch.testing.assert_close(found, torch.tensor([3.0, 4.0]).double() / math.sqrt(12.5), **NEAR)


def test_rms_norm_is_torchs():
    layer, theirs = RMSNorm(C), nn.RMSNorm(C, eps=1e-6)
    theirs.load_state_dict(scrambled(layer).state_dict())
    x = torch.randn(3, 5, C).double().requires_grad_()
    torch.testing.assert_close(layer(x), theirs.double()(x), **NEAR)
    assert torch.autograd.gradcheck(layer, (x,))
    assert layer.float()(x.detach().bfloat16() * 1e20).isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_activations(activation):
    layer = scrambled(FeedForward(5, 7, activation=activation))
    x = torch.randn(3, 5).double()
    z = x @ layer.expand.weight.T + layer.expand.bias
    if activation == "swiglu":
        inner = z / (1 + (-z).exp()) * (x @ layer.gate.weight.T + layer.gate.bias)
    elif activation == "gelu":
        inner = z * (1 + torch.erf(z / math.sqrt(2))) / 2
    else:
        inner = z.clamp(min=0)
    torch.testing.assert_close(layer(x), inner @ layer.contract.weight.T + layer.contract.bias, **NEAR)
    assert ("gate.weight" in layer.state_dict()) == (activation == "swiglu")


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_residual_branch(place, norm):
    layer = scrambled(Residual(C, place, norm=norm))
    x = torch.randn(3, C).double()
    entered = layer.enter(x)
    found = layer.leave(x, entered.sin())
    expected = x + layer.norm(x).sin() if place == "pre" else layer.norm(x + x.sin())
    torch.testing.assert_close(found, expected, **NEAR)
    assert isinstance(layer.norm, RMSNorm) == (norm == "rms")


def test_an_encoder_layer_of_other_parts():
    layer = TransformerEncoderLayer(
        C,
        3,
        17,
        norm="rms",
        activation="swiglu",
        attention=lambda: GroupedQueryAttention(C, 3, key_value_heads=1, rotary=RotaryPositions(4), gated=True),
    )
    scrambled(layer)
    x = torch.randn(2, 5, C).double()
    h = layer.attention_residual.norm(x)
    y = x + layer.attention(h, *layer.attention.keys_values(h), causal())[0]
    expected = y + layer.feedforward(layer.feedforward_residual.norm(y))
    torch.testing.assert_close(layer(x, causal()), expected, **NEAR)


@pytest.mark.parametrize("place", ["pre", "post"])
@torch.no_grad()
def test_a_decoder_layer_steps_as_it_reads(place):
    layer = scrambled(
        TransformerDecoderLayer(
            C,
            3,
            17,
            place=place,
            activation="gelu",
            attention=lambda: GroupedQueryAttention(C, 3, rotary=RotaryPositions(4), qk_norm=3.0),
        )
    )
    x, memory = torch.randn(2, 5, C).double(), torch.randn(2, 7, C).double()
    key, value = layer.cross_attention.keys_values(memory)
    mask = lengths(torch.tensor([7, 3]))
    whole, weights = layer(x, key, value, mask, observe=True)
    past = None
    for t in range(5):
        step, now, past = layer.step(x[:, t : t + 1], past, key, value, mask, observe=True)
        torch.testing.assert_close(step[:, 0], whole[:, t], rtol=0, atol=1e-6)
        torch.testing.assert_close(now[:, 0], weights[:, t], rtol=0, atol=1e-6)


def test_gated_output():
    layer = scrambled(GroupedQueryAttention(C, 3, gated=True))
    plain = GroupedQueryAttention(C, 3).double()
    plain.load_state_dict({name: one for name, one in layer.state_dict().items() if not name.startswith("gate")})
    with torch.no_grad():
        plain.output.weight.copy_(torch.eye(C))
        plain.output.bias.zero_()
    x, memory = torch.randn(2, 5, C).double(), torch.randn(2, 7, C).double()
    heads, _ = plain(x, *plain.keys_values(memory))
    found, _ = layer(x, *layer.keys_values(memory))
    gate = 1 / (1 + (-(x @ layer.gate.weight.T + layer.gate.bias)).exp())
    torch.testing.assert_close(found, (heads * gate) @ layer.output.weight.T + layer.output.bias, **NEAR)


def test_qk_norm():
    layer = GroupedQueryAttention(C, 3, qk_norm=7.0).double()
    assert layer.scale.tolist() == [7.0, 7.0, 7.0]
    scrambled(layer)
    x, memory = torch.randn(2, 5, C).double(), torch.randn(2, 7, C).double()
    query, (key, value) = layer.queries(x), layer.keys_values(memory)
    cosines = nn.functional.normalize(query, dim=-1) @ nn.functional.normalize(key, dim=-1).mT
    weights = (cosines * layer.scale[:, None, None]).softmax(-1)
    found, seen = layer(x, key, value, observe=True)
    torch.testing.assert_close(found, layer.output((weights @ value).transpose(1, 2).flatten(-2)), **NEAR)
    torch.testing.assert_close(seen, weights.mean(1), **NEAR)
    found.sum().backward()
    assert layer.scale.grad.abs().min() > 0


def test_mistakes():
    with pytest.raises(ArgumentError, match="activation: must be 'relu', 'gelu' or 'swiglu', got 'tanh'"):
        FeedForward(5, 7, activation="tanh")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="the norm must be 'pre' or 'post', got 'mid'"):
        Residual(5, "mid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="norm: must be 'layer' or 'rms', got 'batch'"):
        Residual(5, "pre", norm="batch")  # pyright: ignore[reportArgumentType]
