"""Parallel text, read as a stream: a TSV file, or two files aligned by line; .gz too. Never the whole corpus in memory.

What can be skipped is skipped, counted by reason in a `ReadReport`, and reported; what makes the whole corpus useless
is a `DataError` which names the file, the rule and the way out.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from limelight.data.guide import with_links
from limelight.data.lines import read_lines
from limelight.errors import ArgumentError, DataError
from limelight.pharaoh import Link

MAX_WORDS = 250
MAX_CHARACTERS = 2000
EXAMPLES = 5

NO_TAB, MANY_TABS, BLANK = "no tab", "too many tabs", "blank line"
BLANK_SOURCE, BLANK_TARGET = "blank source", "blank target"
INVALID, NUL, TOO_LONG, HUGE = "invalid UTF-8", "NUL byte", "too long", "not text"

_TEXT = "UTF-8 text, one sentence or one source<TAB>target pair a line"

_PHRASES = {
    NO_TAB: "without a tab",
    MANY_TABS: "with too many tabs",
    BLANK: "blank",
    BLANK_SOURCE: "with a blank source",
    BLANK_TARGET: "with a blank target",
    INVALID: "with invalid UTF-8",
    NUL: "with a NUL byte",
    HUGE: "of more than 1 MiB",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation, stripped, with runs of white space as one space; `line` counts from 1.

    `links` are word links (source word, target word), counted from 0, where the corpus has some.
    """

    source: str
    target: str
    line: int = 0
    links: frozenset[Link] = frozenset()


@dataclass
class ReadReport:
    """What reading skipped, and why: counts by reason and the first line numbers of each.

    Fields: `lines` read so far; `counts` by reason; `examples`, the first five line numbers by reason; `limits` names
    the sentence limit for the summary.
    """

    lines: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)
    limits: str = ""

    @property
    def skipped(self) -> int:
        """The number of lines skipped."""
        return sum(self.counts.values())

    @property
    def kept(self) -> int:
        """The number of pairs read."""
        return self.lines - self.skipped

    def skip(self, reason: str, line: int) -> None:
        """Count one skipped line."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(line)

    def summary(self) -> str:
        """One sentence for the user: "3 of 1189 lines skipped: 2 without a tab (lines 7, 19), 1 blank (line 40)"."""
        if not self.skipped:
            return f"{self.lines} lines read, none skipped"
        parts = []
        for reason, count in self.counts.items():
            shown = self.examples[reason]
            numbers = ", ".join(map(str, shown)) + (", ..." if count > len(shown) else "")
            phrase = f"with more than {self.limits}" if reason == TOO_LONG else _PHRASES[reason]
            parts.append(f"{count} {phrase} (line{'s' if count > 1 else ''} {numbers})")
        return f"{self.skipped} of {self.lines} lines skipped: {', '.join(parts)}"


@dataclass(frozen=True)
class Corpus:
    """Where parallel text lies: one TSV file, or a source file and a target file aligned by line.

    Args:
        tsv: a file of lines `source<TAB>target`; a third field is allowed when it is an attribution, "CC-BY ...".
        source, target: two files; line i of one is the translation of line i of the other. Give these or `tsv`.
        max_words, max_characters: a pair with a longer side is skipped and counted; words are separated by white space.
        links: a file of word links in the Pharaoh format, `i-j`; its line i belongs to line i of the corpus, whether
            that line can be used or not. They become the pairs' `links`, the sure ones alone.

    Files are UTF-8 with an optional byte order mark, Unix or Windows line ends, plain or gzip.

    Errors:
        ArgumentError unless exactly one of the two ways is given and the limits are positive.
    """

    tsv: Path | None = None
    source: Path | None = None
    target: Path | None = None
    max_words: int = MAX_WORDS
    max_characters: int = MAX_CHARACTERS
    links: Path | None = None

    def __post_init__(self) -> None:
        for name in ("tsv", "source", "target", "links"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        given = (self.tsv is not None, self.source is not None, self.target is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise ArgumentError(
                f"a corpus is either one tsv file or a source and a target file, got tsv={_name(self.tsv)}, "
                f"source={_name(self.source)}, target={_name(self.target)}; give one of the two"
            )
        for name in ("max_words", "max_characters"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The one or two files of text."""
        return tuple(path for path in (self.tsv, self.source, self.target) if path is not None)

    def __str__(self) -> str:
        return " and ".join(map(str, self.paths))

    def pairs(self, report: ReadReport | None = None) -> Iterator[Pair]:
        """Stream the usable pairs in file order; `report`, if given, is filled on the way.

        Errors:
            DataError, when reading starts: a file is missing, a folder, not readable, empty, or of another format
            (UTF-16, zip, .gz which is not gzip); at the end: no usable pair, or the files differ in length; on the way:
            a line of links that is malformed or names a word that is not there.
        """
        report = ReadReport() if report is None else report
        pairs = self._pairs(report)
        if self.links is None:
            return pairs
        return with_links(pairs, self.links, str(self), lambda: report.lines)

    def _pairs(self, report: ReadReport) -> Iterator[Pair]:
        report.limits = f"{self.max_words} words or {self.max_characters} characters"
        records = _tsv_records(self.tsv) if self.tsv is not None else _parallel_records(*self.paths)
        for number, record in enumerate(records, start=1):
            report.lines = number
            # A record is the two texts, or the reason why there are none.
            reason = record if isinstance(record, str) else self._judge(*record)
            if reason is None:
                yield Pair(record[0], record[1], number)
            else:
                report.skip(reason, number)
        if not report.kept:
            form = "source<TAB>target" if self.tsv is not None else "one sentence a line"
            raise DataError(f"{self} has no usable pair: {report.summary()}; expected UTF-8 text, {form}")

    def _judge(self, source: str, target: str) -> str | None:
        if not source or not target:
            return BLANK if not (source or target) else BLANK_TARGET if source else BLANK_SOURCE
        for text in (source, target):
            # The texts have single spaces, so that words are spaces + 1.
            if len(text) > self.max_characters or text.count(" ") >= self.max_words:
                return TOO_LONG
        return None


