"""What can be gathered when `look` is called, and the strongest links as an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from limelight.backends.protocol import NOTHING, Gather
from limelight.contract import require_count
from limelight.errors import ArgumentError

_NAMES = ("received", "entropy", "distance")


class Links(NamedTuple):
    """The strongest links of each query: indices, int64, and weights, both [..., H, T, k], strongest first.

    Where a query has fewer than k links, the rest has index -1 and weight 0.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Observation:
    """Something that is gathered when `look` is called: a name, and k for `top`."""

    name: str
    k: int = 0


def top(k: int) -> Observation:
    """Ask `look(observe=(top(k),))` for the k strongest links of each query.

    Errors: ArgumentError if k is not an integer of at least 1.
    """
    require_count("k", k, least=1)
    return Observation("top", k)


def check_observations(observe: str | Observation | Sequence[str | Observation]) -> tuple[Observation, ...]:
    """The observations asked for, or ArgumentError with the known names."""
    wanted = []
    for one in observe if isinstance(observe, Iterable) and not isinstance(observe, str) else (observe,):
        if isinstance(one, Observation):
            wanted.append(one)
        elif one in _NAMES:
            wanted.append(Observation(one))
        else:
            known = ", ".join(map(repr, _NAMES))
            raise ArgumentError(f"observe: known are {known} and top(k), limelight.top; not {one!r}.")
    return tuple(wanted)


def gather_of(observe: Sequence[Observation], keys: int) -> Gather:
    """The observations as a backend takes them, for S keys."""
    if not observe:
        return NOTHING
    names = {one.name for one in observe}
    most = max([one.k for one in observe] or [0])
    return Gather("received" in names, "entropy" in names, min(most, keys), "distance" in names)
