"""Our MultiHeadAttention against torch's, with the same parameters: forward, and a step of training.

python -m benchmarks.run --only multihead

The results of both are held against one another before anything is timed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import for_a_while
from limelight.layers import MultiHeadAttention

WIDTH, HEADS = 512, 8
SIZES = ((8, 128), (4, 512), (1, 2048))
"""(batch, length)."""


def rows(seconds: float) -> Iterator[dict[str, Any]]:
    """A row per size, masks, kind of weights, pass and side; `of torch` is the ratio of the medians."""
    for batch, length in SIZES:
        for masks, arguments in _masks(batch, length).items():
            for need_weights in (False, True):
                for trains in (False, True):
                    calls = sides(batch, length, trains, need_weights=need_weights, **arguments)
                    torch.testing.assert_close(calls["limelight"](), calls["torch"](), rtol=1e-3, atol=1e-4)
                    timings = for_a_while({side: _alone(call) for side, call in calls.items()}, seconds=seconds)
                    for side, timing in timings.items():
                        yield {
                            "batch x length": f"{batch} x {length}",
                            "masks": masks,
                            "need_weights": need_weights,
                            "pass": "forward and backward" if trains else "forward",
                            "side": side,
                            "ms": round(1000 * timing.median, 2),
                            "quartiles": f"{1000 * timing.low:.2f} to {1000 * timing.high:.2f}",
                            "of torch": round(timing.median / timings["torch"].median, 3),
                        }


def sides(batch: int, length: int, trains: bool, **arguments: Any) -> dict[str, Callable[[], Any]]:
    """What is timed: each call returns the output, or the gradient of x, which both sides can be compared by."""
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).train(trains)
    ours = MultiHeadAttention(WIDTH, HEADS, batch_first=True).train(trains)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, length, WIDTH, requires_grad=trains)

    def call(layer: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if not trains:
                with torch.inference_mode():
                    return layer(x, x, x, **arguments)[0]
            layer.zero_grad()
            x.grad = None
            layer(x, x, x, **arguments)[0].square().sum().backward()
            assert x.grad is not None
            return x.grad

        return run

    return {"torch": call(theirs), "limelight": call(ours)}


def _alone(call: Callable[[], Tensor]) -> Callable[[], None]:
    """The call, without what it returns."""

    def run() -> None:
        call()

    return run


def _masks(batch: int, length: int) -> dict[str, dict[str, Any]]:
    counts = torch.linspace(length, length // 2, batch).long()
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    return {
        "none": {},
        "padding": {"key_padding_mask": torch.arange(length) >= counts[:, None]},
        "causal": {"attn_mask": causal, "is_causal": True},
    }
