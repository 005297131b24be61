"""The view as a linear operator and as an array."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.inputs import Sizes, blocks_of, tensors
from tests.support.tolerance import assert_near
from tests.support.views import BUDGETS, gradients, view_cases

import limelight
from limelight.errors import ArgumentError, BackendError, DenseSizeError


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_products_and_their_gradients_agree_with_the_dense_matrix(data):
    with blocks_of(data.draw(st.sampled_from(BUDGETS))):
        view, weights, leaves, sizes, _ = data.draw(view_cases())
        front = (*sizes.lead, sizes.H)
        front = tuple(data.draw(st.sampled_from((size, 1))) for size in front[data.draw(st.integers(0, len(front))) :])
        if data.draw(st.booleans()) and len(front) == len(sizes.lead) + 1:
            front = (3, *front)
        shape = (*front, 4) if front or data.draw(st.booleans()) else ()
        x = torch.randn(*shape[:-1], sizes.S, *shape[-1:], dtype=torch.float64).requires_grad_()
        y = torch.randn(*shape, sizes.T, dtype=torch.float64).requires_grad_()
        for have, want, operand in ((view @ x, weights @ x, x), (y @ view, y @ weights, y)):
            assert_near(have, want, torch.float64, sizes.terms)
            found, expected = gradients(have, (*leaves, operand)), gradients(want, (*leaves, operand))
            for one, other in zip(found, expected, strict=True):
                assert_near(one, other, torch.float64, 8 * sizes.terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_have_the_dtype_of_the_view(dtype):
    sizes = Sizes(T=31, S=37)
    query, key, value = (one.detach() for one in tensors(sizes, dtype=dtype))
    _, view = limelight.look(query, key, value, mask=limelight.causal())
    wide = view.dense()
    x, y = torch.randn(sizes.S, 3), torch.randn(5, sizes.T)
    for have, want in ((view @ x, wide @ x.to(wide.dtype)), (y @ view, y.to(wide.dtype) @ wide)):
        assert have.dtype is view.dtype
        assert_near(have, want, view.dtype, sizes.terms)
    assert_near(view @ np.ones(sizes.S), torch.ones(sizes.full[:-1]), view.dtype, sizes.terms)
    assert_near(np.ones((2, sizes.T)) @ view, wide.sum(-2, keepdim=True).expand(2, 3, 2, -1), view.dtype, sizes.terms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = view @ x, y @ view, view.dense()
    for have, want in zip(found, (wide @ x.to(wide.dtype), y.to(wide.dtype) @ wide, wide), strict=True):
        assert_near(have, want, view.dtype, sizes.terms)


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_the_mask_hides_takes_no_part(budget):
    query, key, value = (one.detach() for one in tensors(Sizes(T=5, S=5)))
    with blocks_of(budget):
        _, view = limelight.look(query, key, value, mask=limelight.causal())
        wide = view.dense()
        x, y = torch.ones(5, 2, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
        x[3, 0], y[0, 1] = math.nan, math.inf
        have = view @ x
        assert have[..., 0].isnan().tolist() == [[[False] * 3 + [True] * 2] * 3] * 2
        assert_near(have[..., 1], wide.sum(-1), torch.float64, 40)
        # Query 1 sees keys 0 and 1 alone.
        have = y @ view
        assert have[..., 0, :].isposinf().tolist() == [[[True] * 2 + [False] * 3] * 3] * 2
        assert_near(have[..., 0, 2:], wide.sum(-2)[..., 2:], torch.float64, 40)
        assert_near(have[..., 1, :], wide.sum(-2), torch.float64, 40)


def test_a_key_behind_the_mask_may_be_nan_in_gradients_too():
    query, key, value = tensors(Sizes())
    with torch.no_grad():
        key[:, :, 6] = math.nan
    _, view = limelight.look(query, key, value, mask=limelight.lengths(torch.tensor([6, 6])))
    for product in (view @ torch.ones(7, 2), torch.ones(2, 5) @ view):
        for gradient in torch.autograd.grad(product.square().sum(), (query, key), retain_graph=True):
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0


def test_products_are_linear_in_memory():
    length = 3000
    maker = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 1, length, 8, generator=maker).requires_grad_() for _ in range(2))
    _, view = limelight.look(query, key, key.detach(), mask=limelight.causal())
    x = torch.randn(length, 2, generator=maker).requires_grad_()
    with Largest() as largest:
        ((view @ x).square().sum() + (x.mT @ view).square().sum()).backward()
    assert 0 < largest.numel <= 1 << 21
    assert query.grad is not None
    assert key.grad is not None


def test_a_second_derivative_is_refused():
    query, key, value = tensors(Sizes())
    _, view = limelight.look(query, key, value)
    (slope,) = torch.autograd.grad((torch.ones(1, 5) @ view).square().sum(), query, create_graph=True)
    with pytest.raises(BackendError, match=r"'x @ view' has first derivatives only.*view.dense\(\)"):
        slope.sum().backward()


def test_a_second_derivative_by_an_input_of_a_product_is_refused_not_lost():
    query, key, value = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    _, view = limelight.look(query, key, value)
    rows = torch.randn(1, 5, requires_grad=True)
    (slope,) = torch.autograd.grad((rows @ view).square().sum(), query, create_graph=True)
    for leaf in (key, rows):
        with pytest.raises(BackendError, match="first derivatives only"):
            torch.autograd.grad(slope.sum(), leaf, retain_graph=True, allow_unused=True)


def test_operands_that_do_not_fit():
    _, view = limelight.look(*tensors(Sizes()))
    with pytest.raises(ArgumentError, match=r"view @ x: x must be \[..., S, M\] or \[S\].* has 7 there; x has 5"):
        view @ torch.ones(5, 2)
    with pytest.raises(ArgumentError, match=r"x @ view: x must be \[..., M, T\] or \[T\].* has 5 there; x has 7"):
        torch.ones(7) @ view
    with pytest.raises(ArgumentError, match=r"broadcast against \[2, 3\]; they are \[4, 1\]"):
        view @ torch.ones(4, 1, 7, 1)
    with pytest.raises(ArgumentError, match=r"one axis at least"):
        view @ 2.0
    with pytest.raises(ArgumentError, match=r"an array of numbers; it is str"):
        view @ "x"
    with pytest.raises(ArgumentError, match=r"device of the view, cpu; it is on meta"):
        view @ torch.ones(7, device="meta")
    with pytest.raises(ArgumentError, match=r"there; x has 3"):
        view.received(torch.ones(3))
    with pytest.raises(ArgumentError, match=r"weights must be a tensor or an array of numbers; it is str"):
        view.received("x")
    torch.testing.assert_close(view.received(2.0), 2 * view.received())


def test_numpy_and_torch_take_a_view_as_an_array():
    _, view = limelight.look(*tensors(Sizes(), dtype=torch.bfloat16))
    want = view.dense().detach()
    assert np.asarray(view).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(view), want.numpy())
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.array(view.mean()), view.mean().dense().detach().numpy())
    assert np.ndim(view) == 4
    assert np.shape(view.mean()) == (2, 5, 7)
    assert torch.equal(torch.as_tensor(view), want)
    assert torch.equal(torch.from_dlpack(view), want)
    assert torch.equal(torch.as_tensor(view.mean()), view.mean().dense().detach())
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(view, copy=False)


def test_conversion_has_the_guard_of_dense():
    query, key = torch.zeros(1, 1, 40_000, 1), torch.zeros(1, 1, 40_000, 1)
    _, view = limelight.look(query, key, key, mask=limelight.window(0, 0))
    assert np.ndim(view) == 4
    for convert in (np.asarray, torch.as_tensor, torch.from_dlpack):
        with pytest.raises(DenseSizeError, match=r"6,400,000,000 bytes"):
            convert(view)
