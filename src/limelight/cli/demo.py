"""`limelight demo`: the main job from beginning to end, on a corpus that comes with the package."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli.options import Threads, stderr

if TYPE_CHECKING:
    from limelight.data.phrases import Phrase
    from limelight.translator import Translation, Translator

# The phrases have some 600 words, each a token; a small model learns them in seconds.
_SETTINGS: dict[str, Any] = {
    "tokens": "word",
    "attention": "bahdanau",
    "embedding": 64,
    "hidden": 128,
    "dropout": 0.1,
    "label_smoothing": 0.0,
    "rate": 4e-3,
    "warmup": 50,
    "batch_tokens": 2048,
    "epochs": 5,
}


def demo(
    to: Annotated[str, typer.Option(help="The language to translate to, any locale of the babel package.")] = "de",
    source: Annotated[str, typer.Option("--from", help="The language to translate from.")] = "en",
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")] = False,
    size: Annotated[int, typer.Option(help="Phrases to generate.", min=1000)] = 20_000,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.", min=1)] = _SETTINGS["epochs"],
    seed: Annotated[int, typer.Option(help="Fixes everything.", min=0)] = 1,
    threads: Threads = None,
) -> None:
    """Learn to translate times, dates, durations and units, in under a minute, and look at the attention.

    The phrases are written by Unicode CLDR's rules for both languages, with their word alignment, so that what the model
    attends to can be held against what it should. Everything goes into --out, the figures into report.json.
    """
    from limelight.data.phrases import generate, split_phrases
    from limelight.training import train
    from limelight.training.progress import default_display

    display = default_display()
    display.say(f"writing phrases in {source} and {to}")
    phrases = generate(source, to, size=size, seed=seed)
    parts = dict(zip(("train", "dev", "test"), split_phrases(phrases, seed=seed), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "dev"):
            _write(Path(folder) / f"{name}.tsv", parts[name])
        translator, progress = train(
            Path(folder) / "train.tsv",
            dev_file=Path(folder) / "dev.tsv",
            out=out,
            overwrite=overwrite,
            display=display,
            seed=seed,
            threads=threads,
            **_SETTINGS | {"epochs": epochs},
        )
    if not progress.finished:
        print("stopped; start it again when you like", file=sys.stderr)
        raise typer.Exit(130)
    report = _evaluate(translator, parts["test"], out) | {"train_seconds": round(progress.seconds, 2)}
    _conclude(translator, parts["test"], report, out)


def _write(path: Path, phrases: "list[Phrase]") -> None:
    from limelight.data import Pair, write_tsv

    write_tsv(path, (Pair(phrase.source, phrase.target) for phrase in phrases))


def _evaluate(translator: "Translator", phrases: "list[Phrase]", out: Path) -> dict[str, Any]:
    """Score the held-out phrases; the test part and its gold alignments are left in the run folder."""
    from limelight.evaluation.alignment import Alignment, aer, format_pharaoh
    from limelight.evaluation.quality import corpus_quality
    from limelight.files import atomic_write
    from limelight.training.run import versions

    gold = [Alignment(phrase.links, phrase.possible) for phrase in phrases]
    _write(out / "data" / "test.tsv", phrases)
    with atomic_write(out / "data" / "test.align", "w") as file:
        file.writelines(format_pharaoh(alignment) + "\n" for alignment in gold)
    found = translator.translate([phrase.source for phrase in phrases], observe=False)
    quality = corpus_quality([t.text for t in found], [[phrase.target] for phrase in phrases])
    alignment = aer(translator.align((phrase.source, phrase.target) for phrase in phrases), gold)
    return {
        "exact_match": round(quality.exact_match, 5),
        "bleu": round(quality.bleu, 3),
        "bleu_signature": quality.bleu_signature,
        "chrf": round(quality.chrf, 3),
        "chrf_signature": quality.chrf_signature,
        "aer": round(alignment.aer, 4),
        "alignment_precision": round(alignment.precision, 4),
        "alignment_recall": round(alignment.recall, 4),
        "test_phrases": len(phrases),
        "parameters": sum(p.numel() for p in translator.model.parameters()),
        "versions": versions(),
        "command": sys.argv,
    }


def _conclude(translator: "Translator", phrases: "list[Phrase]", report: dict[str, Any], out: Path) -> None:
    """Show some translations and one picture; write the picture and the report."""
    from rich.console import Console
    from rich.table import Table

    from limelight.files import atomic_write
    from limelight.pictures.figure import save_heatmap
    from limelight.pictures.terminal import heatmap

    chosen = _some(phrases)
    found = translator.translate([phrase.source for phrase in chosen])
    table = Table("held-out phrase", "translation", "", box=None, pad_edge=False)
    for phrase, translation in zip(chosen, found, strict=True):
        table.add_row(phrase.source, translation.text, "right" if translation.text == phrase.target else "wrong")
    shown = max(found, key=_interest)
    console = Console(highlight=False)
    console.print(table)
    console.print()
    if shown.weights is not None:
        console.print(heatmap(shown.weights, shown.source_tokens, shown.target_tokens))
        save_heatmap(out / "attention.png", shown.weights, shown.source_tokens, shown.target_tokens)
    with atomic_write(out / "report.json", "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    console.print(
        f"exact match {100 * report['exact_match']:.2f} %   BLEU {report['bleu']:.2f}   chrF {report['chrf']:.2f}   "
        f"AER {report['aer']:.3f}   ({report['test_phrases']} held-out phrases, {report['train_seconds']:.0f} s of training)"
    )
    stderr().print(f"wrote {out / 'report.json'} and {out / 'attention.png'}", markup=False, soft_wrap=True)
    stderr().print(f'try   limelight translate {out} "{shown.source}" --show', markup=False, soft_wrap=True)


def _some(phrases: "list[Phrase]") -> "list[Phrase]":
    """The first phrase of each kind."""
    return list({phrase.kind: phrase for phrase in reversed(phrases)}.values())


def _interest(translation: "Translation") -> tuple[int, int]:
    """Pictures are most interesting where words change places, and fit a terminal."""
    links = sorted(translation.links(), key=lambda link: link[1])
    crossings = sum(a[0] > b[0] for a, b in zip(links, links[1:], strict=False))
    return crossings if len(translation.source_tokens) <= 14 else 0, len(translation.target_tokens)