def read_tsv(path: str | os.PathLike[str], report: ReadReport | None = None) -> Iterator[Pair]:
    """Stream the pairs of one TSV file; `Corpus` says what is allowed and which errors there are."""
    return Corpus(tsv=Path(path)).pairs(report)


def read_parallel(
    source_path: str | os.PathLike[str], target_path: str | os.PathLike[str], report: ReadReport | None = None
) -> Iterator[Pair]:
    """Stream the pairs of two files aligned by line; `Corpus` says what is allowed and which errors there are."""
    return Corpus(source=Path(source_path), target=Path(target_path)).pairs(report)


def clean(text: str) -> str:
    """Strip the text and make every run of white space (Unicode's, tabs and no-break spaces too) one space."""
    return " ".join(text.split())


def _name(path: Path | None) -> str:
    return "none" if path is None else str(path)


def _tsv_records(path: Path) -> Iterator[tuple[str, str] | str]:
    for raw in read_lines(path, _TEXT):
        text = _decode(raw)
        if text is None:
            yield _why_unreadable(raw)
            continue
        fields = text.split("\t")
        if len(fields) == 2 or (len(fields) == 3 and fields[2].startswith("CC-BY")):
            yield clean(fields[0]), clean(fields[1])
        elif len(fields) > 2:
            yield MANY_TABS
        else:
            yield NO_TAB if text.strip() else BLANK


def _parallel_records(source: Path, target: Path) -> Iterator[tuple[str, str] | str]:
    counts = [0, 0]
    # No line holds a line end, so that this marks the end of the shorter file.
    end = b"\n"
    for pair in zip_longest(read_lines(source, _TEXT), read_lines(target, _TEXT), fillvalue=end):
        counts = [count + (raw != end) for count, raw in zip(counts, pair, strict=True)]
        if end in pair:
            # The files are already known to differ: count on, to name both lengths.
            continue
        texts = [_decode(raw) for raw in pair]
        bad = [raw for raw, text in zip(pair, texts, strict=True) if text is None]
        yield _why_unreadable(bad[0]) if bad else (clean(texts[0] or ""), clean(texts[1] or ""))
    if counts[0] != counts[1]:
        raise DataError(
            f"{source} has {counts[0]} lines and {target} has {counts[1]}; line i of one must be the translation of "
            "line i of the other: use two files of the same length"
        )


def _decode(raw: bytes | None) -> str | None:
    # None is a line that was too long to hold.
    if raw is None or b"\0" in raw:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _why_unreadable(raw: bytes | None) -> str:
    return HUGE if raw is None else NUL if b"\0" in raw else INVALID
