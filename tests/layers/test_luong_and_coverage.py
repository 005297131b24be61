"""Location, local and coverage attention against their formulas, written as loops in float64."""

import math

import pytest
import torch
from torch import nn

from limelight.errors import ArgumentError
from limelight.layers import (
    BahdanauAttention,
    CoverageAttention,
    LocalMonotonicAttention,
    LocalPredictiveAttention,
    LocationAttention,
    LuongAttention,
    coverage_loss,
)
from limelight.masks import lengths

B, T, S, Q, M, A = 3, 11, 7, 5, 13, 17
COUNTS = torch.tensor([7, 2, 5])
NEAR = {"rtol": 0.0, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(23)


def inputs():
    return (torch.randn(B, T, Q).double().requires_grad_(), torch.randn(B, S, M).double().requires_grad_())


def inners():
    return (
        LuongAttention("general", Q, M).double(),
        LuongAttention("concat", Q, M).double(),
        BahdanauAttention(Q, M, A).double(),
    )


def score_of(inner, state, memory):
    """The dense scores [B, T, S] of an inner attention, from its weights."""
    if isinstance(inner, LuongAttention) and inner.kind == "general":
        return torch.einsum("btq,qm,bsm->bts", state, inner.memory_projection.weight, memory)
    joined = inner.query_projection(state)[:, :, None] + inner.memory_projection(memory)[:, None]
    return joined.tanh() @ inner.vector


def agree(layer: nn.Module, found, expected, state, memory):
    """(context, weights) found and expected: values, and every gradient of a sum of both."""
    torch.testing.assert_close(found, expected, **NEAR)
    wanted = [state, memory, *layer.parameters()]
    to_context, to_weights = torch.randn_like(expected[0]), torch.randn_like(expected[1])
    slopes = [
        torch.autograd.grad(
            (context * to_context).sum() + (weights * to_weights).sum(), wanted, allow_unused=True, retain_graph=True
        )
        for context, weights in (found, expected)
    ]
    for one, other in zip(*slopes, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, **NEAR)
        assert one.abs().max() > 0


@pytest.mark.parametrize("positions", [4, 7, 31])
def test_location_is_its_formula(positions):
    layer = LocationAttention(Q, positions).double()
    state, memory = inputs()
    logits = state @ layer.weight[:S].T
    logits = nn.functional.pad(logits, (0, S - logits.shape[-1]), value=-torch.inf)
    logits = logits.masked_fill(torch.arange(S) >= COUNTS[:, None, None], -torch.inf)
    expected = logits.softmax(-1)
    found = layer(state, layer.keys(memory), memory, lengths(COUNTS), observe=True)
    agree(layer, found, (expected @ memory, expected), state, memory)
    assert (expected.sum(-1) > 0.99).all()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_local_m_is_its_formula(kind, window):
    layer = LocalMonotonicAttention(inners()[kind], window)
    state, memory = inputs()
    scores = score_of(layer.inner, state, memory)
    expected = torch.zeros(B, T, S).double()
    for b in range(B):
        for t in range(T):
            centre = min(t, int(COUNTS[b]) - 1)
            seen = [s for s in range(COUNTS[b]) if centre - window <= s <= centre + window]
            expected = expected.index_put(
                (torch.tensor(b), torch.tensor(t), torch.tensor(seen)), scores[b, t, seen].softmax(-1)
            )
    found = layer(state, layer.keys(memory), memory, COUNTS, observe=True)
    agree(layer, found, (expected @ memory, expected), state, memory)


def test_local_m_at_given_times_and_without_lengths():
    layer = LocalMonotonicAttention(inners()[0], 1)
    state, memory = inputs()
    keys = layer.keys(memory)
    whole = layer(state, keys, memory)[0]
    later = layer(state[:, 3:5], keys, memory, times=torch.tensor([3, 4]))[0]
    torch.testing.assert_close(later, whole[:, 3:5], **NEAR)
    each = layer(state[:, 3:5], keys, memory, torch.full((B,), S), torch.tensor([[3, 4]] * B))[0]
    torch.testing.assert_close(each, later, **NEAR)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_local_p_is_its_formula(kind, window):
    layer = LocalPredictiveAttention(inners()[kind], Q, window).double()
    with torch.no_grad():
        layer.place_vector.copy_(torch.randn(Q) * 3)  # centres all over the sentence
    state, memory = inputs()
    place = COUNTS[:, None] * torch.sigmoid((state @ layer.place_projection.weight.T).tanh() @ layer.place_vector)
    away = torch.arange(S) - place[..., None]
    hidden = (away.abs() > window) | (torch.arange(S) >= COUNTS[:, None, None])
    align = score_of(layer.inner, state, memory).masked_fill(hidden, -torch.inf).softmax(-1)
    expected = align * torch.exp(-away.square() / (2 * (window / 2) ** 2))
    found = layer(state, layer.keys(memory), memory, COUNTS, observe=True)
    torch.testing.assert_close(layer.centres(state, COUNTS), place, **NEAR)
    agree(layer, found, (expected @ memory, expected), state, memory)
    assert place.std(1).max() > 0.5


def test_local_p_reaches_its_centre_in_float32_and_bfloat16():
    layer = LocalPredictiveAttention(LuongAttention("general", Q, M), Q, 3)
    state, memory = (one.detach().float() for one in inputs())
    exact = layer(state, layer.keys(memory), memory, COUNTS)[0]
    exact.sum().backward()
    assert layer.place_vector.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.centres(state, COUNTS).dtype is torch.float32
        rough = layer(state, layer.keys(memory), memory, COUNTS)[0]
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.1)


