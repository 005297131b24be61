import math

import pytest
import torch
from torch import nn

from limelight.errors import ArgumentError
from limelight.layers import BahdanauAttention, FeedForward, GroupedQueryAttention, LuongAttention
from limelight.layers.grouped import append_cache
from limelight.masks import causal, lengths

B, T, S, Q, M, A = 3, 5, 7, 11, 13, 17
COUNTS = torch.tensor([7, 2, 5])
NEAR = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(19)


def weights_by_hand(score):
    """softmax over the real keys of score(b, t, s), written as loops."""
    weights = torch.zeros(B, T, S, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            row = torch.stack([score(b, t, s) for s in range(COUNTS[b])])
            weights[b, t, : COUNTS[b]] = (row - row.max()).exp() / (row - row.max()).exp().sum()
    return weights


def check(layer, state, memory, score):
    keys = layer.keys(memory)
    context, weights = layer(state, keys, memory, lengths(COUNTS), observe=True)
    expected = weights_by_hand(score)
    torch.testing.assert_close(weights, expected, **NEAR)
    torch.testing.assert_close(context, torch.einsum("bts,bsm->btm", expected, memory), **NEAR)
    unseen, none = layer(state, keys, memory, lengths(COUNTS))
    assert none is None
    torch.testing.assert_close(unseen, context, **NEAR)


def inputs(query_width=Q):
    return torch.randn(B, T, query_width).double(), torch.randn(B, S, M).double()


def test_bahdanau_is_its_formula():
    layer = BahdanauAttention(Q, M, A).double()
    state, memory = inputs()
    w, u, bias, v = (
        layer.query_projection.weight,
        layer.memory_projection.weight,
        layer.memory_projection.bias,
        layer.vector,
    )
    assert (w.shape, u.shape, v.shape) == ((A, Q), (A, M), (A,))
    check(layer, state, memory, lambda b, t, s: v @ torch.tanh(w @ state[b, t] + u @ memory[b, s] + bias))


def test_luong_dot_has_no_scale():
    state, memory = inputs(query_width=M)
    check(LuongAttention("dot", M, M).double(), state, memory, lambda b, t, s: state[b, t] @ memory[b, s])


def test_luong_general_is_its_formula():
    layer = LuongAttention("general", Q, M).double()
    state, memory = inputs()
    w = layer.memory_projection.weight
    assert w.shape == (Q, M)
    check(layer, state, memory, lambda b, t, s: state[b, t] @ (w @ memory[b, s]))


def test_luong_concat_is_one_matrix_on_both_side_by_side():
    layer = LuongAttention("concat", Q, M).double()
    state, memory = inputs()
    w = torch.cat([layer.query_projection.weight, layer.memory_projection.weight], 1)
    assert w.shape == (Q, Q + M)
    bias, v = layer.memory_projection.bias, layer.vector
    check(layer, state, memory, lambda b, t, s: v @ torch.tanh(w @ torch.cat([state[b, t], memory[b, s]]) + bias))


def test_mistakes_in_luong_attention():
    with pytest.raises(
        ArgumentError, match="'dot' needs queries and memory of one width, got 11 and 13; take 'general'"
    ):
        LuongAttention("dot", Q, M)
    with pytest.raises(ArgumentError, match="must be 'dot', 'general' or 'concat', got 'cosine'"):
        LuongAttention("cosine", Q, M)  # pyright: ignore[reportArgumentType]


def ours_and_torchs(heads=3, width=33):
    ours = GroupedQueryAttention(width, heads).double()
    torchs = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter))
        torchs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        torchs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        torchs.out_proj.weight.copy_(ours.output.weight)
        torchs.out_proj.bias.copy_(ours.output.bias)
    return ours, torchs


