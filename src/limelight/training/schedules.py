"""Learning rate schedules: the factor that the peak rate is multiplied by, as a function of the update."""

import math
from typing import Literal

from limelight.errors import ArgumentError

Schedule = Literal["constant", "linear", "cosine", "inverse-sqrt"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine", "inverse-sqrt")


def rate_factor(schedule: Schedule, update: float, *, warmup: int, total: int) -> float:
    """The factor for the update-th update, counted from 1; between two updates for fractions.

    For update < warmup it is update / warmup. From there on, with x = (update - warmup) / (total - warmup), at most 1:

    - constant: 1;
    - linear: 1 - x, but at least 1 %, so that the last updates still move;
    - cosine: (1 + cos(π x)) / 2, with the same floor; Loshchilov and Hutter (2017), equation 5;
    - inverse-sqrt: sqrt(warmup / update), with warmup at least 1; Vaswani et al. (2017), equation 3, scaled to a peak
      of 1.

    Raises:
        ArgumentError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ArgumentError(f"schedule: must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if update < warmup:
        return update / warmup
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return max(0.01, 1 - done)
    if schedule == "cosine":
        return max(0.01, (1 + math.cos(math.pi * done)) / 2)
    if schedule == "inverse-sqrt":
        return math.sqrt(max(1, warmup) / max(1, update))
    return 1.0
