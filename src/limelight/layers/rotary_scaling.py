"""The ways to stretch rotary positions to sequences longer than those of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.errors import ArgumentError


class RotaryScaling(ABC):
    """How the angles per position change, so that a model reads longer sequences than it was trained on."""

    @abstractmethod
    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """Radians per position of each pair, float64 [width / 2], and what cos and sin are multiplied by."""

    def at(self, length: int) -> RotaryScaling:
        """The scaling of a sequence that ends at position `length` - 1; itself, unless it depends on the length."""
        return self


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
class DynamicNTKScaling(RotaryScaling):
    """NTKScaling(factor · n / L - (factor - 1)) of a sequence of n > L positions; those of up to L stay as trained.

    With a factor of 1 it is n / L: Peng et al. (2023), arXiv 2309.00071, section 3.3, after a post of emozilla; the
    factor is that of Hugging Face's "dynamic". Each length has angles of its own, so that a cache of turned keys holds
    those of the lengths at which they came; where the final length is known, `at(length)` is a scaling that stays.

    Args:
        factor: at least 1; with 2 the slowest pair of 2 L positions is slowed down by 3.
        length: L, that of training, in positions.
    """

    factor: float
    length: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_length(self.length)

    def at(self, length: int) -> RotaryScaling:
        """See the class."""
        return NTKScaling(self.factor * max(length, self.length) / self.length - (self.factor - 1))

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """Those of sequences no longer than L."""
        return self.at(0).frequencies(width, base)


@dataclass(frozen=True)
class PairScaling(RotaryScaling):
    """θ_i / divisors_i, with cos and sin multiplied by `sharpen`: one of the two faces of `LongRoPEScaling`."""

    divisors: tuple[float, ...]
    sharpen: float = 1.0

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """See the class."""
        if len(self.divisors) != width // 2:
            raise ArgumentError(
                f"scaling: must have a number for each of the {width // 2} pairs, got {len(self.divisors)}"
            )
        return Unscaled().frequencies(width, base)[0] / torch.tensor(self.divisors, dtype=torch.float64), self.sharpen


@dataclass(frozen=True)
class LongRoPEScaling(RotaryScaling):
    """θ_i / long_i in a sequence of more than L positions, θ_i / short_i in others: numbers that a search found.

    Scores are sharpened in both by 1 + ln factor / ln L, whose root is put on cos and sin. Ding et al. (2024),
    "LongRoPE", arXiv 2402.13753, as Phi-3 has it: without the paper's first positions that stay as they are. A cache of
    turned keys must be made anew when the sequence passes L; `at(length)` is the scaling of one length.

    Args:
        factor: new length over that of training, at least 1.
        length: L, that of training, in positions, at least 2.
        short: a number above 0 for each pair.
        long: the same.
        sharpen: what cos and sin are multiplied by; sqrt(1 + ln factor / ln L) when not given.
    """

    factor: float
    length: int
    short: Sequence[float]
    long: Sequence[float]
    sharpen: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_length(self.length, least=2)
        for name, numbers in (("short", self.short), ("long", self.long)):
            if not all(0 < one < math.inf for one in numbers):
                raise ArgumentError(f"{name}: must be numbers above 0, one for each pair, got {numbers!r}")
            object.__setattr__(self, name, tuple(float(one) for one in numbers))
        if len(self.short) != len(self.long):
            raise ArgumentError(
                f"short, long: must have as many numbers, one for each pair, got {len(self.short)} and {len(self.long)}"
            )

    def at(self, length: int) -> RotaryScaling:
        """See the class."""
        sharpen = math.sqrt(1 + math.log(self.factor) / math.log(self.length)) if self.sharpen is None else self.sharpen
        return PairScaling(tuple(self.long if length > self.length else self.short), sharpen)

    def frequencies(self, width: int, base: float) -> tuple[Tensor, float]:
        """Those of sequences no longer than L."""
        return self.at(0).frequencies(width, base)


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


def _check_factor(factor: float) -> None:
    if not (isinstance(factor, (int, float)) and 1 <= factor < math.inf):
        raise ArgumentError(f"factor: must be a number of at least 1, new length over old, got {factor!r}")


def _check_ordered(length: int, *, slow: float, fast: float) -> None:
    if not 0 < slow < fast:
        raise ArgumentError(f"slow, fast: must be numbers of turns with 0 < slow < fast, got {slow!r} and {fast!r}")
    _check_length(length)


def _check_length(length: int, least: int = 1) -> None:
    if not (isinstance(length, int) and length >= least):
        raise ArgumentError(f"length: must be that of training, in positions, at least {least}, got {length!r}")
