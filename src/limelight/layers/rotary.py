"""Rotary positions."""

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers.rotary_scaling import RotaryScaling, Unscaled


class RotaryPositions(nn.Module):
    """Turns pair i of a query or key at position p by the angle p θ_i, so that scores depend on p_key - p_query.

    Su et al. (2021), "RoFormer", arXiv 2104.09864, equation 34. θ_i = base^(-2i/R). Pair i is (x_i, x_{i + R/2}), as in
    Llama and Hugging Face, or (x_2i, x_{2i+1}), as in the paper; nothing else changes, but weights trained for one do
    not fit the other. Angles are computed in float64 and kept as a table, which grows when a longer sequence comes.
    Where a scaling has other angles for sequences of some length, those are computed at each call.

    Args:
        width: R, even: so many columns are turned; the others pass as they are.
        base: 10000 in the paper.
        scaling: one of `LinearScaling`, `NTKScaling`, `DynamicNTKScaling`, `YarnScaling`, `LongRoPEScaling`,
            `Llama3Scaling`.
        interleaved: pairs as in the paper.
        length: positions to make the table for at once.

    Raises:
        ArgumentError: the width is not even or below 2, the base is not above 1, or the scaling has other pairs.
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
        self.base = base
        self.scaling = scaling or Unscaled()
        self._tabled = self.scaling.at(0)
        self.register_buffer("table", self._made(self._tabled, 0, length), persistent=False)

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
        scaling = self.scaling.at(end)
        if scaling != self._tabled:
            cos, sin = self._made(scaling, start, end).to(x)
        else:
            if end > self.table.shape[1]:
                with torch.inference_mode(False):  # training may need the same table later
                    self.table = self._made(scaling, 0, 2 * end).to(self.table)
            cos, sin = self.table[:, start:end].to(x.dtype)
        turned, rest = x[..., : self.width], x[..., self.width :]
        first, second = (turned[..., ::2], turned[..., 1::2]) if self.interleaved else turned.chunk(2, -1)
        pair = first * cos - second * sin, second * cos + first * sin
        turned = torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def _made(self, scaling: RotaryScaling, start: int, end: int) -> Tensor:
        """Cos and sin of the positions start ... end - 1, float32 [2, end - start, R / 2]."""
        frequencies, sharpen = scaling.frequencies(self.width, self.base)
        angle = torch.arange(start, end, dtype=torch.float64)[:, None] * frequencies
        return (torch.stack([angle.cos(), angle.sin()]) * sharpen).float()
