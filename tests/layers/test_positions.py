import math

import pytest
import torch

from limelight.errors import ArgumentError
from limelight.layers import SinusoidalPositions, sinusoidal


def test_positions_are_the_papers_formula():
    table = sinusoidal(11, 6)
    assert table.shape == (11, 6)
    assert table.dtype is torch.float32
    for p in range(11):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_far_positions_are_exact_too():
    # In fp32 the angle alone would be off by 1e-3 here.
    assert sinusoidal(1, 2, start=100_003)[0, 0].item() == pytest.approx(math.sin(100_003), abs=1e-7)


def test_a_part_of_the_table_is_the_table():
    assert torch.equal(sinusoidal(5, 6, start=7), sinusoidal(12, 6)[7:])


def test_the_layer_adds_and_grows_and_changes_nothing_that_was_there():
    layer = SinusoidalPositions(6, length=5)
    x = torch.randn(2, 3, 6)
    before = layer(x, start=2)
    assert torch.equal(before, x + sinusoidal(5, 6)[2:])
    long = torch.zeros(17, 6)
    assert torch.equal(layer(long), sinusoidal(17, 6))
    assert torch.equal(layer(x, start=2), before)
    assert layer(x.bfloat16()).dtype is torch.bfloat16


def test_a_table_that_grew_in_inference_mode_serves_in_training():
    layer = SinusoidalPositions(6, length=5)
    with torch.inference_mode():
        layer(torch.zeros(7, 6))
    x = torch.zeros(7, 6, requires_grad=True)
    (layer(x) * torch.arange(7.0)[:, None]).sum().backward()
    assert torch.equal(x.grad, torch.arange(7.0)[:, None].expand(7, 6))


def test_the_table_is_not_part_of_the_weights():
    assert not SinusoidalPositions(6).state_dict()


def test_width_must_be_even():
    with pytest.raises(ArgumentError, match="must be even for pairs of sine and cosine, got 7; take 8"):
        sinusoidal(5, 7)
