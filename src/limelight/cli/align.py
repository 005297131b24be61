"""`limelight align`."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from limelight.cli.options import Device, Run, Source, Target, Threads, Tsv, Weights, pairs_from, use_threads, warn

if TYPE_CHECKING:
    from limelight.data import Corpus, ReadReport
    from limelight.translator import Translator

_CHUNK = 1000  # pairs that are aligned together


def align(
    run: Run,
    corpus: Tsv = None,
    source: Source = None,
    target: Target = None,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Word-align translations that are there already, by forced decoding.

    Standard output has one line for each line in, in Pharaoh format: 0-0 1-2 ..., source word - target word, counted
    from 0, words as whitespace separates them. A line that cannot be used gives an empty one.
    """
    from limelight.cli.waiting import waiting
    from limelight.data import ReadReport
    from limelight.translator import Translator

    pairs = pairs_from(corpus, source, target)
    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    report = ReadReport()
    with waiting("aligning", None, printing=True) as advance:
        for line in _aligned(translator, pairs, report, advance):
            print(line)
    if report.skipped:
        warn(f"{report.summary()}; their alignments are empty lines")


def _aligned(
    translator: "Translator", corpus: "Corpus", report: "ReadReport", advance: Callable[[int], None]
) -> Iterator[str]:
    """A line of text for each line of the corpus; a thousand pairs at a time."""
    from limelight.pharaoh import format_pharaoh

    pairs, line = corpus.pairs(report), 0
    while chunk := list(islice(pairs, _CHUNK)):
        found = translator.attention((pair.source, pair.target) for pair in chunk)
        for pair, translation in zip(chunk, found, strict=True):
            yield from [""] * (pair.line - line - 1)
            line = pair.line
            if translation.truncated:
                warn(f"line {line}: {translation.truncated} tokens at its end were left out, it is too long")
            yield format_pharaoh(translation.links())
        advance(line)
    yield from [""] * (report.lines - line)
