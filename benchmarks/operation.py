"""The operation: `attend` and `look` against what users would take instead, forward and backward.

Each case is checked against the reference in float64 first; then all sides are timed in turn, in one run. Keras on
TensorFlow, TensorFlow with XLA and JAX run in processes of their own where `--peers` names a Python that has them:

python -m venv peers && peers/bin/pip install tensorflow-cpu keras jax
python -m benchmarks.run --only operation --peers peers/bin/python
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peer import peak_beyond
from benchmarks.process import Process
from benchmarks.timing import Timing, for_a_while
from limelight import additive, attend, causal, lengths, look, top
from limelight.backends import extension

Side = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table: sizes and what is computed."""

    name: str
    shape: tuple[int, int, int, int]  # B, H, T, D
    keys: int = 0  # S; 0: T
    groups: int = 0  # key heads; 0: H
    causal: bool = False
    additive: bool = False
    padded: bool = False
    dtype: torch.dtype = torch.float32
    directions: tuple[str, ...] = ("forward", "forward + backward")
    calls: int = 1  # timed together

    @property
    def operations(self) -> int:
        """Multiplications and additions of the forward pass of a dot product."""
        b, h, t, d = self.shape
        return 4 * b * h * t * (self.keys or t) * d // (2 if self.causal else 1)


_FORWARD = ("forward",)
CASES = (
    Case("dot (1, 8, 512, 64)", (1, 8, 512, 64)),
    Case("dot (1, 8, 2048, 64)", (1, 8, 2048, 64)),
    Case("dot (1, 8, 4096, 64)", (1, 8, 4096, 64)),
    Case("dot (1, 8, 8192, 64)", (1, 8, 8192, 64), directions=_FORWARD),
    Case("one head (1, 1, 512, 64)", (1, 1, 512, 64)),
    Case("causal (1, 8, 512, 64)", (1, 8, 512, 64), causal=True),
    Case("causal (1, 8, 2048, 64)", (1, 8, 2048, 64), causal=True),
    Case("causal (1, 8, 4096, 64)", (1, 8, 4096, 64), causal=True, directions=_FORWARD),
    Case("dot (1, 8, 512, 128)", (1, 8, 512, 128)),
    Case("dot (1, 8, 2048, 128)", (1, 8, 2048, 128)),
    Case("causal (1, 8, 2048, 128)", (1, 8, 2048, 128), causal=True),
    Case("bf16 dot (1, 8, 2048, 64)", (1, 8, 2048, 64), dtype=torch.bfloat16),
    Case("translation (64, 8, 32, 32)", (64, 8, 32, 32)),
    Case("translation, lengths (64, 8, 32, 32)", (64, 8, 32, 32), padded=True),
    Case("one query (1, 8, 1, 64), 32,768 keys", (1, 8, 1, 64), keys=32768, directions=_FORWARD),
    Case(
        "one query (1, 32, 1, 128), 8 key heads, 4,096 keys", (1, 32, 1, 128), keys=4096, groups=8, directions=_FORWARD
    ),
    Case(
        "one query (1, 32, 1, 128), 4 key heads, 4,096 keys", (1, 32, 1, 128), keys=4096, groups=4, directions=_FORWARD
    ),
    Case("8 queries (1, 8, 8, 64), 32,768 keys", (1, 8, 8, 64), keys=32768, directions=_FORWARD),
    Case("16 queries (1, 8, 16, 64), 32,768 keys", (1, 8, 16, 64), keys=32768, directions=_FORWARD),
    Case("hardly any work (1, 1, 1, 16), 8 keys", (1, 1, 1, 16), keys=8, calls=20),
    Case("a decoder's step (64, 4, 1, 64), 20 keys", (64, 4, 1, 64), keys=20, calls=20),
    Case("a decoder's step, additive (64, 1, 1, 256), 20 keys", (64, 1, 1, 256), keys=20, additive=True, calls=20),
    Case("additive (32, 40, 40, 256)", (32, 1, 40, 256), additive=True),
    Case("additive (8, 256, 256, 256)", (8, 1, 256, 256), additive=True),
    Case("additive (1, 1024, 1024, 256)", (1, 1, 1024, 256), additive=True),
    Case("additive (1, 4096, 4096, 128)", (1, 1, 4096, 128), additive=True, directions=_FORWARD),
)
LONG = Case("dot (1, 1, 65536, 64), once", (1, 1, 65536, 64), directions=_FORWARD)


def rows(seconds: float, peers: Path | None, only: str = "") -> Iterator[dict[str, Any]]:
    """Check each case whose name contains `only`, then time it for about so many seconds a side."""
    others = [Process(peers, name) for name in ("keras", "jax")] if peers else []
    native = extension.native()
    peak = native.multiply_add_peak(torch.get_num_threads()) if native else None
    for case in (*CASES, LONG):
        if only not in case.name:
            continue
        inputs, keywords, vector = _inputs(case)
        sides = _sides(case, keywords, vector) if case is not LONG else _ours(keywords)
        for name, side in sides.items():
            _check(case, name, side, inputs, keywords)
        for direction in case.directions:
            backward = direction != "forward"
            timed: dict[str, Callable[[], float | None]] = {
                name: _timed(_call(side, inputs, backward), case.calls) for name, side in sides.items()
            }
            memory = {name: _memory(_call(side, inputs, backward)) for name, side in sides.items()}
            if not case.keys and not case.padded and case.dtype is torch.float32 and case is not LONG:
                for other in others:
                    for name in other.prepare(_told(case, backward)):
                        timed[name] = lambda other=other, name=name: other.seconds(name)
                        memory[name] = other.memory(name)
            timings = for_a_while(timed, seconds=seconds if case is not LONG else 0)
            yield from _rows(case, direction, timings, memory, peak)
    for other in others:
        other.close()


