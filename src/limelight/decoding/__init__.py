"""Decoding: from a model's `step` to sentences. Nothing here knows which model it is."""

from limelight.decoding.beam import beam_search
from limelight.decoding.greedy import greedy_search
from limelight.decoding.hypothesis import Hypothesis, SearchLimits

__all__ = ["Hypothesis", "SearchLimits", "beam_search", "greedy_search"]
