"""Position biases: numbers that are added to the scores by the distance of key and query, never expanded to T x S."""

from limelight.biases.alibi import alibi
from limelight.biases.protocol import Bias
from limelight.biases.relative import relative, t5_buckets

__all__ = ["Bias", "alibi", "relative", "t5_buckets"]
