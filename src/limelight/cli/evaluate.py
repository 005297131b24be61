"""`limelight evaluate`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli.options import Alpha, Beam, Device, Run, Threads, Weights, pairs_from, stderr, use_threads, warn

if TYPE_CHECKING:
    from limelight.data import Pair
    from limelight.translator import Translator


def evaluate(
    run: Run,
    corpus: Annotated[Path | None, typer.Argument(help="source<TAB>target lines.", show_default=False)] = None,
    source: Annotated[Path | None, typer.Option(help="Source sentences, a line each.", show_default=False)] = None,
    target: Annotated[Path | None, typer.Option(help="Their translations, a line each.", show_default=False)] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Gold word alignments, a line a pair (0-0 1-2, possible links 1?2): adds AER.", show_default=False)
    ] = None,
    beam: Beam = 5,
    alpha: Alpha = 1.0,
    tokenize: Annotated[str, typer.Option(help="sacrebleu's tokenizer for BLEU: 13a, intl, zh, char, ...")] = "13a",
    cased: Annotated[bool, typer.Option("--cased", help="Count case even where the model lower-cases.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw BLEU by length into this .png, .svg or .pdf.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Score a model on parallel text: BLEU and chrF with sacrebleu signatures, exact match, BLEU by length, AER with gold.

    All translations of one source sentence are its references. Case is ignored when the model lower-cases its text.
    """
    from limelight.data import ReadReport
    from limelight.evaluation.alignment import read_pharaoh
    from limelight.translator import Translator

    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    report = ReadReport()
    pairs = list(pairs_from(corpus, source, target).pairs(report))
    if report.skipped:
        warn(report.summary())
    alignments = read_pharaoh(gold) if gold else None
    result = score(
        translator,
        pairs,
        beam=beam,
        alpha=alpha,
        tokenize=tokenize,
        lowercase=translator.target_tokenizer.lowercase and not cased,
    )
    if alignments is not None:
        result["aer"] = alignment_error(translator, pairs, alignments, gold)
    if picture is not None:
        _draw(picture, result, run.name)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        _print(result)


def score(
    translator: "Translator", pairs: "list[Pair]", *, beam: int, alpha: float, tokenize: str, lowercase: bool
) -> dict[str, Any]:
    """Translate the pairs' sources and hold them against their targets; plain data, as `--json` prints it."""
    import time

    from limelight.evaluation.quality import by_length, corpus_quality, group_references

    sources, references = group_references((pair.source, pair.target) for pair in pairs)
    started = time.monotonic()
    with _bar(len(sources)) as advance:
        found = translator.translate_n_best(sources, beam=beam, alpha=alpha, observe=False, progress=advance)
    seconds = time.monotonic() - started
    texts = [translations[0].text for translations in found]
    quality = corpus_quality(texts, references, lowercase=lowercase, tokenize=tokenize)
    words = [len(source.split()) for source in sources]
    bins = by_length(texts, references, words, lowercase=lowercase, tokenize=tokenize)
    return {
        "sentences": len(sources),
        "references": sum(map(len, references)),
        "bleu": quality.bleu,
        "bleu_signature": quality.bleu_signature,
        "chrf": quality.chrf,
        "chrf_signature": quality.chrf_signature,
        "exact_match": quality.exact_match,
        "beam": beam,
        "sentences_per_second": len(sources) / seconds,
        "by_length": [
            {"low": b.low, "high": b.high, "sentences": b.sentences, "bleu": b.bleu} for b in bins
        ],
    }


def alignment_error(translator: "Translator", pairs: "list[Pair]", alignments: list, gold: Path | None) -> dict[str, float]:
    """AER of forced decoding against gold, with precision and recall; a pair's gold stands on the pair's line."""
    from limelight.errors import DataError
    from limelight.evaluation.alignment import aer

    last = max(pair.line for pair in pairs)
    if len(alignments) < last:
        raise DataError(f"gold: {gold} has {len(alignments)} lines and the corpus at least {last}; one line a pair is needed")
    predicted = translator.align((pair.source, pair.target) for pair in pairs)
    quality = aer(predicted, [alignments[pair.line - 1] for pair in pairs])
    return {"aer": quality.aer, "precision": quality.precision, "recall": quality.recall}


def _bar(total: int):  # noqa: ANN202
    """A context manager that gives a function to be told how many are done; a bar where there is a terminal."""
    from contextlib import contextmanager

    from rich.progress import Progress

    @contextmanager
    def bar():  # noqa: ANN202
        with Progress(console=stderr(), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("translating", total=total)
            yield lambda done: progress.update(task, completed=done)

    return bar()


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result['sentences']} sentences, {result['references']} references, beam {result['beam']}")
    console.print(f"BLEU         {result['bleu']:6.2f}   {result['bleu_signature']}", markup=False)
    console.print(f"chrF2        {result['chrf']:6.2f}   {result['chrf_signature']}", markup=False)
    console.print(f"exact match  {100 * result['exact_match']:6.2f} %")
    if "aer" in result:
        found = result["aer"]
        console.print(
            f"AER          {found['aer']:6.3f}   precision {found['precision']:.3f}, recall {found['recall']:.3f}"
        )
    table = Table("source words", "sentences", "BLEU", title="BLEU by length", title_justify="left")
    for row in result["by_length"]:
        table.add_row(f"{row['low']}-{row['high']}", str(row["sentences"]), f"{row['bleu']:.2f}")
    console.print(table)


def _draw(path: Path, result: dict[str, Any], name: str) -> None:
    from limelight.evaluation.quality import LengthBin
    from limelight.pictures.figure import save_length_plot

    bins = [LengthBin(**row) for row in result["by_length"]]
    save_length_plot(path, {name: bins}, title="BLEU by sentence length")
    warn(f"wrote {path}")
