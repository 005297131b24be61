import pytest
import torch

from limelight.errors import ArgumentError
from limelight.layers import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_dropped_and_the_mean_kept(p):
    torch.manual_seed(29)
    x = torch.full((1009, 101), 2.0)
    y = Dropout(p)(x)
    n = x.numel()
    # Five standard deviations of a binomial count.
    assert abs((y == 0).sum().item() - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    assert y[y != 0].unique().tolist() == pytest.approx([2 / (1 - p)], rel=1e-4)


def test_neighbours_are_independent():
    torch.manual_seed(31)
    kept = (Dropout(0.5)(torch.ones(100_003)) != 0).double()
    for lag in (1, 2, 3, 4, 8):
        together = (kept[lag:] * kept[:-lag]).mean().item()
        assert abs(together - 0.25) < 5 * (0.25 * 0.75 / 100_000) ** 0.5


def test_evaluation_and_none_leave_the_tensor_alone():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_gradient_is_dropped_with_the_value_and_the_seed_decides():
    x = torch.ones(7, 11, 13, requires_grad=True)
    torch.manual_seed(37)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(37)
    assert torch.equal(Dropout(0.3)(x), y)
    assert not torch.equal(Dropout(0.3)(x), y)


def test_the_native_extension_stores_nothing_and_differentiates_twice():
    x = torch.randn(3, 5, 411, dtype=torch.float32, requires_grad=True)
    y = Dropout(0.3)(x)
    (grad,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    kept = (y != 0).float() / 0.7
    torch.testing.assert_close(second, 2 * kept**2)


def test_not_contiguous():
    torch.manual_seed(5)
    x = torch.randn(37, 41)
    y = Dropout(0.5)(x.t())
    assert torch.equal(y[y != 0], 2 * x.t()[y != 0])


@pytest.mark.parametrize("size", [1, 7, 8, 1023, 1024, 1025, 9000])
def test_every_element_has_its_own_draw(size):
    torch.manual_seed(41)
    rows = torch.stack([Dropout(0.5)(torch.ones(size)) != 0 for _ in range(400)]).double()
    # Six standard deviations, of an element's mean and of the count of each row.
    assert ((rows.mean(0) - 0.5).abs() < 6 * (0.25 / 400) ** 0.5).all()
    assert abs(rows.mean().item() - 0.5) < 6 * (0.25 / rows.numel()) ** 0.5


def test_dtype_and_shape_stay():
    for shape in ((), (1,), (3, 0), (5, 7)):
        y = Dropout(0.5)(torch.ones(shape, dtype=torch.bfloat16))
        assert (y.shape, y.dtype) == (shape, torch.bfloat16)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_out_of_range(p):
    with pytest.raises(ArgumentError, match=r"dropout: must be in \[0, 1\), got"):
        Dropout(p)
