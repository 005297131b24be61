"""Train, dev and test parts that do not leak: a source sentence, with all its translations, lies in exactly one part.

The assignment is made in one streaming pass over 64-bit hashes, 8 bytes a pair, never the text; a second pass writes
the files.
"""

import contextlib
import gzip
import hashlib
import os
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

import numpy as np

from limelight.data.corpus import Corpus, Pair, ReadReport, clean
from limelight.errors import ArgumentError, DataError
from limelight.files import atomic_write
from limelight.pharaoh import format_pharaoh

Part = Literal["train", "dev", "test"]
PARTS: tuple[Part, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Split:
    """Which source sentences are dev and which are test; all others are train.

    Fields: `dev` and `test`, the 64-bit keys of `sentence_key`; `unique`, the number of distinct source sentences
    found; `pairs`, the number of pairs.
    """

    dev: frozenset[int]
    test: frozenset[int]
    unique: int
    pairs: int

    def part(self, pair: Pair) -> Part:
        """The part this pair belongs to; all translations of a source sentence get the same answer."""
        key = sentence_key(pair.source)
        return "dev" if key in self.dev else "test" if key in self.test else "train"


def normalise_sentence(text: str) -> str:
    """What makes two sentences the same for the split: NFKC, case folded, single spaces, no punctuation at either end.

    So that "Hello!", "hello" and "Ｈello ." cannot lie in different parts. Text of punctuation only stays as it is.
    """
    folded = clean(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
    return folded.strip(_punctuation()) or folded


def sentence_key(text: str) -> int:
    """64-bit BLAKE2b hash of the normalised sentence. A collision only puts two sentences into the same part."""
    digest = hashlib.blake2b(normalise_sentence(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def split_corpus(corpus: Corpus, *, dev: int, test: int, seed: int, report: ReadReport | None = None) -> Split:
    """Choose exactly `dev` and `test` distinct source sentences at random; the rest is for training.

    The choice depends on the set of sentences and the seed only, not on the order of the lines.

    Args:
        corpus: read once, as a stream; 8 bytes a pair are held.
        dev: number of distinct source sentences for the dev part, 0 or more.
        test: the same for the test part.
        seed: 0 or more.
        report: filled with what reading skipped.

    Errors:
        ArgumentError for a negative number; DataError when fewer than dev + test + 1 distinct sentences were found.
    """
    for name, value in (("dev", dev), ("test", test), ("seed", seed)):
        if value < 0:
            raise ArgumentError(f"{name} must be 0 or more, got {value}")
    keys = array("Q")
    for pair in corpus.pairs(report):
        keys.append(sentence_key(pair.source))
    pairs = len(keys)
    distinct = np.unique(np.frombuffer(keys, dtype=np.uint64))
    unique = len(distinct)
    if unique < dev + test + 1:
        raise DataError(
            f"{corpus} is too small to split: it has {unique} distinct source sentences in {pairs} pairs, and "
            f"{dev} for dev + {test} for test + at least 1 for training are needed; ask for smaller parts "
            "(--dev N --test N), or give your own dev file (--dev-file FILE)"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(unique)[: dev + test]
    chosen = distinct[order].tolist()
    return Split(frozenset(chosen[:dev]), frozenset(chosen[dev:]), unique, pairs)


def write_split(corpus: Corpus, split: Split, folder: str | os.PathLike[str]) -> dict[Part, int]:
    """Write train.tsv, dev.tsv and test.tsv into an existing folder, in one streaming pass and file order.

    Returns:
        The number of pairs by part. A part without pairs gets no file. Where the corpus has links, they are written
        beside each part, as train.links and so on.

    Errors:
        DataError while reading, OutputError while writing; in both cases no file appears.
    """
    counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    wanted = [part for part in PARTS if part == "train" or getattr(split, part)]
    with contextlib.ExitStack() as stack:
        guided = corpus.links is not None
        write = {part: stack.enter_context(_part_file(Path(folder) / f"{part}.tsv", guided)) for part in wanted}
        for pair in corpus.pairs():
            part = split.part(pair)
            write[part](pair)
            counts[part] += 1
    return counts


def write_tsv(path: str | os.PathLike[str], pairs: Iterable[Pair], *, guided: bool = False) -> int:
    """Write pairs as `source<TAB>target` lines, atomically (gzip when the name ends in .gz); returns their number.

    With `guided`, their links are written beside it, line by line, under the same name with .links at its end.

    Errors:
        OutputError naming the file and the way out when it cannot be written; nothing is left behind.
    """
    count = 0
    with _part_file(Path(path), guided) as write:
        for pair in pairs:
            write(pair)
            count += 1
    return count


def group_by_source(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Collect all translations of each source sentence, in order of first appearance, each translation once.

    For evaluation against several references; the pairs of a test part fit in memory.
    """
    groups: dict[str, dict[str, None]] = {}
    for pair in pairs:
        groups.setdefault(pair.source, {})[pair.target] = None
    return {source: list(targets) for source, targets in groups.items()}


def links_beside(path: Path) -> Path:
    """Where the links of the pairs in `path` lie."""
    return path.with_suffix(".links")


@contextlib.contextmanager
def _part_file(path: Path, guided: bool) -> Iterator[Callable[[Pair], None]]:
    """A function that writes a pair; with `guided` its links too."""
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(_tsv_file(path))
        links = stack.enter_context(atomic_write(links_beside(path))) if guided else None

        def write(pair: Pair) -> None:
            text.write(_line(pair))
            if links is not None:
                links.write(f"{format_pharaoh(pair.links)}\n".encode())

        yield write


@contextlib.contextmanager
def _tsv_file(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with atomic_write(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        # No name and no time inside: the same pairs give the same bytes. GzipFile leaves `file` open.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed


def _line(pair: Pair) -> bytes:
    return f"{clean(pair.source)}\t{clean(pair.target)}\n".encode()


@cache
def _punctuation() -> str:
    # No punctuation lies beyond, and asking for a million characters would take a third of a second.
    return " " + "".join(char for char in map(chr, range(0x1F000)) if unicodedata.category(char).startswith("P"))
