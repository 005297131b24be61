"""Shaw's relative positions against equations 3 and 4, with a vector for every pair, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.inputs import Sizes, blocks_of
from tests.support.masks import mask_cases

from limelight.errors import ArgumentError
from limelight.layers import ShawAttention, relative_attention
from limelight.masks import causal, lengths

NEAR = {"rtol": 0.0, "atol": 1e-11}


def by_the_paper(query, key, value, key_table, value_table, allowed):
    queries, keys = query.shape[-2], key.shape[-2]
    reach = key_table.shape[-2] // 2
    shared = query.shape[-3] // key.shape[-3]
    key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    distance = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
    row = distance.clamp(-reach, reach) + reach
    scores = (query.unsqueeze(-2) * (key.unsqueeze(-3) + key_table[..., row, :])).sum(-1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    values = value.unsqueeze(-3) + (0 if value_table is None else value_table[..., row, :])
    return (weights.unsqueeze(-1) * values).sum(-2), weights


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_it_is_the_paper(data):
    groups = data.draw(st.sampled_from((1, 2)))
    sizes = Sizes(
        lead=data.draw(st.sampled_from(((), (2,), (2, 3)))),
        H=groups * data.draw(st.sampled_from((1, 2))),
        G=groups,
        T=data.draw(st.sampled_from((1, 2, 5, 11))),
        S=data.draw(st.sampled_from((1, 3, 7, 11))),
        D=3,
        E=5,
    )
    reach = data.draw(st.sampled_from((1, 2, 5, 13)))
    mask = data.draw(st.none() | mask_cases(sizes, 1))
    maker = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def leaf(*shape):
        return torch.randn(*shape, generator=maker, dtype=torch.float64).requires_grad_()

    front = (sizes.H,) if data.draw(st.booleans()) else ()
    leaves = [
        leaf(*sizes.lead, sizes.H, sizes.T, sizes.D),
        leaf(*sizes.lead, sizes.G, sizes.S, sizes.D),
        leaf(*sizes.lead, sizes.G, sizes.S, sizes.E),
        leaf(*front, 2 * reach + 1, sizes.D),
    ]
    if data.draw(st.booleans()):
        leaves.append(leaf(*front, 2 * reach + 1, sizes.E))
    allowed = torch.ones(sizes.full, dtype=torch.bool) if mask is None else mask.truth
    expected = by_the_paper(*leaves, *(() if len(leaves) == 5 else (None,)), allowed)
    found = relative_attention(*leaves, mask=None if mask is None else mask.mask, observe=True)
    torch.testing.assert_close(found, expected, **NEAR)
    rows = torch.randn(expected[0].shape, generator=maker, dtype=torch.float64)
    slopes = [torch.autograd.grad((one[0] * rows).sum(), leaves, allow_unused=True) for one in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(torch.zeros(()) if one is None else one, other, **NEAR)


def test_memory_is_linear():
    length, width, reach = 1500, 8, 4
    query, key, value = (torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3))
    table = torch.randn(2 * reach + 1, width, requires_grad=True)
    with blocks_of(1 << 15), Largest() as largest:
        relative_attention(query, key, value, table, table)[0].sum().backward()
    # A few blocks at most, where the matrix would have more than two million numbers.
    assert largest.numel <= 1 << 18


@torch.no_grad()
def test_the_layer():
    torch.manual_seed(5)
    layer = ShawAttention(12, 3, reach=2, key_value_heads=1).double()
    x = torch.randn(2, 11, 12).double()
    counts = torch.tensor([11, 7])
    found, weights = layer(x, causal() & lengths(counts), observe=True)
    key, value = layer.projections.keys_values(x)
    allowed = (torch.ones(11, 11).tril().bool() & (torch.arange(11) < counts[:, None, None]))[:, None].expand(
        2, 3, 11, 11
    )
    heads, expected = by_the_paper(
        layer.projections.queries(x), key, value, layer.key_table, layer.value_table, allowed
    )
    torch.testing.assert_close(found, layer.projections.output(heads.transpose(1, 2).flatten(-2)), **NEAR)
    torch.testing.assert_close(weights, expected.mean(1), **NEAR)
    assert ShawAttention(12, 3, values=False).value_table is None


def test_weights_are_dropped_for_values_of_every_kind():
    torch.manual_seed(7)
    layer = ShawAttention(12, 3, reach=2, dropout=0.4).double()
    x = torch.randn(1, 11, 12).double()
    mean = layer.train()(x.expand(4000, -1, -1))[0].mean(0, keepdim=True)
    torch.testing.assert_close(mean, layer.eval()(x)[0], rtol=0, atol=0.05)
    assert not torch.equal(layer.train()(x)[0], layer.train()(x)[0])


def test_tables_have_a_row_for_each_distance():
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ArgumentError, match=r"key_table: must be \[2 R \+ 1, 4\] with R at least 1.*got \[6, 4\]"):
        relative_attention(x, x, x, torch.zeros(6, 4))
    with pytest.raises(ArgumentError, match="value_table: must have as many rows as key_table, 5, got 3"):
        relative_attention(x, x, x, torch.zeros(5, 4), torch.zeros(3, 4))
    with pytest.raises(ArgumentError, match="reach"):
        ShawAttention(12, 3, reach=0)
