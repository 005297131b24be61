"""`limelight evaluate`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limelight.cli.options import (
    Alpha,
    Beam,
    Device,
    Run,
    Source,
    Target,
    Threads,
    Tsv,
    Weights,
    check_picture,
    pairs_from,
    say,
    use_threads,
    warn,
)

if TYPE_CHECKING:
    from limelight.data import Corpus, Pair
    from limelight.pharaoh import Alignment
    from limelight.translator import Translator


def evaluate(
    run: Run,
    corpus: Tsv = None,
    source: Source = None,
    target: Target = None,
    gold: Annotated[
        Path | None,
        typer.Option(
            help="Gold word alignments, a line a pair (0-0 1-2, possible links 1?2): adds AER.", show_default=False
        ),
    ] = None,
    beam: Beam = 5,
    alpha: Alpha = 1.0,
    tokenize: Annotated[str, typer.Option(help="sacrebleu's tokenizer for BLEU: 13a, intl, zh, char, none.")] = "13a",
    cased: Annotated[bool, typer.Option("--cased", help="Count case even where the model lower-cases.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw BLEU by length into this .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Score a model on parallel text: BLEU and chrF with sacrebleu signatures, exact match, BLEU by length.

    With --gold also the alignment error rate (AER) of its attention. All translations of one source sentence are its
    references. Case is ignored when the model lower-cases its text.
    """
    from limelight.translator import Translator

    check_picture(picture)
    _check_tokenize(tokenize)
    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    pairs, alignments = _read(pairs_from(corpus, source, target), gold)
    # What takes less time, and can fail, comes first.
    aer = alignment_error(translator, pairs, alignments) if alignments is not None else None
    lowercase = translator.target_tokenizer.lowercase and not cased
    result = score(translator, pairs, beam=beam, alpha=alpha, tokenize=tokenize, lowercase=lowercase)
    if aer is not None:
        result["aer"] = aer
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        _print(result)
    if picture is not None:
        _draw(picture, result, run.resolve().name)


def score(
    translator: "Translator", pairs: "Sequence[Pair]", *, beam: int, alpha: float, tokenize: str, lowercase: bool
) -> dict[str, Any]:
    """Translate the pairs' sources and hold them against their targets; plain data, as `--json` prints it."""
    from limelight.cli.waiting import waiting
    from limelight.evaluation.quality import by_length, corpus_quality, group_references

    sources, references = group_references((pair.source, pair.target) for pair in pairs)
    started = time.monotonic()
    with waiting("translating", len(sources)) as advance:
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
        "by_length": [{"low": b.low, "high": b.high, "sentences": b.sentences, "bleu": b.bleu} for b in bins],
    }


def alignment_error(
    translator: "Translator", pairs: "Sequence[Pair]", alignments: "Sequence[Alignment]"
) -> dict[str, float]:
    """AER of forced decoding against gold, with precision and recall; a pair's gold stands on the pair's line."""
    from limelight.cli.waiting import waiting
    from limelight.evaluation.alignment import aer

    with waiting("aligning", len(pairs)) as advance:
        predicted = translator.align(((pair.source, pair.target) for pair in pairs), progress=advance)
    quality = aer(predicted, [alignments[pair.line - 1] for pair in pairs])
    return {"aer": quality.aer, "precision": quality.precision, "recall": quality.recall}


def _check_tokenize(name: str) -> None:
    from limelight.errors import ArgumentError
    from limelight.evaluation.quality import TOKENIZERS

    if name not in TOKENIZERS:
        raise ArgumentError(f"tokenize: must be one of {', '.join(TOKENIZERS)}, got {name!r}")


def _read(corpus: "Corpus", gold: Path | None) -> "tuple[list[Pair], list[Alignment] | None]":
    """The pairs, and the gold alignments of all lines of the corpus if there are any."""
    from limelight.data import ReadReport
    from limelight.errors import DataError
    from limelight.pharaoh import read_pharaoh

    report = ReadReport()
    pairs = list(corpus.pairs(report))
    if report.skipped:
        warn(report.summary())
    if gold is None:
        return pairs, None
    alignments = read_pharaoh(gold)
    if len(alignments) != report.lines:
        raise DataError(
            f"gold: {gold} has {len(alignments)} lines and {corpus} has {report.lines}; line i of one must be the "
            "alignment of line i of the other: use two files of the same length"
        )
    return pairs, alignments


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{result['sentences']} sentences, {result['references']} references, beam {result['beam']}")
    print(f"BLEU         {result['bleu']:6.2f}   {result['bleu_signature']}")
    print(f"chrF2        {result['chrf']:6.2f}   {result['chrf_signature']}")
    print(f"exact match  {100 * result['exact_match']:6.2f} %")
    if "aer" in result:
        found = result["aer"]
        print(f"AER          {found['aer']:6.3f}   precision {found['precision']:.3f}, recall {found['recall']:.3f}")
    print()
    table = Table("source words", title="BLEU by length", title_justify="left")
    table.add_column("sentences", justify="right")
    table.add_column("BLEU", justify="right")
    for row in result["by_length"]:
        table.add_row(f"{row['low']}-{row['high']}", str(row["sentences"]), f"{row['bleu']:.2f}")
    Console(highlight=False).print(table)


def _draw(path: Path, result: dict[str, Any], name: str) -> None:
    from limelight.evaluation.quality import LengthBin
    from limelight.pictures.figure import save_length_plot

    bins = [LengthBin(**row) for row in result["by_length"]]
    save_length_plot(path, {name: bins}, title="BLEU by sentence length")
    say(f"wrote {path}")
