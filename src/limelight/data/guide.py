"""Word links to learn attention from: read in step with a corpus, and spread over the tokens of the words.

Guided alignment: Chen, Matusov, Khadivi and Peter (2016), arXiv:1607.01628.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from limelight.data.lines import read_lines
from limelight.errors import DataError
from limelight.pharaoh import Link, parse_pharaoh

if TYPE_CHECKING:
    from limelight.data.corpus import Pair

Shares = list[tuple[int, int, float]]
"""(source token, target token, share), see `spread`."""


def with_links(pairs: Iterator[Pair], path: Path, corpus: str, lines: Callable[[], int]) -> Iterator[Pair]:
    """The pairs with their links: those of the line of `path` that has the pair's number.

    Args:
        pairs: in the order of their lines; lines may be missing.
        path: the file of links, a line for each line of the corpus. Possible links (`3?4`) are not taken.
        corpus: what the pairs come from, for messages.
        lines: how many lines of the corpus have been read.

    Errors:
        DataError: the file cannot be read, a line is malformed or names a word that its sentence does not have, or the
        numbers of lines differ.
    """
    guide = _read(path)
    number = 0
    for pair in pairs:
        links: frozenset[Link] | None = frozenset()
        while number < pair.line and links is not None:
            links = next(guide, None)
            number += links is not None
        if links is None:
            # The rest is read for its number of lines.
            for _ in pairs:
                pass
            break
        _check(pair, links, path)
        yield replace(pair, links=links)
    number += sum(1 for _ in guide)
    if number != lines():
        raise DataError(
            f"{path} has {number} lines of links and {corpus} has {lines()} lines; line i of one must belong to line i "
            "of the other, with an empty line of links where there is none"
        )


def spread(links: Iterable[Link], source_words: Sequence[int], target_words: Sequence[int]) -> Shares:
    """Links between words as a distribution over source tokens for each token of a linked target word.

    share(s, t) = 1 / (n(t) m(s)): each of the n source words that the word of target token t is linked with gets the
    same share, and of a word's share each of its m tokens the same. The shares of a target token sum to 1; a token of a
    word without links has none. `evaluation.alignment.word_weights` of these shares gives 1 / n for each link.

    Args:
        links: (source word, target word).
        source_words: for each source token the number of its word, -1 for none.
        target_words: the same for the target tokens.

    Returns:
        (source token, target token, share), ordered by target token and then by source token.
    """
    source_tokens, linked = _tokens_of(source_words), defaultdict(list)
    for source, target in sorted(links):
        # A word all of whose characters the tokenizer drops has no token.
        if source in source_tokens:
            linked[target].append(source)
    return [
        (token, place, 1 / (len(linked[word]) * len(source_tokens[source])))
        for place, word in enumerate(target_words)
        if word in linked
        for source in linked[word]
        for token in source_tokens[source]
    ]


def _tokens_of(words: Sequence[int]) -> dict[int, list[int]]:
    tokens = defaultdict(list)
    for token, word in enumerate(words):
        if word >= 0:
            tokens[word].append(token)
    return tokens


def _read(path: Path) -> Iterator[frozenset[Link]]:
    """The sure links of each line."""
    for number, raw in enumerate(read_lines(path, "a line of links for each pair, as in '0-0 1-2'"), start=1):
        where = f"{path}, line {number}"
        try:
            text = None if raw is None else raw.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        if text is None:
            raise DataError(f"{where}: is not text; expected links in UTF-8, as in '0-0 1-2'")
        yield parse_pharaoh(text, where=where).sure


def _check(pair: Pair, links: Iterable[Link], path: Path) -> None:
    # Texts have single spaces.
    counts = pair.source.count(" ") + 1, pair.target.count(" ") + 1
    for link in links:
        for side, word, count in zip(("source", "target"), link, counts, strict=True):
            if word >= count:
                raise DataError(
                    f"{path}, line {pair.line}: the link {link[0]}-{link[1]} names {side} word {word}, but that "
                    f"sentence has {count} words, numbered from 0 to {count - 1}; words are what white space "
                    "separates, counted from 0: align the very text that is trained on, and write numbers from 0"
                )