def _inputs(case: Case) -> tuple[list[Tensor], dict[str, Any], Tensor]:
    torch.manual_seed(1)
    b, h, t, d = case.shape
    keys = case.groups or h, case.keys or t
    inputs = [torch.randn(b, *some, d).to(case.dtype).requires_grad_() for some in ((h, t), keys, keys)]
    vector = torch.randn(d) / d**0.5
    keywords: dict[str, Any] = {}
    if case.causal:
        keywords["mask"] = causal()
    if case.padded:
        keywords["mask"] = lengths(torch.randint(8, t + 1, (b,)))
    if case.additive:
        keywords["score"] = additive(vector)
    return inputs, keywords, vector


def _ours(keywords: dict[str, Any]) -> dict[str, Side]:
    def seen(*observe: Any) -> Side:
        return lambda q, k, v: look(q, k, v, observe=observe, **keywords)[0]

    return {
        "limelight": lambda q, k, v: attend(q, k, v, **keywords),
        "limelight, received + entropy": seen("received", "entropy"),
        "limelight, received + entropy + top 8": seen("received", "entropy", top(8)),
    }


def _sides(case: Case, keywords: dict[str, Any], vector: Tensor) -> dict[str, Side]:
    sides = _ours(keywords)
    t = case.shape[2]
    if case.additive:
        if t <= 1024:  # beyond that it takes gigabytes
            sides["torch eager, weights"] = lambda q, k, v: _additive(q, k, v, vector)
            sides["torch.compile"] = torch.compile(lambda q, k, v: _additive(q, k, v, vector), dynamic=False)
        return sides
    allowed = None
    if case.padded:
        allowed = (torch.arange(t) < keywords["mask"].count[:, None])[:, None, None]
    sides["torch SDPA, blind"] = lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, is_causal=case.causal, enable_gqa=bool(case.groups)
    )
    if t <= 4096:
        sides["torch eager, weights"] = lambda q, k, v: _textbook(q, k, v, case.causal, allowed)
    return sides


def _textbook(q: Tensor, k: Tensor, v: Tensor, causal: bool, allowed: Tensor | None) -> Tensor:
    if k.shape[1] != q.shape[1]:
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ v


def _additive(q: Tensor, k: Tensor, v: Tensor, vector: Tensor) -> Tensor:
    return (torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3)) @ vector).softmax(-1) @ v


def _check(case: Case, name: str, side: Side, inputs: list[Tensor], keywords: dict[str, Any]) -> None:
    """The first sentence and head, their last queries, against the reference in float64."""
    if case.dtype is torch.float32:
        some = min(case.shape[2], 512)
        last = slice(case.shape[2] - some, None)
        narrow = [inputs[0].detach(), *(x.detach() for x in inputs[1:])]
        with torch.no_grad():
            got = side(*narrow)[:1, :1, last].double()
        wide = [inputs[0].detach()[:1, :1, last].double(), *(x.detach()[:1, :1].double() for x in inputs[1:])]
        same = dict(keywords)
        if case.padded:
            same["mask"] = lengths(keywords["mask"].count[:1])
        if case.additive:
            same["score"] = additive(keywords["score"].vector.double())
        want = attend(*wide, backend="streaming" if case is LONG else "reference", **same)
        error = float((got - want).norm() / want.norm())
        if not error < 1e-5:
            raise AssertionError(f"{case.name}, {name}: relative error {error:.1e} against the reference, not timed")


def _call(side: Side, inputs: list[Tensor], backward: bool) -> Callable[[], object]:
    if backward:
        return lambda: torch.autograd.grad(side(*inputs).sum(), inputs)

    def forward() -> Tensor:
        with torch.no_grad():
            return side(*inputs)

    return forward


def _timed(call: Callable[[], object], calls: int) -> Callable[[], None]:
    def timed() -> None:
        for _ in range(calls):
            call()

    return timed


def _memory(call: Callable[[], object]) -> int:
    """Once to warm up, then the peak beyond what was there."""
    call()
    return peak_beyond(call)


def _told(case: Case, backward: bool) -> dict[str, Any]:
    told = asdict(case) | {"backward": backward, "threads": torch.get_num_threads()}
    return {key: value for key, value in told.items() if key not in ("dtype", "directions", "calls")}


def _rows(
    case: Case, direction: str, timings: dict[str, Timing], memory: dict[str, int | None], peak: float | None
) -> Iterator[dict[str, Any]]:
    ours = timings["limelight"].median
    for name, together in timings.items():
        timing = Timing(*(seconds / case.calls for seconds in (together.median, together.low, together.high)))
        row = {
            "case": case.name,
            "direction": direction,
            "side": name,
            "ms": round(1e3 * timing.median, 4),
            "ms_quartiles": [round(1e3 * timing.low, 4), round(1e3 * timing.high, 4)],
            "time_over_limelight": round(together.median / ours, 2),
            "peak_MiB": None if memory[name] is None else round(memory[name] / 2**20, 1),
        }
        if peak and direction == "forward" and not case.additive and name.startswith("limelight"):
            row["of_fma_peak"] = f"{100 * case.operations / timing.median / peak:.0f} %"
        yield row
