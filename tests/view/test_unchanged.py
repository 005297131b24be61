"""A view notices that what it computes from was changed."""

from __future__ import annotations

import pytest
import torch
from tests.support.inputs import Sizes, tensors

import limelight
from limelight.errors import StaleViewError

QUESTIONS = (
    lambda view: view.dense(),
    lambda view: view[0],
    lambda view: view.top(2),
    lambda view: view.received(),
    lambda view: view.map(2, 2),
    lambda view: view @ torch.ones(7),
    lambda view: view.mean()[0],
    lambda view: view.log_prob([(0, 0, 0, 0)]),
    lambda view: view.detach(),
)


@pytest.mark.parametrize("name", ["query", "key", "bias", "mask first allowed", "score, tensor 0", "lse"])
def test_a_changed_tensor_is_named(name):
    query, key, value = (one.detach() for one in tensors(Sizes()))
    parts = {
        "query": query,
        "key": key,
        "bias": torch.zeros(3, 5, 7, dtype=torch.float64),
        "mask first allowed": torch.ones(5, 7, dtype=torch.bool),
        "score, tensor 0": torch.ones(11, dtype=torch.float64),
    }
    score = limelight.additive(parts["score, tensor 0"])
    mask = limelight.dense(parts["mask first allowed"]) & limelight.causal()
    _, view = limelight.look(query, key, value, score=score, bias=parts["bias"], mask=mask, observe=("entropy",))
    kept, before = view.detach(), view.entropy()
    (view.lse if name == "lse" else parts[name])[..., :1].zero_()
    for question in QUESTIONS:
        for one in (view, kept):
            with pytest.raises(StaleViewError, match=f"tensors of its call, and {name} was changed in place since"):
                question(one)
    # What was observed is known, and what a view is can be told.
    assert torch.equal(view.entropy(), before)
    assert "AttentionView" in repr(view)


def test_other_tensors_may_change_and_inference_mode_works():
    query, key, value = (one.detach() for one in tensors(Sizes()))
    output, view = limelight.look(query, key, value)
    value.zero_()
    output.zero_()
    assert view.dense().sum() > 0
    with torch.inference_mode():
        _, view = limelight.look(*(one.clone() for one in (query, key, value)))
        assert view.dense().sum() > 0
