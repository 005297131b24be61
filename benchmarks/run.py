"""`python -m benchmarks.run`: time everything, print it, and write it to benchmarks/results/.

python -m benchmarks.run --only translation --data PATH/TO/multi30k
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import keras_layers, later, multihead, normalizers, operation, translation, watch
from benchmarks.timing import machine, product_peak
from limelight.allocator import keep_freed_memory
from limelight.files import atomic_write

_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("operation", "later", "multihead", "watch", "translation", "normalizers", "keras")
    parser.add_argument("--only", choices=known, help="one part alone")
    parser.add_argument("--data", type=Path, help="a folder with Multi30k's files; without it the embedded phrases")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each side of the operation")
    parser.add_argument("--peers", type=Path, help="a Python that has keras, tensorflow and jax, for the operation")
    parser.add_argument("--case", default="", help="only the cases of operation and keras with this in their name")
    parser.add_argument(
        "--longest", type=int, default=watch.CASES[-1][1], help="tokens, of the parts watch and normalizers"
    )
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts = machine() | {"matrix product, GFLOP/s": f"{product_peak():.0f}", "allocator": "keeps freed memory"}
    console = Console(width=140)
    console.print(facts)
    parts = {
        "operation": lambda: operation.rows(arguments.seconds, arguments.peers, arguments.case),
        "later": lambda: later.rows(arguments.rounds),
        "multihead": lambda: multihead.rows(arguments.seconds),
        "translation": lambda: translation.rows(arguments.data, arguments.rounds),
        "watch": lambda: watch.rows(arguments.rounds, arguments.longest),
        "normalizers": lambda: normalizers.rows(arguments.rounds, min(arguments.longest, normalizers.LENGTHS[-1])),
        "keras": lambda: keras_layers.rows(arguments.seconds, arguments.case),
    }
    for name, measure in parts.items():
        if arguments.only in (None, name):
            found: list[dict[str, Any]] = []
            try:
                for row in measure():
                    console.print(row)
                    found.append(row)
            finally:  # what was measured is kept, whatever ended it
                _print(console, name, found)
                _write(
                    arguments.out / f"{facts['date']}-{name}.json",
                    facts | {"data": str(arguments.data and arguments.data.name)},
                    found,
                )


def _print(console: Console, name: str, found: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in found for key in row))
    table = Table(*columns, title=name, title_justify="left")
    for row in found:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    console.print(table)


def _write(path: Path, facts: dict[str, Any], found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump({"machine": facts, "rows": found}, file, indent=1)
        file.write("\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
