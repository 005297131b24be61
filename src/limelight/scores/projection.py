"""The product of inputs with a score's weight, once per position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limelight.contract import tracing
from limelight.numerics import all_finite, has_numbers


def project(inputs: Tensor, weight: Tensor | None) -> Tensor:
    """W x for each position x.

    A position that nothing attends to adds nothing to the gradient of W, even where it holds NaN or inf. (In a graph
    that is compiled, where nobody may look for them, 0 times NaN is NaN.)

    Arguments:
        inputs: x, [..., H, T, D].
        weight: W, [A, D], or [H, A, D] with one per head; None: there is none.

    Result: [..., H, T, A].
    """
    if weight is None:
        return inputs
    learns = torch.is_grad_enabled() and weight.requires_grad
    if learns and not tracing() and has_numbers(inputs) and not all_finite(inputs):
        if torch.is_autocast_enabled(inputs.device.type):
            dtype = torch.get_autocast_dtype(inputs.device.type)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
        product: Any = _Sparing.apply(inputs, weight)
        return product
    return _product(inputs, weight)


def _product(inputs: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(inputs, weight) if weight.ndim == 2 else torch.matmul(inputs, weight.mT)


class _Sparing(torch.autograd.Function):
    """W x whose gradient to W leaves positions out to which no gradient comes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        used = inputs.masked_fill((gradient == 0.0).all(-1, keepdim=True), 0.0)
        if weight.ndim == 2:  # one product over all positions, as `linear` makes it
            return gradient @ weight, gradient.flatten(0, -2).T @ used.flatten(0, -2)
        return gradient @ weight, (gradient.mT @ used).sum_to_size(weight.shape)
