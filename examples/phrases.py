"""Learn to translate dates and times from English to Spanish, then look at what each word was made from.

python examples/phrases.py [folder] [size] [epochs]
"""

import sys
from pathlib import Path

from rich.console import Console

import limelight
from limelight.data import Pair, write_tsv
from limelight.data.phrases import generate, split_phrases
from limelight.evaluation.alignment import Alignment, aer
from limelight.pictures.terminal import heatmap


def main(folder: Path, size: int, epochs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, dev, test = split_phrases(generate("en", "es", size=size), dev=size // 20, test=size // 20)
    for name, part in (("train", train), ("dev", dev)):
        write_tsv(folder / f"{name}.tsv", (Pair(phrase.source, phrase.target) for phrase in part))

    translator, progress = limelight.train(
        folder / "train.tsv",
        dev_file=folder / "dev.tsv",
        out=folder / "run",
        overwrite=True,
        attention="general",
        tokens="word",
        embedding=64,
        hidden=128,
        label_smoothing=0.0,
        rate=3e-3,
        warmup=100,
        batch_tokens=512,
        epochs=epochs,
    )
    print(f"dev BLEU {progress.best:.1f} after {progress.seconds:.0f} s")

    example = translator.translate([test[0].source])[0]
    print(example.source, "->", example.text)
    if example.weights is not None:
        Console().print(heatmap(example.weights, example.source_tokens, example.target_tokens))

    links = translator.align((phrase.source, phrase.target) for phrase in test)
    gold = [Alignment(phrase.links, phrase.possible) for phrase in test]
    print(f"AER {aer(links, gold).aer:.3f} on {len(test)} held-out phrases")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0] if given else "runs/phrases"),
        int(given[1]) if len(given) > 1 else 20_000,
        int(given[2]) if len(given) > 2 else 5,
    )
