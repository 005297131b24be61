"""Gradients that have no gradient of their own, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.errors import BackendError

REFERENCE = "Use backend='reference', or leave out create_graph=True."
"""The way out where a backend has no second derivative."""


class _Final(torch.autograd.Function):
    """The identity, with no derivative. torch's own guard does not see that a gradient depends on saved inputs.

    anchors: what the gradient depends on, so that whoever differentiates it by one of them comes this way, and a leaf
    of our own for those who differentiate by everything.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, name: str, way_out: str, *anchors: Tensor | None) -> Tensor:
        ctx.name, ctx.way_out = name, way_out
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        raise BackendError(
            f"{ctx.name!r} has first derivatives only, and this is a gradient of its gradient. {ctx.way_out}"
        )


def final(
    gradients: tuple[Tensor | None, ...], name: str, way_out: str = REFERENCE, anchors: Sequence[Tensor | None] = ()
) -> tuple[Tensor | None, ...]:
    """The gradients; those of a pass with create_graph=True raise BackendError when they are differentiated again.

    anchors: the tensors that they were computed from, with their graphs.
    """
    if not torch.is_grad_enabled():
        return gradients
    return tuple(
        None if one is None else _Final.apply(one, name, way_out, one.new_zeros(()).requires_grad_(), *anchors)
        for one in gradients
    )
