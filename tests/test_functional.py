import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tolerance import assert_near
from torch.nn.attention.bias import causal_lower_right

from limelight.errors import TorchArgumentError
from limelight.functional import scaled_dot_product_attention


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_outputs_and_gradients_are_those_of_torch(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    lead = draw(st.sampled_from(((), (2,), (2, 3))))
    heads, groups = draw(st.sampled_from(((6, 6), (6, 2), (6, 1))))
    rows, columns = draw(st.sampled_from(((1, 7), (5, 7), (7, 5))))
    inputs = [
        torch.randn(*lead, *shape, dtype=torch.float64, requires_grad=True)
        for shape in ((heads, rows, 11), (groups, columns, 11), (groups, columns, 13))
    ]
    options = {"enable_gqa": groups not in (1, heads), "scale": draw(st.sampled_from((None, 0.3)))}
    kind = draw(st.sampled_from(("none", "causal", "bool", "float")))
    learned = []
    if kind == "causal":
        options["is_causal"] = True
    elif kind == "bool":
        options["attn_mask"] = torch.rand(rows, columns) < 0.6
    elif kind == "float":
        options["attn_mask"] = torch.randn(rows, columns, dtype=torch.float64, requires_grad=True)
        learned = [options["attn_mask"]]
    found = []
    for function in (F.scaled_dot_product_attention, scaled_dot_product_attention):
        output = function(*inputs, **options)
        loss = (output * torch.arange(output.numel(), dtype=torch.float64).view_as(output).sin()).sum()
        found.append((output, *torch.autograd.grad(loss, [*inputs, *learned])))
    for expected, have in zip(*found, strict=True):
        assert_near(have, expected, torch.float64, 100)


def test_two_axes():
    query, key, value = (torch.randn(length, 8) for length in (3, 5, 5))
    expected = F.scaled_dot_product_attention(query, key, value)
    assert_near(scaled_dot_product_attention(query, key, value), expected, torch.float32, 100)


def test_a_causal_bias():
    query, key, value = (torch.randn(1, 2, length, 8) for length in (3, 5, 5))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(3, 5)._materialize())
    have = scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(3, 5))
    assert_near(have, expected, torch.float32, 100)


def test_dropout_drops_that_share_in_evaluation_too():
    x = torch.randn(1, 1, 64, 8)
    value = torch.eye(64)[None, None]
    weights = scaled_dot_product_attention(x, x, value, dropout_p=0.25)
    assert 0.2 < (weights == 0).double().mean() < 0.3
    kept = F.scaled_dot_product_attention(x, x, value) / 0.75
    torch.testing.assert_close(weights, torch.where(weights == 0, 0.0, kept))


Q = torch.zeros(2, 6, 5, 8)
BAD = {
    "both masks": ((Q, Q, Q), {"attn_mask": torch.zeros(5, 5), "is_causal": True}, "must not be given together"),
    "dtype of mask": ((Q, Q, Q), {"attn_mask": torch.zeros(5, 5).int()}, "attn_mask must be bool, True may attend"),
    "one axis": ((Q, Q[0, 0, 0], Q), {}, "key must be a tensor with two axes at least"),
    "heads": ((Q, Q[:, :2], Q[:, :2]), {}, "must broadcast in all axes but the last two"),
    "grouped heads": ((Q, Q[:, :4], Q[:, :4]), {"enable_gqa": True}, "the heads of key must divide those of query, 6"),
    "width": ((Q, Q[..., :7], Q), {}, "query and key must have the same width"),
    "positions": ((Q, Q[:, :, :4], Q), {}, "same number of positions"),
    "mask": ((Q, Q, Q), {"attn_mask": torch.zeros(4, 5)}, "must broadcast to"),
}


# What torch's document forbids, but its kernel for the CPU does not notice.
UNNOTICED = ("both masks", "positions")


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_raise_what_torch_raises(name):
    inputs, options, message = BAD[name]
    if name not in UNNOTICED:
        with pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(*inputs, **options)
    with pytest.raises(TorchArgumentError, match=message):
        scaled_dot_product_attention(*inputs, **options)
