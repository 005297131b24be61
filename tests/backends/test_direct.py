"""The shortest road to the native kernels: the same bits as the long one, and nothing that needs a word is taken."""

from __future__ import annotations

import contextlib
import math
import sys
from unittest import mock

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight import (
    additive,
    attend,
    band,
    causal,
    dense,
    dot,
    interval,
    lengths,
    look,
    pooled,
    received,
    rows,
    segments,
    top,
    window,
)
from limelight.backends import direct, extension
from limelight.errors import ArgumentError, BackendError

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")


def _inputs(n, heads, groups, queries, keys, width, values, dtype=torch.float32, beside=False):
    torch.manual_seed(1)
    shapes = (heads, queries, width), (groups, keys, width), (groups, keys, values)
    found = [torch.randn(n, *shape).to(dtype) for shape in shapes]
    return [one.transpose(1, 2).contiguous().transpose(1, 2) for one in found] if beside else found


def _long_road():
    """Inside it no call takes the short one."""
    return mock.patch.object(direct, "plain", return_value=None)


def _short(query, key, value, score=None, mask=None):
    call = direct.plain(query, key, value, score, mask)
    return None if call is None else direct.attend(call)


@st.composite
def _calls(draw):
    n, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sizes = [draw(st.sampled_from(some)) for some in ((1, 2, 7, 40), (1, 5, 33, 300), (1, 8, 31), (1, 8, 24))]
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    given = _inputs(n, groups * draw(st.integers(1, 3)), groups, *sizes, dtype, draw(st.booleans()))
    counts = torch.tensor([draw(st.integers(0, sizes[1])) for _ in range(n)])
    queries, keys = sizes[:2]
    pattern = torch.rand(draw(st.sampled_from((1, n))), 1, draw(st.sampled_from((1, queries))), keys) < 0.7
    begins = torch.randint(keys, (n, queries))
    masks = (
        *(None, causal(), causal("start"), lengths(counts), window(3, 1), dense(pattern)),
        *(causal() & lengths(counts), window(4, 0) & dense(pattern), interval(begins, begins + 4)),
        segments(torch.arange(queries).expand(n, -1) // 3, torch.arange(keys).expand(n, -1) // 3),
    )
    mask = draw(st.sampled_from(masks))
    return given, draw(st.sampled_from((None, dot(0.3)))), mask


@given(call=_calls())
@settings(max_examples=80, deadline=None)
def test_both_roads_give_the_same_bits(call):
    given, score, mask = call
    output = _short(*given, score, mask)
    assert output is not None
    with _long_road():
        expected = attend(*given, score=score, mask=mask, backend="native")
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()
    assert torch.equal(attend(*given, score=score, mask=mask), expected)


@given(call=_calls(), wanted=st.sampled_from([(True, True, True), (False, True, False), (True, False, True)]))
@settings(max_examples=80, deadline=None)
def test_both_roads_have_the_same_gradients(call, wanted):
    given, score, mask = call
    leaves = [one.requires_grad_(want) for one, want in zip(given, wanted, strict=True)]
    asked = [one for one in leaves if one.requires_grad]
    output = _short(*given, score, mask)
    with _long_road():
        expected = attend(*given, score=score, mask=mask, backend="native")
    assert torch.equal(output, expected)
    torch.manual_seed(2)
    to_output = torch.randn(output.shape).to(output.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(output, asked, to_output), torch.autograd.grad(expected, asked, to_output), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


@given(call=_calls(), few=st.booleans())
@settings(max_examples=80, deadline=None)
def test_both_roads_see_the_same(call, few):
    given, score, mask = call
    weights = torch.rand(given[0].shape[:3])
    every = ("received", "entropy", "distance", top(3), rows([0, -1]), pooled(3, 4), pooled(2, 2, "max"))
    observe = (received(weights), "entropy") if few else every
    output, view = look(*given, score=score, mask=mask, observe=observe)
    with _long_road():
        expected, other = look(*given, score=score, mask=mask, observe=observe)
    assert torch.equal(output, expected)
    assert torch.equal(view.lse, other.lse)
    assert torch.equal(view.entropy(), other.entropy())
    assert torch.equal(view.received(weights if few else None), other.received(weights if few else None))
    if not few:
        assert torch.equal(view.distance(), other.distance())
        assert all(torch.equal(*pair) for pair in zip(view.top(3), other.top(3), strict=True))
        assert torch.equal(view.rows([0, -1]), other.rows([0, -1]))
        assert torch.equal(view.map(3, 4), other.map(3, 4))
        assert torch.equal(view.map(2, 2, reduce="max"), other.map(2, 2, reduce="max"))
    torch.testing.assert_close(view.dense(), other.dense(), rtol=0, atol=0)


@given(call=_calls(), parts=st.sampled_from(["output", "lse", "both"]))
@settings(max_examples=60, deadline=None)
def test_both_roads_have_the_same_gradients_of_what_is_looked_at(call, parts):
    given, score, mask = call
    leaves = [one.requires_grad_() for one in given]

    def grads():
        output, view = look(*leaves, score=score, mask=mask, observe=("received", "entropy"))
        assert not view.entropy().requires_grad
        torch.manual_seed(2)
        to_output, to_lse = torch.randn(output.shape).to(output.dtype), torch.randn(view.lse.shape)
        there = view.lse.detach().isfinite()
        found = [output] if parts == "output" else [view.lse] if parts == "lse" else [output, view.lse]
        wanted = [torch.where(there, to_lse, 0.0) if one is view.lse else to_output for one in found]
        return torch.autograd.grad(found, leaves, wanted, allow_unused=True), view.received()

    mine, received_mine = grads()
    with _long_road():
        theirs, received_theirs = grads()
    assert torch.equal(received_mine, received_theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_all_of_look_goes_the_short_road():
    given = _inputs(2, 4, 2, 7, 9, 8, 8)
    with mock.patch.object(sys.modules["limelight.attend"], "_checked", side_effect=AssertionError("the long road")):
        look(*given, mask=causal(), observe=("received", top(2)))
        look(*given, backend="native")
        look(*(one.requires_grad_() for one in given), observe=("received",))
        attend(*(one.requires_grad_() for one in given))


def test_look_with_gradients_keeps_those_of_the_view():
    given = [one.requires_grad_() for one in _inputs(1, 2, 2, 3, 5, 8, 8)]
    output, view = look(*given)
    assert view.lse.requires_grad
    assert output.requires_grad


def test_gradients_of_what_holds_nan_behind_a_mask():
    query, key, value = (one.requires_grad_() for one in _inputs(2, 2, 2, 3, 5, 8, 8))
    with torch.no_grad():
        value[1, :, 3:] = math.nan
        key[1, :, 3:] = math.inf
    mask = lengths(torch.tensor([5, 3]))
    grads = torch.autograd.grad(attend(query, key, value, mask=mask).sum(), (query, key, value))
    wide = [one.detach().double().nan_to_num(0.0, 0.0).requires_grad_() for one in (query, key, value)]
    expected = torch.autograd.grad(attend(*wide, mask=mask, backend="reference").sum(), wide)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_holds_nan_goes_the_careful_way():
    query, key, value = (one.requires_grad_() for one in _inputs(1, 2, 2, 3, 5, 8, 8))
    to_output = torch.zeros(1, 2, 3, 8)
    to_output[0, 0, 0, 0] = math.nan
    short = torch.autograd.grad(attend(query, key, value), (query, key, value), to_output)
    with _long_road():
        long = torch.autograd.grad(attend(query, key, value), (query, key, value), to_output)
    for mine, theirs in zip(short, long, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        assert mine.isnan().any()
        assert not mine[:, 1].isnan().any()


def test_a_second_derivative_says_what_to_do():
    query, key, value = (one.requires_grad_() for one in _inputs(1, 2, 2, 3, 5, 8, 8))
    (first,) = torch.autograd.grad(attend(query, key, value).sum(), query, create_graph=True)
    with pytest.raises(BackendError, match="backend='reference'"):
        first.sum().backward()


def test_what_is_changed_before_the_backward_pass_is_an_error_of_torch():
    query, key, value = (one.requires_grad_() for one in _inputs(1, 2, 2, 3, 5, 8, 8))
    near = query * 1.0
    output = attend(near, key, value)
    near.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    near = query * 1.0
    output = attend(near, key, value)
    output.mul_(2.0)  # the backward pass wants it as it was
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("road", [contextlib.nullcontext, _long_road])
def test_saved_tensors_that_come_back_in_another_layout(road):
    query, key, value = (one.requires_grad_() for one in _inputs(2, 2, 2, 7, 9, 8, 8))

    def turned(saved):
        return saved.mT.contiguous().mT if saved.ndim > 1 else saved

    with road():
        expected = torch.autograd.grad(attend(query, key, value).sin().sum(), (query, key, value))
        with torch.autograd.graph.saved_tensors_hooks(turned, turned):
            output = attend(query, key, value).sin().sum()
        for mine, theirs in zip(torch.autograd.grad(output, (query, key, value)), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_checkpoint_finds_the_same_gradients():
    query, key, value = (one.requires_grad_() for one in _inputs(2, 2, 2, 30, 50, 8, 8))

    def layer(query, key, value):
        return attend(query * 2.0, key, value, mask=causal()).sin()

    plain = torch.autograd.grad(layer(query, key, value).sum(), (query, key, value))
    again = torch.utils.checkpoint.checkpoint(layer, query, key, value, use_reentrant=False)
    for mine, theirs in zip(torch.autograd.grad(again.sum(), (query, key, value)), plain, strict=True):
        assert torch.equal(mine, theirs)


def _case(**changed):
    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    return list(({"query": query, "key": key, "value": value, "score": None, "mask": None} | changed).values())


class _Kind(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "case",
    [
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
        _case(mask=~band(-1, 1)),
        _case(mask=lengths(torch.tensor([1, 6]))),
        _case(mask=lengths(torch.tensor([1]))),
        _case(mask=lengths(torch.tensor([[1, 2], [1, 2]]))),
        _case(mask=torch.ones(3, 5)),
    ],
)
def test_all_else_goes_the_long_road(case):
    assert _short(*case) is None


def test_the_long_road_says_what_is_wrong():
    query, key, value, *_ = _case()
    with pytest.raises(ArgumentError, match=r"the largest is 6"):
        attend(query, key, value, mask=lengths(torch.tensor([1, 6])))
    with pytest.raises(ArgumentError, match=r"same number of positions S"):
        attend(query, key, value[:, :, :4])


def test_a_mask_of_no_queries():
    query, key, value = _inputs(2, 2, 2, 0, 3, 4, 4)
    none = torch.zeros(2, 0, dtype=torch.long)
    for mask in (interval(none, none), segments(none, torch.zeros(2, 3, dtype=torch.long)), causal()):
        assert attend(query, key, value, mask=mask).shape == (2, 2, 0, 4)


def test_memory_of_a_mask_that_moves_before_the_backward_pass():
    query, key, value = (one.requires_grad_() for one in _inputs(1, 2, 2, 300, 500, 8, 8))
    allowed = torch.rand(1, 2, 300, 500) < 0.5
    output = attend(query, key, value, mask=dense(allowed))
    expected = torch.autograd.grad(output.square().sum(), (query, key, value), retain_graph=True)
    allowed.share_memory_()
    others = [torch.zeros_like(allowed) for _ in range(20)]  # one of them takes the memory that is free now
    for mine, theirs in zip(torch.autograd.grad(output.square().sum(), (query, key, value)), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert not any(one.any() for one in others)


def test_a_mask_goes_on_after_a_transformation_of_torch():
    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    mask = lengths(torch.tensor([4, 2]))
    torch.func.grad(lambda one: attend(one, key, value, mask=mask).sum())(query)
    assert torch.equal(attend(query, key, value, mask=mask), attend(query, key, value, mask=lengths(mask.count)))


def test_what_is_wrong_with_the_inputs_is_said_before_a_mask_is_asked():
    class Own(type(causal())):
        def check(self, block):
            raise ValueError("of the mask")

    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    with pytest.raises(ArgumentError, match=r"key must have the leading axes of query"):
        attend(query, key[:1], value, mask=Own("end"))
    with pytest.raises(ValueError, match="of the mask"):
        attend(query, key, value, mask=Own("end"))


def test_gradients_are_not_lost_where_they_are_wanted():
    query, key, value = (one.requires_grad_() for one in _inputs(2, 2, 2, 3, 5, 8, 8))
    assert attend(query, key, value).requires_grad
    assert not attend(query.detach(), key.detach(), value.detach()).requires_grad
    with torch.no_grad():
        assert not attend(query, key, value).requires_grad


def test_under_a_transformation_of_torch_it_stands_aside():
    query, key, value = _inputs(2, 2, 2, 3, 5, 8, 8)
    mapped = torch.vmap(lambda one: attend(one[None], key[:1], value[:1])[0])(query)
    torch.testing.assert_close(mapped, attend(query, key[:1].expand(2, -1, -1, -1), value[:1].expand(2, -1, -1, -1)))


def test_an_instruction_set_that_is_not_there_is_no_error_of_auto(monkeypatch):
    query, key, value, *_ = _case()
    monkeypatch.setattr(extension, "_usable", None)  # as in a process where none was ever called
    monkeypatch.setattr(extension, "refusal", lambda: "no")
    assert _short(query, key, value) is None
    attend(query, key, value)
    with pytest.raises(BackendError, match="no"):
        attend(query, key, value, backend="native")


def test_a_call_that_ends_too_soon_is_refused_and_not_read_beyond():
    module = extension.native()
    assert module is not None
    with pytest.raises(ValueError, match="a call of another length"):
        module.dot_forward((1, 2, 3))


def test_the_backward_pass_reads_no_tensor_that_does_not_fit():
    module = extension.native()
    assert module is not None
    query, key, value = _inputs(1, 2, 2, 3, 5, 8, 8)
    output, rows = torch.empty(1, 2, 3, 8), torch.empty(3, 1, 2, 3)
    numbers = (0.3, (), 1)
    assert module.plain_dot(query, key, value, output, *numbers, *direct._places_in(rows))
    tensors = [query, key, value, output, output, *map(torch.empty_like, (query, key, value))]
    assert module.plain_dot_backward(*tensors, *numbers, *direct._places_in(rows), 0)
    for place in range(8):
        for other in (tensors[place][..., :7], tensors[place].bfloat16(), tensors[place].double()):
            wrong = [*tensors[:place], other, *tensors[place + 1 :]]
            assert not module.plain_dot_backward(*wrong, *numbers, *direct._places_in(rows), 0)
    with pytest.raises(ValueError, match="a call of another length"):
        module.plain_dot(query, key, value, output, *numbers, 0, 0, 0, (1, 2))
    with pytest.raises(ValueError, match="a call of another length"):
        module.plain_dot(query, key, value, output, 0.3, (0, 0), 1)
