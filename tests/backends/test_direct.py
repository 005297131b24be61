"""The shortest road to the native kernels: the same bits as the long one, and nothing that needs a word is taken."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight import additive, attend, band, causal, dot, lengths
from limelight.backends import direct, extension
from limelight.errors import ArgumentError, BackendError

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")


def _inputs(n, heads, groups, queries, keys, width, values, dtype=torch.float32, beside=False):
    torch.manual_seed(1)
    shapes = (heads, queries, width), (groups, keys, width), (groups, keys, values)
    found = [torch.randn(n, *shape).to(dtype) for shape in shapes]
    return [one.transpose(1, 2).contiguous().transpose(1, 2) for one in found] if beside else found


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_both_roads_give_the_same_bits(data):
    n, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    sizes = [data.draw(st.sampled_from(some)) for some in ((1, 2, 7, 40), (1, 5, 33, 300), (1, 8, 31), (1, 8, 24))]
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    given = _inputs(n, groups * data.draw(st.integers(1, 3)), groups, *sizes, dtype, data.draw(st.booleans()))
    counts = torch.tensor([data.draw(st.integers(0, sizes[1])) for _ in range(n)])
    mask = data.draw(st.sampled_from((None, causal(), causal("start"), lengths(counts))))
    score = data.draw(st.sampled_from((None, dot(0.3))))
    output = direct.attend(*given, score, mask)
    assert output is not None
    expected = attend(*given, score=score, mask=mask, backend="native")
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()
    assert torch.equal(attend(*given, score=score, mask=mask), expected)


def _case(**changed):
    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    return list(({"query": query, "key": key, "value": value, "score": None, "mask": None} | changed).values())


class _Kind(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "case",
    [
        _case(query=torch.randn(2, 2, 3, 8, requires_grad=True)),
        _case(query=torch.randn(2, 2, 3, 8).double()),
        _case(query=torch.randn(2, 3, 8)),
        _case(query=torch.randn(2, 2, 3, 8).as_subclass(_Kind)),
        _case(query=torch.randn(2, 2, 3, 8, device="meta")),
        _case(key=torch.randn(2, 2, 5, 7)),
        _case(key=torch.randn(2, 2, 6, 8)),
        _case(key=torch.randn(2, 2, 5, 8).half()),
        _case(value=torch.randn(2, 1, 5, 8)),
        _case(value=torch.randn(2, 2, 5, 8).to_sparse()),
        _case(value=torch.randn(2, 2, 5, 0)),
        _case(query=torch.complex(torch.zeros(2, 2, 3, 8), torch.ones(2, 2, 3, 8)).conj().imag),
        _case(value=torch.full((2, 2, 5, 8), math.nan)),
        _case(value=3.0),
        _case(score=dot(cap=1.0)),
        _case(score=additive(torch.ones(8))),
        _case(score="dot"),
        _case(mask=band(-1, 1)),
        _case(mask=lengths(torch.tensor([1, 6]))),
        _case(mask=lengths(torch.tensor([1]))),
        _case(mask=lengths(torch.tensor([[1, 2], [1, 2]]))),
        _case(mask=torch.ones(3, 5)),
    ],
)
def test_all_else_goes_the_long_road(case):
    assert direct.attend(*case) is None


def test_the_long_road_says_what_is_wrong():
    query, key, value, *_ = _case()
    with pytest.raises(ArgumentError, match=r"the largest is 6"):
        attend(query, key, value, mask=lengths(torch.tensor([1, 6])))
    with pytest.raises(ArgumentError, match=r"same number of positions S"):
        attend(query, key, value[:, :, :4])


def test_gradients_are_not_lost_where_they_are_wanted():
    query, key, value = (one.requires_grad_() for one in _inputs(2, 2, 2, 3, 5, 8, 8))
    assert attend(query, key, value).requires_grad
    with torch.no_grad():
        assert direct.attend(query, key, value, None, None) is not None


def test_under_a_transformation_of_torch_it_stands_aside():
    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    mapped = torch.vmap(lambda one: attend(one[None], key[:1], value[:1])[0])(query)
    torch.testing.assert_close(mapped, attend(query, key[:1].expand(2, -1, -1, -1), value[:1].expand(2, -1, -1, -1)))


def test_an_instruction_set_that_is_not_there_is_no_error_of_auto(monkeypatch):
    query, key, value, *_ = _case()
    monkeypatch.setattr(extension, "refusal", lambda: "no")
    assert direct.attend(query, key, value, None, None) is None
    attend(query, key, value)
    with pytest.raises(BackendError, match="no"):
        attend(query, key, value, backend="native")


def test_a_call_that_ends_too_soon_is_refused_and_not_read_beyond():
    module = extension.native()
    assert module is not None
    with pytest.raises(ValueError, match="a call of another length"):
        module.dot_forward((1, 2, 3))
