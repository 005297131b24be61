"""Layers and `steps` with other normalizers: their weights are those of each row's scores, worked out one by one."""

from __future__ import annotations

import pytest
import torch
from tests.support.inputs import Sizes, tensors
from tests.support.normalizers import COMPETING, NORMALIZERS

import limelight
from limelight.errors import ArgumentError
from limelight.layers import (
    BahdanauAttention,
    CoverageAttention,
    GroupedQueryAttention,
    LocalMonotonicAttention,
    LocalPredictiveAttention,
    LocationAttention,
    LuongAttention,
    TransformerDecoderLayer,
)
from limelight.masks import lengths

B, T, S, Q, M, A = 2, 5, 7, 11, 11, 13
COUNTS = torch.tensor([7, 4])
NEAR = {"rtol": 0.0, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(31)


def _rows(name, scores):
    """The weights of rows of scores [..., S], -inf where forbidden."""
    weights = torch.zeros_like(scores)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in scores.shape[:-1])):
        row = scores[tuple(place)]
        allowed = row > -torch.inf
        weights[tuple(place)][allowed] = NORMALIZERS[name][1](row[allowed])[0]
    return weights


@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_steps_of_a_normalizer(name):
    query, key, value = tensors(Sizes())
    options = {"mask": limelight.causal(), "bias": limelight.alibi(), "normalizer": NORMALIZERS[name][0]}
    if name in COMPETING:
        options["sink"] = torch.full((3,), -40.0).double()
    found = limelight.steps(query, key, value, **options)
    torch.testing.assert_close(found.weights, _rows(name, found.masked.detach()), **NEAR)
    torch.testing.assert_close(found.output, found.weights @ value, **NEAR)
    torch.testing.assert_close(found.output, limelight.attend(query, key, value, **options), **NEAR)
    assert (found.weights.sum(-1) - 1).abs().max() < 1e-11 or name == "sigmoid"
    found.weights.square().sum().backward()
    assert key.grad.abs().sum() > 0


def _memory_attentions(normalizer):
    options = {"normalizer": normalizer}
    return {
        "bahdanau": BahdanauAttention(Q, M, A, **options),
        "dot": LuongAttention("dot", Q, M, **options),
        "general": LuongAttention("general", Q, M, **options),
        "concat": LuongAttention("concat", Q, M, **options),
        "location": LocationAttention(Q, 31, **options),
    }


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("kind", _memory_attentions(None))
def test_attention_over_a_memory(kind, name):
    layer = _memory_attentions(NORMALIZERS[name][0])[kind].double()
    state, memory = 2 * torch.randn(B, T, Q).double(), torch.randn(B, S, M).double().requires_grad_()
    keys, mask = layer.keys(memory), lengths(COUNTS)
    parts = (one.unsqueeze(1) for one in (layer.queries(state), keys, memory))
    expected = _rows(name, limelight.steps(*parts, score=layer.score(), mask=mask).masked.detach())[:, 0]
    context, weights = layer(state, keys, memory, mask, observe=True)
    torch.testing.assert_close(weights, expected, **NEAR)
    torch.testing.assert_close(context, expected @ memory, **NEAR)
    torch.testing.assert_close(layer(state, keys, memory, mask)[0], context, **NEAR)
    links = torch.tensor([[0, 3, 6], [1, 2, 3], [1, 4, 0]])
    torch.testing.assert_close(layer.log_weights(state, keys, links, mask).exp(), expected[tuple(links.T)], **NEAR)
    local = LocalMonotonicAttention(layer, 1)
    _, weights = local(state, keys, memory, COUNTS, observe=True)
    assert not weights[:, 0, 2:].any()
    assert name == "sigmoid" or (weights.sum(-1) - 1).abs().max() < 1e-11


@pytest.mark.parametrize("name", NORMALIZERS)
def test_coverage(name):
    layer = CoverageAttention(Q, M, A, normalizer=NORMALIZERS[name][0]).double()
    state, memory, covered = torch.randn(B, 3, Q).double(), torch.randn(B, S, M).double(), torch.rand(B, 3, S).double()
    keys = layer.keys(memory)
    inner = layer.query_projection(state)[:, :, None] + keys[:, None] + layer.coverage_projection(covered[..., None])
    scores = inner.tanh() @ layer.vector
    scores = scores.masked_fill(torch.arange(S) >= COUNTS[:, None, None], -torch.inf)
    context, weights, after = layer(state, keys, memory, lengths(COUNTS), covered)
    torch.testing.assert_close(weights, _rows(name, scores.detach()), **NEAR)
    torch.testing.assert_close(context, weights @ memory, **NEAR)
    torch.testing.assert_close(after, covered + weights, **NEAR)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_heads(name):
    layer = GroupedQueryAttention(12, 4, key_value_heads=2, normalizer=NORMALIZERS[name][0]).double()
    x, memory = 3 * torch.randn(B, T, 12).double(), 3 * torch.randn(B, S, 12).double()
    key, value = layer.keys_values(memory)
    scores = layer.queries(x) @ key.repeat_interleave(2, 1).mT / 3**0.5
    scores = scores.masked_fill(torch.arange(S) >= COUNTS[:, None, None, None], -torch.inf)
    weights = _rows(name, scores.detach())
    heads = weights @ value.repeat_interleave(2, 1)
    found, seen = layer(x, key, value, lengths(COUNTS), observe=True)
    torch.testing.assert_close(found, layer.output(heads.transpose(1, 2).flatten(-2)), **NEAR)
    torch.testing.assert_close(seen, weights.mean(1), **NEAR)
    torch.testing.assert_close(layer(x, key, value, lengths(COUNTS))[0], found, **NEAR)
    links = torch.tensor([[0, 3, 6], [1, 2, 3]])
    for head, expected in ((None, weights.mean(1)), (3, weights[:, 3])):
        logs = layer.log_weights(x, key, links, lengths(COUNTS), head=head)
        torch.testing.assert_close(logs.exp(), expected[tuple(links.T)], **NEAR)


@torch.no_grad()
def test_a_decoder_layer_looks_at_few_source_words_only():
    layer = TransformerDecoderLayer(
        12,
        4,
        17,
        cross_attention=lambda: GroupedQueryAttention(12, 4, key_value_heads=1, normalizer=limelight.sparsemax()),
    ).double()
    assert layer.self_attention.normalizer is None
    x, memory = torch.randn(B, T, 12).double(), 9 * torch.randn(B, S, 12).double()
    whole, weights = layer(x, *layer.cross_attention.keys_values(memory), observe=True, head=1)
    assert (weights == 0).any(-1).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T).double(), **NEAR)
    past = None
    for t in range(T):
        step, _, past = layer.step(x[:, t : t + 1], past, *layer.cross_attention.keys_values(memory))
        torch.testing.assert_close(step[:, 0], whole[:, t], **NEAR)


def test_a_gaussian_is_joined_to_a_softmax_only():
    with pytest.raises(ArgumentError, match=r"its normalizer must be softmax\(\).*got sparsemax; LocalMonotonic"):
        LocalPredictiveAttention(LuongAttention("dot", Q, M, normalizer=limelight.sparsemax()), Q)
    LocalPredictiveAttention(LuongAttention("dot", Q, M, normalizer=limelight.softmax()), Q)


def test_what_is_no_normalizer_is_told_at_the_first_call():
    layer = GroupedQueryAttention(12, 4, normalizer="sparsemax")  # type: ignore[arg-type]
    x = torch.randn(B, T, 12)
    with pytest.raises(ArgumentError, match=r"normalizer must be one of limelight\.normalizers.*it is 'sparsemax'"):
        layer(x, *layer.keys_values(x))
