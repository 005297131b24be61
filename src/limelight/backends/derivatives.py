"""Gradients that have no gradient of their own, and say so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.errors import BackendError


class _Final(torch.autograd.Function):
    """The identity, with no derivative. torch's own guard does not see that a gradient depends on saved inputs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, gradient: Tensor, backend: str) -> Tensor:
        ctx.backend = backend
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        raise BackendError(
            f"backend {ctx.backend!r} has first derivatives only, and this is a gradient of its gradient. "
            "Use backend='reference', or leave out create_graph=True."
        )


def final(gradients: tuple[Tensor | None, ...], backend: str) -> tuple[Tensor | None, ...]:
    """The gradients; those of a pass with create_graph=True raise BackendError when they are differentiated again."""
    if not torch.is_grad_enabled():
        return gradients
    return tuple(
        None if one is None else _Final.apply(one.new_zeros(()).requires_grad_(), one, backend) for one in gradients
    )
