"""Sparsemax and entmax-1.5: our streaming backend against the matrix stored and sorted, as they are commonly written.

    python -m benchmarks.run --only normalizers
    python -m benchmarks.normalizers SIDE NAME LENGTH PASS    # one side alone, in this process: its peak of memory

The other side sorts whole rows, has the closed gradient of the papers and keeps the weights for it. Outputs and
gradients are held against each other before anything is timed.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer import peak_beyond
from benchmarks.timing import interleaved
from limelight import attend, entmax15, sparsemax
from limelight.normalizers import Normalizer

LENGTHS = (512, 1024, 2048, 4096)
HEADS, WIDTH = 8, 64
_NAMES: dict[str, Normalizer] = {"sparsemax": sparsemax(), "entmax-1.5": entmax15()}


class _Sorted(torch.autograd.Function):
    """Weights of scores [..., S], by sorting, with the gradient of the papers."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, name: str) -> Tensor:
        sparse = name == "sparsemax"
        z = scores - scores.amax(-1, keepdim=True)
        if not sparse:
            z = z / 2
        ordered = z.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
        if sparse:
            thresholds = (ordered.cumsum(-1) - 1) / count
        else:
            mean, square = ordered.cumsum(-1) / count, ordered.square().cumsum(-1) / count
            thresholds = mean - ((1 - count * (square - mean.square())) / count).clamp(min=0).sqrt()
        size = (thresholds < ordered).sum(-1, keepdim=True)
        weights = (z - thresholds.gather(-1, size - 1)).clamp(min=0)
        weights = weights if sparse else weights.square()
        ctx.save_for_backward(weights)
        ctx.sparse = sparse
        return weights

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        slope = (weights > 0).to(weights.dtype) if ctx.sparse else weights.sqrt()
        gradient = grad_outputs[0] * slope
        return gradient - slope * (gradient.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)), None


def rows(rounds: int, longest: int = LENGTHS[-1]) -> Iterator[dict[str, Any]]:
    """A row per normalizer, length, pass and side."""
    for name in _NAMES:
        for length in (one for one in LENGTHS if one <= longest):
            _check(name, length)
            for training in (False, True):
                timings = interleaved(
                    sides(name, length, training), rounds=max(2, min(rounds, rounds * 1024 // length))
                )
                for side, timing in timings.items():
                    yield {
                        "normalizer": name,
                        "T = S": length,
                        "pass": "forward and backward" if training else "forward",
                        "side": side,
                        "ms": round(1000 * timing.median, 1),
                        "quartiles": f"{1000 * timing.low:.1f} to {1000 * timing.high:.1f}",
                        "times as fast as sorting": round(timings["stored and sorted"].median / timing.median, 2),
                        "peak MiB": _peak(side, name, length, training),
                    }


def sides(name: str, length: int, training: bool) -> dict[str, Callable[[], list[Tensor]]]:
    """What is timed: the output, and with `training` the gradients, of [1, HEADS, length, WIDTH]."""
    maker = torch.Generator().manual_seed(1)
    leaves = [torch.randn(1, HEADS, length, WIDTH, generator=maker).requires_grad_(training) for _ in range(3)]

    def sort(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.matmul(query * WIDTH**-0.5, key.mT)
        return torch.matmul(_Sorted.apply(scores, name), value)

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))] if training else [output]

    return {
        "limelight": lambda: run(lambda *x: attend(*x, normalizer=_NAMES[name])),
        "stored and sorted": lambda: run(sort),
    }


def _check(name: str, length: int) -> None:
    ours, theirs = (side() for side in sides(name, length, True).values())
    for have, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-3)


def _peak(side: str, name: str, length: int, training: bool) -> int:
    """MiB that one call of a side adds to the peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.normalizers", side, name, str(length), str(int(training))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """One side, once, after a short call that loads everything."""
    side, name, length, training = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
    sides(name, 64, training)[side]()
    call = sides(name, length, training)[side]
    print(round(peak_beyond(call) / 2**20))


if __name__ == "__main__":
    main()
