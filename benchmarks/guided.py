"""Guided alignment: the alignment error rate with and without it, of the same models after the same updates.

    python -m benchmarks.guided FOLDER [EPOCHS]

FOLDER has nt.train.{src,tgt,gold} to learn from and nt.dev.{src,tgt,gold} to measure on, gold in the Pharaoh format.
Everything else is the same in both runs of a model, seed and batches included.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from limelight.data import Corpus
from limelight.evaluation.alignment import aer
from limelight.evaluation.quality import corpus_quality
from limelight.pharaoh import read_pharaoh
from limelight.training import train
from limelight.training.progress import Silent

COMMON: dict[str, Any] = {"lowercase": True, "vocabulary": 4000, "batch_tokens": 2048, "loose_ends": 0, "threads": 1}
COMMON |= {"dev": 100, "test": 0}
MODELS: dict[str, dict[str, Any]] = {
    "RNN, Bahdanau": {"model": "rnn", "attention": "bahdanau", "embedding": 128, "hidden": 128},
    "RNN, Luong general": {"model": "rnn", "attention": "general", "embedding": 128, "hidden": 128},
    "Transformer 2 + 2": {"model": "transformer", "width": 128, "feedforward": 256, "heads": 4, "warmup": 200}
    | {"encoder_layers": 2, "decoder_layers": 2},
}
WEIGHTS = (None, 0.05, 0.3)
"""Of guided alignment; None for none."""


def main(folder: Path, epochs: int) -> None:
    """Train each model with each weight and print a row of a table for each."""
    gold = read_pharaoh(folder / "nt.dev.gold")
    dev = list(Corpus(source=folder / "nt.dev.src", target=folder / "nt.dev.tgt").pairs())
    print("| model | guided weight | AER | precision | recall | BLEU | training, s |\n|---|---|---|---|---|---|---|")
    for name, settings in MODELS.items():
        for weight in WEIGHTS:
            guide = {} if weight is None else {"guided_weight": weight, "guided_alignment": folder / "nt.train.gold"}
            with tempfile.TemporaryDirectory() as out:
                start = time.monotonic()
                translator, _ = train(
                    folder / "nt.train.src",
                    target=folder / "nt.train.tgt",
                    out=Path(out) / "run",
                    epochs=epochs,
                    display=Silent(),
                    **COMMON | settings | guide,
                )
                seconds = time.monotonic() - start
            found = aer(translator.align((pair.source, pair.target) for pair in dev), gold)
            texts = [one.text for one in translator.translate([pair.source for pair in dev], observe=False)]
            bleu = corpus_quality(texts, [[pair.target] for pair in dev], lowercase=True).bleu
            print(
                f"| {name} | {weight or 'none'} | {found.aer:.3f} | {found.precision:.3f} | {found.recall:.3f} "
                f"| {bleu:.1f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6)
