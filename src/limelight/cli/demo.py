"""`limelight demo`: the main job from beginning to end, on a corpus that comes with the package."""

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli.options import Threads, quoted, say

if TYPE_CHECKING:
    from limelight.data.phrases import Phrase
    from limelight.translator import Translation, Translator

# The phrases have some 600 words, each a token; a small model learns them in seconds.
_SETTINGS: dict[str, Any] = {
    "tokens": "word",
    "loose_ends": 0,
    "attention": "bahdanau",
    "embedding": 64,
    "hidden": 128,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "rate": 4e-3,
    "warmup": 100,
    "batch_tokens": 512,
    "epochs": 3,
}
_OWN_FILES = ("report.json", "attention.png", "data/test.align")  # beside those of every run


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

    The phrases are written by Unicode CLDR's rules for both languages, with their word alignment, so that what the
    model attends to can be held against what it should. Everything goes into --out, the figures into report.json.
    """
    from limelight.data.phrases import generate, split_phrases
    from limelight.training import train
    from limelight.training.progress import default_display

    _check(source, to, out, overwrite)
    display = default_display()
    display.say(f"writing phrases in {source} and {to}")
    phrases = generate(source, to, size=size, seed=seed)
    held_out = {"dev": max(1, size // 40), "test": max(1, size // 20)}
    parts = dict(zip(("train", "dev", "test"), split_phrases(phrases, seed=seed, **held_out), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "dev"):
            _write(Path(folder) / f"{name}.tsv", parts[name])
        translator, progress = train(
            Path(folder) / "train.tsv",
            dev_file=Path(folder) / "dev.tsv",
            out=out,
            overwrite=overwrite,
            display=display,
            **_SETTINGS | {"epochs": epochs, "seed": seed, "threads": threads},
        )
    if not progress.finished:
        say("stopped; start again with --overwrite")
        raise typer.Exit(130)
    display.say(f"translating and aligning {len(parts['test'])} held-out phrases")
    report = _evaluate(translator, parts["test"], out) | {"train_seconds": round(progress.seconds, 2)}
    _conclude(translator, parts["test"], report, out)


def _check(source: str, to: str, out: Path, overwrite: bool) -> None:
    """Refuse what cannot go well before the work begins; with `overwrite` remove what only a demo leaves."""
    from limelight.data.phrases.locales import parse_locale
    from limelight.errors import ArgumentError, OutputError

    if parse_locale(source, "--from") == parse_locale(to, "--to"):
        raise ArgumentError(f"to: must differ from --from, got {to!r} for both; name another locale, such as 'de'")
    if overwrite:
        for name in _OWN_FILES:
            (out / name).unlink(missing_ok=True)
    elif out.is_dir() and any(out.iterdir()):
        raise OutputError(f"out: {out} exists and is not empty; replace it (--overwrite) or choose another (--out)")


def _write(path: Path, phrases: "list[Phrase]") -> None:
    from limelight.data import Pair, write_tsv

    write_tsv(path, (Pair(phrase.source, phrase.target) for phrase in phrases))


def _evaluate(translator: "Translator", phrases: "list[Phrase]", out: Path) -> dict[str, Any]:
    """Score the held-out phrases; the test part and its gold alignments are left in the run folder."""
    from limelight.evaluation.alignment import aer
    from limelight.evaluation.quality import corpus_quality
    from limelight.files import atomic_write
    from limelight.pharaoh import Alignment, format_pharaoh
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
    from rich.text import Text

    from limelight.files import atomic_write
    from limelight.pictures.figure import save_heatmap
    from limelight.pictures.terminal import heatmap

    chosen = _some(phrases)
    found = translator.translate([phrase.source for phrase in chosen])
    table = Table("held-out phrase", "translation", "", box=None, pad_edge=False)
    for phrase, translation in zip(chosen, found, strict=True):
        verdict = "right" if translation.text == phrase.target else "wrong"
        table.add_row(Text(phrase.source), Text(translation.text), verdict)
    shown = max(found, key=_interest)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print()
    if shown.weights is not None:
        console.print(heatmap(shown.weights, shown.source_tokens, shown.target_tokens))
        save_heatmap(out / "attention.png", shown.weights, shown.source_tokens, shown.target_tokens)
    with atomic_write(out / "report.json", "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(
        f"exact match {100 * report['exact_match']:.2f} %   BLEU {report['bleu']:.2f}   chrF {report['chrf']:.2f}   "
        f"AER {report['aer']:.3f}   ({report['test_phrases']} held-out phrases, "
        f"{report['train_seconds']:.0f} s of training)"
    )
    say(f"wrote {' and '.join(str(out / name) for name in _OWN_FILES[:2] if (out / name).exists())}")
    say(f'try   limelight translate {quoted(out)} "{shown.source}" --show')


def _some(phrases: "list[Phrase]") -> "list[Phrase]":
    """The first phrase of each kind."""
    return list({phrase.kind: phrase for phrase in reversed(phrases)}.values())


def _interest(translation: "Translation") -> tuple[int, int]:
    """Pictures are most interesting where words change places, and fit a terminal."""
    links = sorted(translation.links(), key=lambda link: link[1])
    crossings = sum(a[0] > b[0] for a, b in pairwise(links))
    return crossings if len(translation.source_tokens) <= 14 else 0, len(translation.target_tokens)
