"""A language of eleven words that a tiny model learns in a second: each has one translation, and order stays."""

import random
from pathlib import Path
from typing import Any

import torch

from limelight.training import train
from limelight.training.progress import Silent
from limelight.translator import Translator

WORDS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "red", "green", "big", "small"],
        ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "rot", "grün", "groß", "klein"],
        strict=True,
    )
)
TINY: dict[str, Any] = {
    "tokens": "word",
    "attention": "general",
    "hidden": 31,
    "embedding": 17,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "rate": 0.02,
    "warmup": 10,
    "batch_tokens": 256,
    "epochs": 8,
    "dev": 31,
    "test": 41,
}


def toy_pairs(count: int = 601) -> list[tuple[str, str]]:
    """Distinct sentences of one to five words, with their translations."""
    draw = random.Random(1)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        words = draw.choices(list(WORDS), k=draw.randint(1, 5))
        pairs[" ".join(words)] = " ".join(WORDS[word] for word in words)
    return list(pairs.items())


def write_toy(path: Path, pairs: list[tuple[str, str]] | None = None) -> Path:
    """The pairs as a TSV file."""
    lines = (f"{source}\t{target}\n" for source, target in (toy_pairs() if pairs is None else pairs))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def train_toy(corpus: Path, out: Path, **settings: Any) -> Translator:
    """A run folder and its translator; one thread, so that the weights are the same on every machine."""
    threads = torch.get_num_threads()
    try:
        return train(corpus, out=out, display=Silent(), **TINY | {"threads": 1} | settings)[0]
    finally:
        torch.set_num_threads(threads)


def options(**settings: Any) -> list[str]:
    """Settings as the command line takes them; `TINY` where nothing else is said."""
    return [part for name, value in (TINY | settings).items() for part in (f"--{name.replace('_', '-')}", str(value))]
