"""Word alignments in the Pharaoh format.

A link `(i, j)` says that source word `i` and target word `j` translate one another; both count from 0.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from limelight.errors import ArgumentError, DataError

Link = tuple[int, int]

_LINK = re.compile(r"([0-9]+)([-?p])([0-9]+)", re.ASCII)
_SHOWN = 60


@dataclass(frozen=True)
class Alignment:
    """The gold links of one sentence pair.

    Attributes:
        sure: S, the links that an alignment must have.
        possible: P, the links that it may have. S is a subset of P; sure links are added to what is given here.

    """

    sure: frozenset[Link]
    possible: frozenset[Link] = frozenset()

    def __post_init__(self):
        object.__setattr__(self, "sure", frozenset(self.sure))
        object.__setattr__(self, "possible", frozenset(self.possible) | self.sure)


def parse_pharaoh(line: str, *, where: str = "", first: int = 0) -> Alignment:
    """Read one line of a Pharaoh file.

    A line is a list of `source-target` links with spaces between: `0-0 1-2`. Gold alignments mark possible links by
    another sign between the numbers; both in use are read: `3?4` and `3p4`. A blank line is a sentence without links.

    Arguments:
        line: the text; a line end is ignored.
        where: file and line for the error message, as in `gold.txt, line 3`.
        first: the number of the first word in this file, 0 or 1 (some published gold files count from 1).

    Returns:
        The links, counted from 0.

    Raises:
        DataError: an item is not a link, or a number is below `first`.
        ArgumentError: `first` is neither 0 nor 1.

    """
    if first not in (0, 1):
        raise ArgumentError(f"first: the number of the first word must be 0 or 1, got {first!r}")
    sure: set[Link] = set()
    possible: set[Link] = set()
    for item in line.split():
        match = _LINK.fullmatch(item)
        if match is None:
            raise DataError(
                f"{_place(where)}{_short(item)} is not an alignment link; write numbers i-j for a sure link and i?j "
                f"or ipj for a possible one, as in '0-0 1-2 3?4'; the line is {_short(line.strip())}"
            )
        link = (int(match[1]) - first, int(match[3]) - first)
        if min(link) < 0:
            raise DataError(
                f"{_place(where)}{_short(item)} has a word number below {first}; "
                "if the file counts words from 0, read it with first=0"
            )
        (sure if match[2] == "-" else possible).add(link)
    return Alignment(frozenset(sure), frozenset(possible))


def format_pharaoh(links: Iterable[Link] | Alignment) -> str:
    """Write links as one line, sorted by source, then target: `0-0 1-2 3?4`.

    Of an `Alignment`, links that are possible but not sure are written with `?`. `parse_pharaoh` reads the line back.
    """
    if isinstance(links, Alignment):
        return " ".join(f"{i}{'-' if (i, j) in links.sure else '?'}{j}" for i, j in sorted(links.possible))
    return " ".join(f"{i}-{j}" for i, j in sorted({(int(i), int(j)) for i, j in links}))


def read_pharaoh(path: str | Path, *, first: int = 0) -> list[Alignment]:
    """Read a file of alignments, one sentence pair a line, as `parse_pharaoh` does.

    Raises:
        DataError: the file cannot be read, is empty or is not UTF-8, or a line of it is not an alignment; the message
            names the file and the line.

    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the alignments: {error.strerror}") from None
    if not data.strip():
        raise DataError(f"{path}: holds no alignment; one line a sentence pair is expected, as in '0-0 1-2'")
    alignments = []
    for number, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path}, line {number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{where}: is not valid UTF-8; save the file as UTF-8 text") from None
        alignments.append(parse_pharaoh(text, where=where, first=first))
    return alignments


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
