"""Questions asked of a view after the call: a pass of the native kernels against the lookup in torch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved
from limelight import causal, look
from limelight.backends import lookup
from limelight.backends.protocol import Gather
from limelight.backends.select import observed
from limelight.masks import Mask

LENGTH, HEADS, WIDTH, TOP = 4096, 8, 64, 8


@torch.no_grad()
def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """Check that both say the same, then time them; `look` itself, with nothing observed, beside them."""
    torch.manual_seed(1)
    inputs = [torch.randn(1, HEADS, LENGTH, WIDTH) for _ in range(3)]
    for name, mask in (("", None), ("causal, ", causal())):
        for question in ("received", "entropy", f"top({TOP})"):
            yield from _rows(f"{name}T {LENGTH}, {HEADS} heads, D {WIDTH}", question, inputs, mask, rounds)


def _rows(case: str, question: str, inputs: list[Tensor], mask: Mask | None, rounds: int) -> Iterator[dict[str, Any]]:
    view = look(*inputs, mask=mask)[1]
    call, lse = view.sound_call(), view.folded_threshold()
    gather = Gather(question == "received", question == "entropy", TOP if question.startswith("top") else 0)

    def native() -> Tensor:
        seen = observed(call, gather)
        found = seen.received if gather.received else seen.entropy if gather.entropy else seen.top and seen.top[1]
        assert found is not None, "the native kernels are not there"
        return found

    def in_torch() -> Tensor:
        if gather.top:
            return lookup.strongest(call, lse, gather.top)[1]
        return lookup.received(call, lse) if gather.received else lookup.entropy(call, lse)

    torch.testing.assert_close(native(), in_torch(), rtol=1e-4, atol=1e-5)
    sides = {"native pass": native, "lookup in torch": in_torch, "look itself": lambda: look(*inputs, mask=mask)}
    timings = interleaved(sides, rounds=rounds)
    for side, timing in timings.items():
        yield {
            "case": case,
            "question": question,
            "side": side,
            "seconds": round(timing.median, 3),
            "quartiles": f"{timing.low:.3f} - {timing.high:.3f}",
            "times as fast as the lookup": round(timings["lookup in torch"].median / timing.median, 1),
        }
