"""Absolute positions: sinusoidal and learned."""

import math

import torch
from torch import Tensor, nn

from limelight.contract import exporting
from limelight.errors import ArgumentError


def sinusoidal(length: int, width: int, *, start: int = 0) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/C)), PE[p, 2i + 1] = cos(p / 10000^(2i/C)), for p in [start, start + length).

    Vaswani et al. (2017), section 3.5.

    Args:
        length: the number of positions.
        width: C; even.
        start: the first position.

    Returns:
        fp32 tensor [length, C].

    Raises:
        ArgumentError: width is odd.
    """
    if width % 2:
        raise ArgumentError(f"width: must be even for pairs of sine and cosine, got {width}; take {width + 1}")
    position = torch.arange(start, start + length, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table.float()


def _computed(start: int, end: int, width: int) -> Tensor:
    """As `sinusoidal`, of positions [start, end) that may be symbols."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angle = torch.arange(start, end).to(torch.float64)[:, None] * rate
    return torch.stack([torch.sin(angle), torch.cos(angle)], -1).flatten(-2).float()


class SinusoidalPositions(nn.Module):
    """Adds sinusoidal positions to x [..., T, C]; the table grows when a longer sequence comes."""

    table: Tensor

    def __init__(self, width: int, length: int = 256):
        super().__init__()
        self.register_buffer("table", sinusoidal(length, width), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The sum x + PE[start : start + T]."""
        end = start + x.shape[-2]
        if exporting():
            # Lengths are names only: a graph for all of them computes what it needs.
            return x + _computed(start, end, self.table.shape[1]).to(x.dtype)
        if end > len(self.table):
            self.table = sinusoidal(2 * end, self.table.shape[1]).to(self.table)
        return x + self.table[start:end].to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector per position to x [..., T, C]: x_p + E_p. Gehring et al. (2017), arXiv 1705.03122.

    Args:
        width: C.
        length: the most positions there can be.
    """

    def __init__(self, width: int, length: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The sum x + E[start : start + T].

        Raises:
            ArgumentError: there are not so many positions.
        """
        end = start + x.shape[-2]
        if end > len(self.weight):
            raise ArgumentError(
                f"x: must end at position {len(self.weight)} at the latest, for which there is a vector, got {end}; "
                "make the layer with a larger length, or take SinusoidalPositions or RotaryPositions"
            )
        return x + self.weight[start:end].to(x.dtype)
