import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tolerance import assert_near
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from limelight import attend
from limelight.interop.torch_attention import meaning, narrowed


def ours(*args, **kwargs):
    call = meaning(*args, **kwargs)
    return attend(*call[:3], **call.options(), backend="reference")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_same_numbers_as_torch(data):
    lead = data.draw(st.sampled_from(((), (1,), (3,), (2, 3))))
    heads, groups, grouped = data.draw(st.sampled_from(((6, 6, False), (6, 3, True), (6, 1, True), (6, 6, True))))
    queries, keys = data.draw(st.sampled_from(((1, 7), (5, 7), (7, 5), (7, 7))))
    query = torch.randn(*lead, heads, queries, 11, dtype=torch.float64)
    key = torch.randn(*lead, groups, keys, 11, dtype=torch.float64)
    value = torch.randn(*lead, groups, keys, 13, dtype=torch.float64)
    options = {"enable_gqa": grouped, "scale": data.draw(st.sampled_from((None, 0.3, 1.0)))}
    kind = data.draw(st.sampled_from(("none", "causal", "bool", "float")))
    if kind == "causal":
        options["is_causal"] = True
    elif kind != "none":
        shape = data.draw(
            st.sampled_from(((queries, keys), (heads, queries, keys), (1, keys), (*lead, 1, queries, keys)))
        )
        mask = torch.randn(shape, dtype=torch.float64)
        options["attn_mask"] = mask > 0 if kind == "bool" else mask.masked_fill(mask > 1, -torch.inf)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    assert_near(ours(query, key, value, **options), expected, torch.float64, 50)


@pytest.mark.parametrize("shapes", [((1, 4), (3, 4), (3, 1)), ((3, 4), (1, 1), (3, 4)), ((1, 1), (2, 4), (2, 4))])
def test_leading_axes_and_heads_broadcast(shapes):
    tensors = [torch.randn(*shape, 5, 7, dtype=torch.float64) for shape in shapes]
    expected = F.scaled_dot_product_attention(*tensors)
    assert_near(ours(*tensors), expected, torch.float64, 50)


def test_two_axes_are_one_head():
    query, key, value = (torch.randn(length, 7, dtype=torch.float64) for length in (3, 5, 5))
    assert_near(ours(query, key, value)[0], F.scaled_dot_product_attention(query, key, value), torch.float64, 50)


@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_a_causal_bias_says_where_it_lines_up(make):
    query, key, value = (torch.randn(1, 2, length, 8, dtype=torch.float64) for length in (3, 5, 5))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=make(3, 5)._materialize())
    assert_near(ours(query, key, value, attn_mask=make(3, 5)), expected, torch.float64, 50)


def test_an_expanded_mask_is_kept_small():
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool).expand(2, 3, 5, 7)
    assert narrowed(mask).shape == (2, 1, 1, 7)
    assert meaning(*(torch.randn(2, 3, 5, 4),) * 3, attn_mask=mask).mask.per_key()
