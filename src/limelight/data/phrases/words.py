"""Words: the tokens of the phrases, and what is known of each from the way the phrase was put together."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

# Zero-width joiner and non-joiner are part of the spelling of a word (Persian, Hindi); other format
# characters (marks of direction, soft hyphens) are not.
_JOINERS = "\u200c\u200d"

# A run of words that belongs to no field: punctuation and function words of a pattern.
LITERAL = ""


class Word(NamedTuple):
    """One token and its place in the meaning of the phrase.

    Attributes:
        text: the token; never empty, holds no white space.
        field: what it tells (`day`, `month`, `number0`, `unit0`, ...); `LITERAL` for what only holds fields together.
        part: 0, or 1 in the second half of an interval.
        role: within a field of several words, which constituent (`length-kilometer`, `function`); "" when unknown.
    """

    text: str
    field: str = LITERAL
    part: int = 0
    role: str = ""


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, marks and digits, and every other visible character by itself.

    White space of any kind (also no-break and thin spaces) separates, marks of direction vanish. The texts of a
    `Phrase` have one space between all words, so for them `words(text) == text.split(" ")`, and every tokenisation
    that splits at white space, with or without punctuation, gives the same words.

    Args:
        text: any text.

    Returns:
        The words in order, in Unicode's normal form C.

    Example:
        `words("Tuesday, 12.5 km/h") == ["Tuesday", ",", "12", ".", "5", "km", "/", "h"]`
    """
    return list(_words(text))


@lru_cache(maxsize=65536)
def _words(text: str) -> tuple[str, ...]:
    found: list[str] = []
    run = ""
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if category[0] in "LMN" or character in _JOINERS:
            run += character
            continue
        if category == "Cf":
            continue
        if run:
            found.append(run)
            run = ""
        if category[0] not in "ZC":
            found.append(character)
    return (*found, run) if run else tuple(found)


@lru_cache(maxsize=65536)
def is_punctuation(word: str) -> bool:
    """Whether the word holds no letter, mark or digit."""
    return not any(unicodedata.category(character)[0] in "LMN" for character in word)


def tagged(text: str, field: str = LITERAL, part: int = 0, role: str = "") -> list[Word]:
    """The words of `text`, all with the same field, part and role."""
    return [Word(word, field, part, role) for word in _words(text)]


def join(sequence: Iterable[Word]) -> str:
    """The text of a phrase: its words with one space between them."""
    return " ".join(word.text for word in sequence)


def fields_of(sequence: Sequence[Word]) -> dict[str, list[int]]:
    """The positions of each field's words, fields in order of appearance, without the literals."""
    positions: dict[str, list[int]] = {}
    for index, word in enumerate(sequence):
        if word.field != LITERAL:
            positions.setdefault(word.field, []).append(index)
    return positions