def test_multi_head_attention_is_torchs():
    ours, torchs = ours_and_torchs()
    x, memory = torch.randn(B, T, 33).double(), torch.randn(B, S, 33).double()
    padding = torch.arange(S) >= COUNTS[:, None]
    expected, expected_weights = torchs(x, memory, memory, key_padding_mask=padding)
    found, weights = ours(x, *ours.keys_values(memory), lengths(COUNTS), observe=True)
    torch.testing.assert_close(found, expected, **NEAR)
    torch.testing.assert_close(weights, expected_weights, **NEAR)
    assert ours(x, *ours.keys_values(memory), lengths(COUNTS))[1] is None


def test_causal_multi_head_attention_is_torchs():
    ours, torchs = ours_and_torchs()
    x = torch.randn(B, T, 33).double()
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected, _ = torchs(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(ours(x, *ours.keys_values(x), causal())[0], expected, **NEAR)


def test_multi_head_attention_takes_any_leading_axes():
    ours, _ = ours_and_torchs()
    x = torch.randn(2, B, T, 33).double()
    keys, values = ours.keys_values(x)
    assert keys.shape == values.shape == (2, B, 3, T, 11)
    found, weights = ours(x, keys, values, observe=True)
    assert (found.shape, weights.shape) == ((2, B, T, 33), (2, B, T, T))
    torch.testing.assert_close(found[1, 2], ours(x[1, 2:3], *ours.keys_values(x[1, 2:3]))[0][0], **NEAR)


def test_a_cache_grows_at_its_end():
    ours, _ = ours_and_torchs()
    x = torch.randn(B, T, 33).double()
    past = None
    for t in range(T):
        past = append_cache(past, *ours.keys_values(x[:, t : t + 1]))
    for found, expected in zip(past, ours.keys_values(x), strict=True):
        torch.testing.assert_close(found, expected, **NEAR)


def test_weights_are_dropped_in_training_only():
    ours = GroupedQueryAttention(33, 3, dropout=0.5)
    x = torch.randn(B, T, 33)
    first, second = (ours.train()(x, *ours.keys_values(x))[0] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (ours.eval()(x, *ours.keys_values(x))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_each_projection_starts_as_glorot_says():
    ours = GroupedQueryAttention(60, 3)
    # Uniform in ±sqrt(6 / (in + out)), as if query, key and value stood apart.
    bound = math.sqrt(6 / 120)
    for weight in (ours.query.weight, *ours.key_value.weight.chunk(2), ours.output.weight):
        assert 0.95 * bound < weight.abs().max() <= bound


def test_heads_must_divide_the_width():
    with pytest.raises(ArgumentError, match="heads: must divide the width 33, got 5"):
        GroupedQueryAttention(33, 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_queries_share_the_heads_of_their_group(groups):
    shared, full = GroupedQueryAttention(36, 4, key_value_heads=groups), GroupedQueryAttention(36, 4)
    full.load_state_dict(
        shared.state_dict() | {"key_value.weight": torch.empty(72, 36), "key_value.bias": torch.empty(72)}
    )
    with torch.no_grad():  # every head of a group gets the group's own projection
        for ours, theirs in zip(full.key_value.parameters(), shared.key_value.parameters(), strict=True):
            grouped = theirs.unflatten(0, (2, groups, 9)).repeat_interleave(4 // groups, 1)
            ours.copy_(grouped.flatten(0, 2))
    x = torch.randn(B, T, 36)
    found, expected = shared(x, *shared.keys_values(x), causal()), full(x, *full.keys_values(x), causal())
    torch.testing.assert_close(found[0], expected[0])


def test_key_value_heads_must_divide_the_heads():
    with pytest.raises(ArgumentError, match="key_value_heads: must divide the 4 heads, got 3"):
        GroupedQueryAttention(36, 4, key_value_heads=3)


def test_feed_forward_is_its_formula():
    layer = FeedForward(5, 7, dropout=0.5).double().eval()
    x = torch.randn(2, 3, 5).double()
    inner = x @ layer.expand.weight.T + layer.expand.bias
    inner[inner < 0] = 0
    torch.testing.assert_close(layer(x), inner @ layer.contract.weight.T + layer.contract.bias, **NEAR)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
