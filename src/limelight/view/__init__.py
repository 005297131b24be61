"""AttentionView: the attention matrix as a virtual array, and what is asked of it."""

from limelight.view.attention import AttentionView
from limelight.view.mean import MeanView
from limelight.view.observations import Links, Observation, check_observations, gather_of, pooled, received, rows, top
from limelight.view.rollout import rollout
from limelight.view.sizes import DENSE_LIMIT

__all__ = [
    "DENSE_LIMIT",
    "AttentionView",
    "Links",
    "MeanView",
    "Observation",
    "check_observations",
    "gather_of",
    "pooled",
    "received",
    "rollout",
    "rows",
    "top",
]
