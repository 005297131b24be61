"""`limelight align`."""

from pathlib import Path
from typing import Annotated

import typer

from limelight.cli.options import Device, Run, Threads, Weights, pairs_from, use_threads, warn


def align(
    run: Run,
    corpus: Annotated[Path | None, typer.Argument(help="source<TAB>target lines.", show_default=False)] = None,
    source: Annotated[Path | None, typer.Option(help="Source sentences, a line each.", show_default=False)] = None,
    target: Annotated[Path | None, typer.Option(help="Their translations, a line each.", show_default=False)] = None,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Word-align translations that are there already, by forced decoding.

    Standard output has one line for each line in, in Pharaoh format: 0-0 1-2 ..., source word - target word, counted from 0,
    words as whitespace separates them. A line that cannot be used gives an empty one.
    """
    from limelight.data import ReadReport
    from limelight.translator import Translator

    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    report = ReadReport()
    for line in _aligned(translator, pairs_from(corpus, source, target), report):
        print(line)
    if report.skipped:
        warn(report.summary())


def _aligned(translator, corpus, report):  # noqa: ANN001, ANN202
    """A line of text for each line of the corpus; a thousand pairs at a time."""
    from itertools import islice

    from limelight.evaluation.alignment import format_pharaoh

    pairs, line = corpus.pairs(report), 0
    while chunk := list(islice(pairs, 1000)):
        found = translator.align((pair.source, pair.target) for pair in chunk)
        for pair, links in zip(chunk, found, strict=True):
            yield from [""] * (pair.line - line - 1)
            yield format_pharaoh(links)
            line = pair.line
    yield from [""] * (report.lines - line)
