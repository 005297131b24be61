"""Normalisation of activations."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError

Norm = Literal["layer", "rms"]


class RMSNorm(nn.Module):
    """g x / sqrt(mean(x²) + ε) along the last axis, g [C] learned. Zhang and Sennrich (2019), arXiv 1910.07467, eq. 4.

    Layer normalisation without the mean and the shift. The root is taken in float32 or wider.

    Args:
        width: C.
        epsilon: ε.
    """

    def __init__(self, width: int, epsilon: float = 1e-6):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C], in the dtype of x."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)).to(x.dtype) * self.weight


def make_norm(kind: Norm, width: int) -> nn.Module:
    """Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450, equation 3), or `RMSNorm`.

    Raises:
        ArgumentError: the kind is neither "layer" nor "rms".
    """
    if kind not in get_args(Norm):
        raise ArgumentError(f"norm: must be 'layer' or 'rms', got {kind!r}")
    return nn.LayerNorm(width) if kind == "layer" else RMSNorm(width)
