"""Tiny parallel text for tests of training, and settings that learn it in seconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijk"

TINY: dict[str, Any] = {
    "tokens": "word",
    "embedding": 11,
    "hidden": 13,
    "batch_tokens": 64,
    "warmup": 3,
    "dev": 7,
    "test": 5,
    "threads": 1,
}
"""Settings of a run whose updates take a few milliseconds."""


def write_reversal(path: Path, count: int, *, seed: int = 61, longest: int = 5, letters: str = LETTERS) -> Path:
    """Write `count` pairs of letters and the same letters in reverse, one to `longest` of them."""
    chosen = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [chosen.choice(letters) for _ in range(chosen.randint(1, longest))]
        rows.append(f"{' '.join(words)}\t{' '.join(reversed(words))}\n")
    path.write_text("".join(rows), encoding="utf-8")
    return path
