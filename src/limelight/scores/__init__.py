"""Scores: how one query meets one key."""

from limelight.scores.additive import additive
from limelight.scores.concat import concat
from limelight.scores.cosine import cosine, qk_norm_start
from limelight.scores.dot import dot
from limelight.scores.gaussian import gaussian
from limelight.scores.general import general
from limelight.scores.protocol import Score, TileGradient
from limelight.scores.tile import tile_score

__all__ = [
    "Score",
    "TileGradient",
    "additive",
    "concat",
    "cosine",
    "dot",
    "gaussian",
    "general",
    "qk_norm_start",
    "tile_score",
]
