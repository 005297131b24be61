"""Attention rollout over layers, for chosen targets, in linear memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limelight.errors import ArgumentError
from limelight.indexing import parse
from limelight.masks.block import positions
from limelight.view.attention import AttentionView


def rollout(views: Sequence[AttentionView], targets: int | Sequence[int]) -> Tensor:
    """How much of each input position flows into the chosen positions of the last layer.

    The rows `targets` of Ã_L · ... · Ã_1 with Ã = 0.5 A + 0.5 I, A being the mean over the heads of a layer's
    self-attention and 0.5 I the residual connection. Abnar and Zuidema 2020 (arXiv 2005.00928, section 3). The rows are
    multiplied through the layers from the last to the first, so that no T x T matrix is ever held. Differentiable as
    the views are.

    Arguments:
        views: one per layer, from the first layer to the last, [..., H, T, T] each, of the same leading axes and T.
        targets: positions of the last layer, an integer or several.

    Result: [..., n, T] for n targets, [..., T] for one integer; each row sums to 1 where the rows of the layers do.

    Errors: ArgumentError for no views, views that are not square or do not fit one another, or a target out of range.

    Example: `rollout(views, [0, 5])` with 6 views [1, 8, 300, 300] is [1, 2, 300].
    """
    views = [] if isinstance(views, AttentionView) else list(views)
    if not views or not all(isinstance(one, AttentionView) for one in views):
        raise ArgumentError(
            "rollout(views): give a list of views, one per layer at least, from the first layer to the last."
        )
    shapes = [view.shape[:-3] + view.shape[-2:] for view in views]
    if any(shape != shapes[0] for shape in shapes) or shapes[0][-1] != shapes[0][-2]:
        raise ArgumentError(
            f"rollout(views): every view must be of self-attention, [..., H, T, T], with the same leading axes and T; "
            f"without heads they are {[list(shape) for shape in shapes]}."
        )
    (axis,) = parse((targets,), shapes[0][-1:])
    chosen = positions(axis.selector, views[-1].device)
    own = torch.zeros(axis.size, shapes[0][-1], dtype=views[-1].dtype, device=views[-1].device)
    own[torch.arange(axis.size, device=own.device), chosen] = 1.0
    rows = 0.5 * views[-1].mean()[..., chosen, :] + 0.5 * own
    for view in reversed(views[:-1]):
        rows = 0.5 * (rows @ view.mean()) + 0.5 * rows
    return rows if axis.stays else rows.squeeze(-2)