def test_a_sentence_of_no_words_gives_nothing():
    counts = torch.tensor([7, 0, 5])
    for layer in (
        LocalMonotonicAttention(inners()[0], 2),
        LocalPredictiveAttention(inners()[0], Q, 2).double(),
    ):
        state, memory = inputs()
        context, weights = layer(state, layer.keys(memory), memory, counts, observe=True)
        assert not context[1].any()
        assert not weights[1].any()
        (context.sum() + weights.square().sum()).backward()
        assert all(one.grad.isfinite().all() for one in (state, memory, *layer.parameters()))


def test_coverage_is_its_formula():
    layer = CoverageAttention(Q, M, A).double()
    state, memory = inputs()
    w, u, b = layer.query_projection.weight, layer.memory_projection.weight, layer.memory_projection.bias
    w_c, v = layer.coverage_projection.weight[:, 0], layer.vector
    received, rows = torch.zeros(B, S).double(), []
    for t in range(T):
        inside = (state[:, t] @ w.T)[:, None] + memory @ u.T + b + received[..., None] * w_c
        logits = (inside.tanh() @ v).masked_fill(torch.arange(S) >= COUNTS[:, None], -torch.inf)
        rows.append(logits.softmax(-1))
        received = received + rows[-1]
    expected = torch.stack(rows, 1)
    keys, coverage, found = layer.keys(memory), torch.zeros(B, 1, S).double(), []
    for t in range(T):
        context, weights, coverage = layer(state[:, t : t + 1], keys, memory, lengths(COUNTS), coverage)
        found.append((context, weights))
    contexts, weights = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    torch.testing.assert_close(coverage[:, 0], received, **NEAR)
    agree(layer, (contexts, weights), (expected @ memory, expected), state, memory)
    loss = sum(torch.minimum(rows[t], sum(rows[:t], torch.zeros(B, S))).sum(-1) for t in range(T))
    torch.testing.assert_close(coverage_loss(weights).sum(1), loss, **NEAR)


def test_hypotheses_side_by_side_have_a_coverage_each():
    layer = CoverageAttention(Q, M, A).double()
    state, memory = inputs()
    coverage = torch.rand(B, 2, S).double()
    keys = layer.keys(memory)
    both = layer(state[:, :2], keys, memory, lengths(COUNTS), coverage)
    for k in range(2):
        one = layer(state[:, k : k + 1], keys, memory, lengths(COUNTS), coverage[:, k : k + 1])
        for together, alone in zip(both, one, strict=True):
            torch.testing.assert_close(together[:, k : k + 1], alone, **NEAR)


def test_coverage_loss_by_hand():
    # The second step gives 0.5 to a word that had 0.75 already, and 0.5 to one that had 0.25; the first has no past.
    weights = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    assert coverage_loss(weights).tolist() == [[0.0, 0.75]]


def test_window_must_be_a_number_of_positions():
    with pytest.raises(ArgumentError, match="window"):
        LocalMonotonicAttention(inners()[0], 0)
    assert math.isclose(LocalPredictiveAttention(inners()[0], Q).window, 10)
