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


def test_dtype_and_shape_stay():
    for shape in ((), (1,), (3, 0), (5, 7)):
        y = Dropout(0.5)(torch.ones(shape, dtype=torch.bfloat16))
        assert (y.shape, y.dtype) == (shape, torch.bfloat16)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_out_of_range(p):
    with pytest.raises(ArgumentError, match=r"dropout: must be in \[0, 1\), got"):
        Dropout(p)
