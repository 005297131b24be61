"""Dropout of activations."""

import torch
from torch import Tensor, nn

from limelight.backends import extension
from limelight.errors import ArgumentError
from limelight.numerics import has_numbers

_LEVELS = 1 << 16
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1


class Dropout(nn.Module):
    """In training x · m / (1 - p) with m 0 with probability p and else 1, drawn anew for each element; x in evaluation.

    Srivastava et al. (2014), scaled in training as is usual. The same as `nn.Dropout`, but on the CPU faster: in fp32
    the native extension makes each element's random bits from its place and one seed, on all threads, and makes them
    anew in the backward pass, so that nothing is stored; else one 64-bit random number serves four elements, p being
    rounded to a multiple of 2^-16. The seed and the numbers come from torch's default generator.

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
        if extension.takes(x) and not torch.compiler.is_compiling() and has_numbers(x):
            return _Dropped.apply(x, self.p, int(torch.randint(_HIGHEST, ())))  # pyright: ignore
        dropped = round(self.p * _LEVELS)
        # 64 random bits are four levels, each uniform in [-2^15, 2^15 - 1].
        bits = torch.randint(_LOWEST, _HIGHEST, (x.numel() // 4 + 1,))
        level = bits.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (level >= dropped - _LEVELS // 2).to(x.dtype)
        return x * keep.mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        """The share dropped."""
        return f"p={self.p}"


class _Dropped(torch.autograd.Function):
    """Dropout by the native extension; its own backward pass."""

    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.p, ctx.seed = p, seed
        module = extension.native()
        assert module is not None
        x = x.contiguous()
        y = torch.empty_like(x)
        module.activation_dropout((x.data_ptr(), y.data_ptr(), x.numel(), p, seed, torch.get_num_threads()))
        return y

    @staticmethod
    def backward(ctx, *grad_outputs):
        return _Dropped.apply(grad_outputs[0], ctx.p, ctx.seed), None, None
