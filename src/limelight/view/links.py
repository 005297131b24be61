"""Word alignments from a view, in the Pharaoh format."""

from __future__ import annotations

import torch

from limelight.backends import tiling
from limelight.errors import ArgumentError
from limelight.pharaoh import Link, format_pharaoh
from limelight.view.mean import MeanView


@torch.no_grad()
def pharaoh(view: MeanView, threshold: float | None) -> str:
    """See `AttentionView.alignment`; so many rows at a time that they are one block."""
    *lead, queries, keys = view.shape
    if any(size != 1 for size in lead):
        raise ArgumentError(
            f"alignment(): the view must be of one sequence; its leading axes are {lead}. Look at the sequences one by "
            f"one, or take view.mean()[b].argmax(-1) for the key of each query."
        )
    if threshold is not None and not (isinstance(threshold, (int, float)) and 0 < threshold <= 1):
        raise ArgumentError(
            f"threshold must lie in (0, 1]; it is {threshold!r}. Leave it out to take the best key of each query."
        )
    links: list[Link] = []
    step = max(1, tiling.BUDGET // max(1, keys))
    for start in range(0, queries if keys else 0, step):
        weights = view[..., start : start + step, :].reshape(-1, keys)
        if threshold is None:
            best, place = weights.max(-1)
            found = enumerate(place.tolist())
            links += [(i, j + start) for j, i in found if best[j] > 0]
        else:
            links += [(i, j + start) for j, i in (weights >= threshold).nonzero().tolist()]
    return format_pharaoh(links)
