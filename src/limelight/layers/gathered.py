"""A linear map that is used at each step of a recurrence: the gradient of its weight is one product of all steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from limelight.numerics import has_numbers


class GatheredLinear:
    """y = W x + b, for one forward pass of many steps.

    By itself autograd makes dW = Σ_t dy_t x_tᵀ of T products and T - 1 sums, each as large as W. Here a step's
    backward pass makes only its dx; once all have run, [dy_1 ... dy_T] [x_1 ... x_T]ᵀ is one product. It knows a first
    derivative only; under torch.compile, torch.func and autocast it is a plain linear map.

    Args:
        weight: W, [out, in].
        bias: b, [out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self._uses: dict[int, tuple[Tensor, Tensor]] | None = None
        self._made = 0
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(weight.device.type)
        if torch.is_grad_enabled() and weight.requires_grad and not plain and has_numbers(weight):
            self._uses = {}
            weight, bias = _Gathered.apply(weight, bias, self._uses)  # pyright: ignore
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        if self._uses is None:
            return F.linear(x, self.weight, self.bias)
        self._made += 1
        return _Use.apply(x, self.weight, self.bias, self._uses, self._made)  # pyright: ignore


class _Gathered(torch.autograd.Function):
    """The weight and bias as every step sees them; runs backward once all steps have."""

    @staticmethod
    def forward(ctx, weight, bias, uses):
        ctx.uses, ctx.biased = uses, bias is not None
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.uses:
            return None, None, None
        x, grad = (torch.cat(each) for each in zip(*ctx.uses.values(), strict=True))
        ctx.uses.clear()
        return grad.t() @ x, grad.sum(0) if ctx.biased else None, None


class _Use(torch.autograd.Function):
    """One step: leaves what dW needs of it with the others'."""

    @staticmethod
    def forward(ctx, x, weight, bias, uses, number):
        ctx.save_for_backward(x, weight)
        ctx.uses, ctx.number = uses, number
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        ctx.uses[ctx.number] = x, grad_outputs[0]
        return grad_outputs[0] @ weight if ctx.needs_input_grad[0] else None, None, None, None, None
