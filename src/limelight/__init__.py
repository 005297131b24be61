"""Limelight: attention you can look at.

`attend` is one exact attention operation for every mechanism; `look` is the same call and a view of its weights;
`explain` says which backend runs a call and why the others cannot. Importing does no work.
"""

from limelight import masks, scores
from limelight.attend import Explanation, attend, explain, look
from limelight.masks import causal, dense, lengths, window
from limelight.scores import additive, concat, dot, general, tile_score
from limelight.view import AttentionView, Links, top

__version__ = "0.1.0"

__all__ = [
    "AttentionView",
    "Explanation",
    "Links",
    "__version__",
    "additive",
    "attend",
    "causal",
    "concat",
    "dense",
    "dot",
    "explain",
    "general",
    "lengths",
    "look",
    "masks",
    "scores",
    "tile_score",
    "top",
    "window",
]
