"""Dropout of activations."""

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError

_LEVELS = 1 << 16
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1


class Dropout(nn.Module):
    """In training x · m / (1 - p) with m 0 with probability p and else 1, drawn anew for each element; x in evaluation.

    Srivastava et al. (2014), scaled in training as is usual. The same as `nn.Dropout`, but on the CPU one 64-bit
    random number serves four elements, which is several times faster than a draw for each; p is rounded to a
    multiple of 2^-16. Draws come from torch's default generator.

    Args:
        p: the share of elements dropped, in [0, 1).

    Raises:
        ArgumentError: p is out of range.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ArgumentError(f"dropout: must be in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.p)
        dropped = round(self.p * _LEVELS)
        # 64 random bits are four levels, each uniform in [-2^15, 2^15 - 1].
        bits = torch.randint(_LOWEST, _HIGHEST, (x.numel() // 4 + 1,))
        level = bits.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (level >= dropped - _LEVELS // 2).to(x.dtype)
        return x * keep.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        """The share dropped."""
        return f"p={self.p}"
