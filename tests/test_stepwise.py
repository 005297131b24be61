import math

import pytest
import torch
from tests.support.inputs import SCORES, Sizes, score_case, tensors

import limelight


def test_the_steps_of_scaled_dot_products():
    query, key, value = tensors(Sizes())
    counts = torch.tensor([7, 4])
    found = limelight.steps(query, key, value, mask=limelight.causal() & limelight.lengths(counts))
    scores = query @ key.mT / math.sqrt(11)
    allowed = torch.ones(5, 7).tril(2).bool() & (torch.arange(7) < counts[:, None, None, None])
    near = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(found.scores, scores, **near)
    torch.testing.assert_close(found.masked, scores.masked_fill(~allowed, -torch.inf), **near)
    torch.testing.assert_close(found.weights, found.masked.softmax(-1), **near)
    torch.testing.assert_close(found.output, found.weights @ value, **near)
    found.output.sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("name", SCORES)
def test_the_steps_of_every_score_end_where_attend_does(name):
    sizes = Sizes(lead=(2, 1), H=4, G=2)
    query, key, value = tensors(sizes)
    case = score_case(name, sizes)
    options = {
        "score": case.make(*case.leaves),
        "mask": limelight.window(2, 1),
        "bias": limelight.alibi(),
        "sink": torch.zeros(4).double(),
    }
    found = limelight.steps(query, key, value, **options)
    torch.testing.assert_close(found.output, limelight.attend(query, key, value, **options), rtol=0, atol=1e-11)
    # The sink is one more logit: softmax plus one.
    size = found.masked.exp()
    torch.testing.assert_close(found.weights, size / (1 + size.sum(-1, keepdim=True)), rtol=0, atol=1e-11)
    assert found.scores.shape == (2, 1, 4, 5, 7)
    assert found.scores.isfinite().all()


def test_a_bias_forbids():
    query, key, value = tensors(Sizes())
    bias = torch.zeros(5, 7).double()
    bias[:, 3] = -torch.inf
    found = limelight.steps(query, key, value, bias=bias)
    assert (found.masked[..., 3] == -torch.inf).all()
    assert not found.weights[..., 3].any()
