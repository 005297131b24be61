"""What is asked after the call is answered by a pass of the native kernels where they can, and is the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.oracle import answer
from tests.support.tolerance import assert_near

import limelight
from limelight.backends import extension, lookup
from limelight.backends.protocol import Gather, Gathered
from limelight.backends.select import observed

native = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_later_answers_in_float32_agree_with_the_dense_matrix(data):
    lead = data.draw(st.sampled_from(((), (2,), (2, 2))))
    heads, groups = data.draw(st.sampled_from(((2, 1), (3, 3))))
    sizes = Sizes(lead=lead, H=heads, G=groups, T=5, S=data.draw(st.sampled_from((3, 7))), D=5, E=2)
    score = score_case(data.draw(st.sampled_from(("dot", "general", "additive", "concat", "tile"))), sizes)
    mask = data.draw(st.none() | mask_cases(sizes))
    truth = answer(*tensors(sizes), score.oracle(*score.leaves), None if mask is None else mask.truth).weights.detach()
    made = score.make(*(leaf.float() for leaf in score.leaves))
    inputs = tensors(sizes, dtype=torch.float32)
    _, view = limelight.look(*inputs, score=made, mask=None if mask is None else mask.mask)
    terms, k = 4 * sizes.terms, data.draw(st.integers(1, 4))
    assert_near(view.received(), truth.sum(-2), torch.float32, terms)
    safe = truth.where(truth > 0, 1.0)
    assert_near(view.entropy(), -(safe * safe.log()).sum(-1), torch.float32, terms)
    links = view.top(k)
    assert_near(links.weights, truth.topk(min(k, sizes.S)).values, torch.float32, terms)
    reached = truth.gather(-1, links.indices.clamp(min=0)) * (links.indices >= 0)
    assert_near(links.weights, reached, torch.float32, terms)


@native
@pytest.mark.parametrize("score", ["dot", "additive"])
def test_the_kernels_are_asked_where_they_can(score, monkeypatch):
    sizes = Sizes(T=31, S=37)
    case = score_case(score, sizes)
    made = case.make(*(leaf.float() for leaf in case.leaves))
    _, view = limelight.look(*tensors(sizes, dtype=torch.float32), score=made, mask=limelight.causal(), dropout=0.5)
    call, lse = view.sound_call(), view.lse.detach()
    with torch.no_grad():
        want = lookup.received(call, lse), lookup.entropy(call, lse), lookup.strongest(call, lse, 3)
        far = lookup.distance(call, lse)
        rows = torch.linspace(-1, 2, sizes.T)
        weighed = lookup.product(call, lse, rows.view(1, 1, -1, 1).expand(*lse.shape, 1)).squeeze(-1)
    for name in ("received", "entropy", "strongest", "distance", "product"):
        monkeypatch.delattr(lookup, name)
    assert_near(view.received(), want[0], torch.float32, sizes.terms)
    assert_near(view.entropy(), want[1], torch.float32, sizes.terms)
    assert torch.equal(view.top(3).indices, want[2][0])
    assert_near(view.distance(), far, torch.float32, sizes.terms)
    assert_near(view.detach().received(rows), weighed, torch.float32, sizes.terms)
    assert torch.equal(view.argmax(), want[2][0][..., 0])


def test_elsewhere_nothing_is_gathered():
    _, view = limelight.look(*tensors(Sizes()))
    with torch.no_grad():
        assert observed(view.sound_call(), Gather(True, True, 2, True)) == Gathered()


@native
def test_nan_is_left_to_the_lookup():
    query, key, value = (one.detach() for one in tensors(Sizes(T=5, S=5), dtype=torch.float32))
    key[:, :, 4] = math.nan
    _, view = limelight.look(query, key, value, mask=limelight.causal())
    assert view.entropy().isnan().tolist() == [[[False] * 4 + [True]] * 3] * 2
    assert view.received()[..., :4].isnan().all()
    assert view.top(1).weights.isnan().squeeze(-1).tolist() == [[[False] * 4 + [True]] * 3] * 2
