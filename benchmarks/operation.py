"""The operation: `attend` and `look` against torch's fused attention and the textbook, forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Timing, interleaved
from limelight import additive, attend, causal, look


@dataclass(frozen=True)
class Case:
    """One row of the table: sizes and what is computed."""

    name: str
    shape: tuple[int, int, int, int]  # B, H, T = S, D
    masked: bool = False
    additive: bool = False


CASES = (
    Case("dot T 512", (1, 8, 512, 64)),
    Case("dot T 2048", (1, 8, 2048, 64)),
    Case("causal T 2048", (1, 8, 2048, 64), masked=True),
    Case("translation 64 x 8 x 32", (64, 8, 32, 32)),
    Case("additive (32, 40, 40, 256)", (32, 1, 40, 256), additive=True),
    Case("additive (8, 256, 256, 256)", (8, 1, 256, 256), additive=True),
)


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """Check each case against the reference in float64, then time it."""
    for case in CASES:
        torch.manual_seed(1)
        b, h, t, d = case.shape
        inputs = [torch.randn(b, h, t, d, requires_grad=True) for _ in range(3)]
        vector = torch.randn(d) / d**0.5
        sides = _sides(case, vector)
        for name, side in sides.items():
            _check(case, name, side, inputs, vector)
        for direction in ("forward", "forward + backward"):
            calls = {name: _call(side, inputs, direction) for name, side in sides.items()}
            yield from _rows(case, direction, interleaved(calls, rounds=rounds))


def _sides(case: Case, vector: Tensor) -> dict[str, Callable[..., Tensor]]:
    mask = causal() if case.masked else None
    score = additive(vector) if case.additive else None

    def seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return look(q, k, v, score=score, mask=mask, observe=("received", "entropy"))[0]

    ours: dict[str, Callable[..., Tensor]] = {
        "limelight": lambda q, k, v: attend(q, k, v, score=score, mask=mask),
        "limelight, looking": seen,
    }
    if case.additive:
        return ours | {"torch eager": lambda q, k, v: _additive(q, k, v, vector)}
    return ours | {
        "torch fused, blind": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=case.masked),
        "torch eager": lambda q, k, v: _textbook(q, k, v, case.masked),
    }


def _textbook(q: Tensor, k: Tensor, v: Tensor, masked: bool) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if masked:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v


def _additive(q: Tensor, k: Tensor, v: Tensor, vector: Tensor) -> Tensor:
    return (torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3)) @ vector).softmax(-1) @ v


def _check(case: Case, name: str, side: Callable[..., Tensor], inputs: list[Tensor], vector: Tensor) -> None:
    """The first sentence and head against the reference in float64."""
    q, k, v = (x[:1, :1].detach().double() for x in inputs)
    score = additive(vector.double()) if case.additive else None
    want = attend(q, k, v, score=score, mask=causal() if case.masked else None, backend="reference")
    got = side(*inputs)[:1, :1].detach().double()
    error = float((got - want).norm() / want.norm())
    if not error < 1e-5:
        raise AssertionError(f"{case.name}, {name}: relative error {error:.1e} against the reference, not timed")


def _call(side: Callable[..., Tensor], inputs: list[Tensor], direction: str) -> Callable[[], object]:
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return side(*inputs)

        return forward
    return lambda: torch.autograd.grad(side(*inputs).sum(), inputs)


def _rows(case: Case, direction: str, timings: dict[str, Timing]) -> Iterator[dict[str, Any]]:
    ours = timings["limelight"].median
    for name, timing in timings.items():
        yield {
            "case": case.name,
            "direction": direction,
            "side": name,
            "ms": round(1e3 * timing.median, 3),
            "ms_quartiles": [round(1e3 * timing.low, 3), round(1e3 * timing.high, 3)],
            "time_over_limelight": round(timing.median / ours, 2),
        }
