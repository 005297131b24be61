"""Rotary positions, and the ways to stretch them to sequences longer than those of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError


class RotaryScaling(ABC):
    """How the angles per position change, so that a model reads longer sequences than it was trained on."""

    @abstractmethod
    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """Radians per position of each pair, float64 [width / 2], and what cos and sin are multiplied by."""


@dataclass(frozen=True)
class Unscaled(RotaryScaling):
    """θ_i = base^(-2i/R), i in [0, R/2)."""

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""
        return base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width), 1.0


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """θ_i / factor: position interpolation. Chen et al. (2023), arXiv 2306.15595, equation 4.

    Args:
        factor: new length over that of training, at least 1.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""
        return Unscaled().frequencies(width, base)[0] / self.factor, 1.0


@dataclass(frozen=True)
class NTKScaling(RotaryScaling):
    """base · factor^(R / (R - 2)) in place of base: the fastest pair stays, the slowest is slowed down by the factor.

    "NTK-aware" interpolation: Peng et al. (2023), arXiv 2309.00071, section 3.1, after a post of bloc97.

    Args:
        factor: new length over that of training, at least 1.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""
        if width < 4:
            raise ArgumentError(f"scaling: NTKScaling needs a width of at least 4, got {width}; take LinearScaling")
        return Unscaled().frequencies(width, base * self.factor ** (width / (width - 2)))


@dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """Pairs that turn often within the length of training stay, those that turn less than once are interpolated.

    Between them a ramp over the pairs: θ_i (1 - r_i) + θ_i / factor · r_i, r_i = (i - low) / (high - low) in [0, 1],
    low and high being the pairs that turn `fast` and `slow` times within `length`, low rounded down and high up. Scores
    are sharpened by (0.1 ln factor + 1)², put on cos and sin. Peng et al. (2023), arXiv 2309.00071, section 3.2 to 3.4;
    the ramp is that of the authors' code, which published models follow; the paper's is linear in the number of turns.

    Args:
        factor: new length over that of training, at least 1.
        length: that of training, in positions.
        fast: turns above which a pair stays.
        slow: turns below which it is interpolated.
        sharpen: what cos and sin are multiplied by; 0.1 ln factor + 1 when not given.
        whole: round low and high to whole pairs.
    """

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    sharpen: float | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_ordered(self.length, slow=self.slow, fast=self.fast)

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""

        def pair(turns: float) -> float:
            return width * math.log(self.length / (2 * math.pi * turns)) / (2 * math.log(base))

        plain, _ = Unscaled().frequencies(width, base)
        low, high = pair(self.fast), pair(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = ((torch.arange(width // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
        sharpen = 0.1 * math.log(self.factor) + 1 if self.sharpen is None else self.sharpen
        return plain * (1 - ramp) + plain / self.factor * ramp, sharpen


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Pairs that turn more than `fast` times within `length` stay, fewer than `slow`: / factor; between: in proportion.

    Between them θ_i ((1 - m) / factor + m) with m = (turns - slow) / (fast - slow). Grattafiori et al. (2024), "The
    Llama 3 herd of models", arXiv 2407.21783; the formula is that of the released code.

    Args:
        factor: 8 in Llama 3.1.
        length: that of training, in positions.
        fast: turns above which a pair stays.
        slow: turns below which it is divided by the factor.
    """

    factor: float = 8.0
    length: int = 8192
    fast: float = 4.0
    slow: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_ordered(self.length, slow=self.slow, fast=self.fast)

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""
        plain, _ = Unscaled().frequencies(width, base)
        turns = self.length * plain / (2 * math.pi)
        share = ((turns - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return plain * ((1 - share) / self.factor + share), 1.0


class RotaryPositions(nn.Module):
    """Turns pair i of a query or key at position p by the angle p θ_i, so that scores depend on p_key - p_query.

    Su et al. (2021), "RoFormer", arXiv 2104.09864, equation 34. θ_i = base^(-2i/R). Pair i is (x_i, x_{i + R/2}), as in
    Llama and Hugging Face, or (x_2i, x_{2i+1}), as in the paper; nothing else changes, but weights trained for one do
    not fit the other. Angles are computed in float64 and kept as a table, which grows when a longer sequence comes.

    Args:
        width: R, even: so many columns are turned; the others pass as they are.
        base: 10000 in the paper.
        scaling: one of `LinearScaling`, `NTKScaling`, `YarnScaling`, `Llama3Scaling`.
        interleaved: pairs as in the paper.
        length: positions to make the table for at once.

    Raises:
        ArgumentError: the width is not even or below 2, or the base is not above 1.
    """

    table: Tensor

    def __init__(
        self,
        width: int,
        base: float = 10000.0,
        scaling: RotaryScaling | None = None,
        *,
        interleaved: bool = False,
        length: int = 256,
    ):
        super().__init__()
        if width < 2 or width % 2:
            raise ArgumentError(f"width: must be even and at least 2, for pairs that turn, got {width}")
        if not base > 1:
            raise ArgumentError(f"base: must be above 1, got {base!r}; the paper takes 10000")
        self.width = width
        self.interleaved = interleaved
        self._frequencies, self._sharpen = (scaling or Unscaled()).frequencies(width, base)
        self.register_buffer("table", self._made(length), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Turn x [..., T, D] at positions start ... start + T - 1; D is at least R.

        Raises:
            ArgumentError: x is narrower than R.
        """
        if x.shape[-1] < self.width:
            raise ArgumentError(
                f"x: must be at least {self.width} wide, got {x.shape[-1]}; make it with a smaller width"
            )
        end = start + x.shape[-2]
        if end > self.table.shape[1]:
            with torch.inference_mode(False):  # training may need the same table later
                self.table = self._made(2 * end).to(self.table)
        cos, sin = self.table[:, start:end].to(x.dtype)
        turned, rest = x[..., : self.width], x[..., self.width :]
        first, second = (turned[..., ::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        pair = first * cos - second * sin, second * cos + first * sin
        turned = torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def _made(self, length: int) -> Tensor:
        """Cos and sin, float32 [2, length, R / 2]."""
        angle = torch.arange(length, dtype=torch.float64)[:, None] * self._frequencies
        return (torch.stack([angle.cos(), angle.sin()]) * self._sharpen).float()


def _check_factor(factor: float) -> None:
    if not (isinstance(factor, (int, float)) and 1 <= factor < math.inf):
        raise ArgumentError(f"factor: must be a number of at least 1, new length over old, got {factor!r}")


def _check_ordered(length: int, *, slow: float, fast: float) -> None:
    if not 0 < slow < fast:
        raise ArgumentError(f"slow, fast: must be numbers of turns with 0 < slow < fast, got {slow!r} and {fast!r}")
    if not (isinstance(length, int) and length >= 1):
        raise ArgumentError(f"length: must be that of training, in positions, got {length!r}")
