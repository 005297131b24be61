"""Timing several sides in one run, interleaved, so that a machine whose speed drifts is the same for all."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import torch

Side = TypeVar("Side")


@dataclass(frozen=True)
class Timing:
    """Seconds of one side: the median and the quartiles."""

    median: float
    low: float
    high: float


def interleaved(sides: dict[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 1) -> dict[str, Timing]:
    """Call each side in turn, A B C, B C A, ..., and time each call."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(warmup + rounds):
        for name, call in _from(index, sides):
            start = time.perf_counter()
            call()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def for_a_while(sides: dict[str, Callable[[], float | None]], *, seconds: float) -> dict[str, Timing]:
    """As `interleaved`, for about so many seconds a side: 3 rounds at least, 200 at most. A side that was timed
    elsewhere returns its own seconds. Where there is one, each turn is two calls and the second counts: the threads of
    another process spin on for a while after its turn, and whose turn comes next would pay for it.
    """
    told = [call() is not None for call in sides.values()]
    elsewhere = any(told)
    first = {name: _seconds(call) for name, call in sides.items()}
    rounds = int(min(200, max(3, seconds * len(sides) / sum(first.values())))) if seconds else 1
    found: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name, call in _from(index, sides):
            if elsewhere:
                call()
            found[name].append(_seconds(call))
    return {name: _timing(values) for name, values in found.items()}


def _from(index: int, sides: dict[str, Side]) -> list[tuple[str, Side]]:
    """The sides, each round one later: what a side leaves behind, such as gigabytes that it freed, meets them all."""
    turns = list(sides.items())
    start = index % max(1, len(turns))
    return turns[start:] + turns[:start]


def _seconds(call: Callable[[], float | None]) -> float:
    start = time.perf_counter()
    told = call()
    return time.perf_counter() - start if told is None else told


def _timing(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), low, high)


def machine() -> dict[str, str]:
    """What a table has to say about where it was measured."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": model,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def product_peak(size: int = 1024) -> float:
    """GFLOP/s of a square fp32 matrix product through torch: the ceiling of what is bound by products."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = min(interleaved({"mm": lambda: torch.mm(a, b)}, rounds=15)["mm"].low for _ in range(3))
    return 2 * size**3 / best / 1e9
