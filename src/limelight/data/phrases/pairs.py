"""A parallel corpus with gold word alignments, written by CLDR's rules."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from limelight.data.phrases.kinds import KINDS, Kind
from limelight.data.phrases.links import Links, align
from limelight.data.phrases.locales import parse_pair
from limelight.data.phrases.text import LocaleText
from limelight.data.phrases.units import UNITS
from limelight.data.phrases.words import Word, join
from limelight.errors import ArgumentError

# More would be little else than dates with times, and take gigabytes and many minutes.
MOST = 1_000_000

# So many values in a row that give no new pair mean that a kind has no more.
_PATIENCE = 400

# A word occurs in at least one phrase of the corpus for each `_SIZE_PER_SIGHT` phrases, up to `_SEEN_OFTEN`.
_SEEN_OFTEN, _SIZE_PER_SIGHT = 10, 2000

# What the target may tell only if the source does. (The half of the day follows from the hour, the number 1 from a
# singular; a weekday that only one side has would have to be guessed.)
_TOLD = frozenset({"year", "quarter", "month", "day", "weekday", "hour", "minute", "second"})

# The kinds that a kind gives way to where both write a value alike.
_FIRST = {
    kind.name: tuple(other for other in KINDS[:index] if other.family == kind.family)
    for index, kind in enumerate(KINDS)
}


@dataclass(frozen=True)
class Phrase:
    """One pair of the corpus; both texts have one space between all words.

    Attributes:
        source: S words, `source.split(" ")`.
        target: T words.
        links: sure gold links (i, j): source word i in [0, S - 1] with target word j in [0, T - 1]; never empty.
        possible: possible gold links; the sure ones are among them.
        kind: the kind of phrase, one of `KINDS`' names.
    """

    source: str
    target: str
    links: Links
    possible: Links
    kind: str


class _Pair:
    """Writes values in both locales of a pair."""

    def __init__(self, source: LocaleText, target: LocaleText) -> None:
        self.source, self.target = source, target
        self._ambiguous = {length: self._ambiguous_units(length) for length in ("long", "short")}

    def _ambiguous_units(self, length: str) -> frozenset[str]:
        """Units that look in the source like an earlier one of another meaning, "m" for metres and minutes."""
        seen: dict[str, Sequence[Word] | None] = {}
        ambiguous: set[str] = set()
        for unit in UNITS:
            for value in (1, 2, 5):
                left, right = (text.unit(unit, length, value, 0) for text in (self.source, self.target))
                if (
                    left is not None
                    and right is not None
                    and join(seen.setdefault(join(left), right) or ()) != join(right)
                ):
                    ambiguous.add(unit)
        return frozenset(ambiguous)

    def phrase(self, kind: Kind, value) -> Phrase | None:
        """The pair for a value, or None where it cannot be had or could not be learnt."""
        if kind.family == "unit" and value[0] in self._ambiguous["short" if kind.name.endswith("short") else "long"]:
            return None
        source, target = kind.write(self.source, value), kind.write(self.target, value)
        if not source or not target or not _learnable(source, target):
            return None
        text = join(source)
        if any(join(other.write(self.source, value) or ()) == text for other in _FIRST[kind.name]):
            return None
        sure, possible = align(source, target)
        return Phrase(text, join(target), sure, possible, kind.name) if sure else None


def _learnable(source: Sequence[Word], target: Sequence[Word]) -> bool:
    """Whether the source tells all that the target does, in an interval for both halves."""
    told = {word.field for word in source}
    return all(word.field in told for word in target if word.field in _TOLD)


def generate(source: str = "en", target: str = "de", *, size: int = 20_000, seed: int = 1) -> list[Phrase]:
    """Distinct pairs of date, time, duration and unit phrases with gold word alignments.

    The texts are CLDR's, from the `babel` package; the links follow from the fields that both sides are put together
    from (`links.align`). The pairs are a function: a source text occurs once, and has one target. Numbers come from a
    small inventory (years 1950 to 2049, hours, minutes, quantities up to 99 and some round ones), and in a corpus of
    20,000 pairs or more each word of either side occurs in at least 10; so what is new in a held-out pair is the
    combination.

    Args:
        source: locale of the source side, as in `available_locales()`; `pt-BR` and `pt_BR` are the same.
        target: locale of the target side, another one.
        size: how many pairs, 1 to 1,000,000.
        seed: the same seed gives the same pairs in the same order (with the same version of `babel`).

    Returns:
        `size` phrases, kinds mixed.

    Raises:
        ArgumentError: a locale is unknown or both are the same; `size` is below 1, above 1,000,000 or more than these
        locales have.

    Example:
        `generate("en", "de", size=3)[0].source` is a text such as "Tuesday , March 4 , 2025".
    """
    left, right = parse_pair(source, target)
    if size < 1:
        raise ArgumentError(f"size: must be 1 or more, got {size}; the default is 20000")
    if size > MOST:
        raise ArgumentError(f"size: must be at most {MOST}, got {size}; the default is 20000")
    corpus = _Corpus(_Pair(LocaleText(left), LocaleText(right)), size, seed)
    corpus.fill()
    while corpus.drop_rare_words(min(_SEEN_OFTEN, size // _SIZE_PER_SIGHT)):
        corpus.fill()
    if len(corpus.phrases) < size:
        raise ArgumentError(
            f"size: {source!r} to {target!r} has only {len(corpus.phrases)} distinct pairs, {size} were asked for; "
            "ask for fewer"
        )
    phrases = list(corpus.phrases.values())
    Random(seed).shuffle(phrases)
    return phrases


class _Corpus:
    """Phrases in the making.

    Attributes:
        phrases: by source text.
    """

    def __init__(self, pair: _Pair, size: int, seed: int) -> None:
        self.phrases: dict[str, Phrase] = {}
        self._size = size
        self._unfit: set[str] = set()
        self._streams = {kind: self._stream(kind, pair, Random(f"{seed} {kind.name}")) for kind in KINDS}

    def fill(self) -> None:
        """Adds phrases of all kinds by their weights until there are enough, or none are left to add."""
        while len(self.phrases) < self._size and self._streams:
            missing = self._size - len(self.phrases)
            total = sum(kind.weight for kind in self._streams)
            for kind in list(self._streams):
                wanted = min(max(1, int(missing * kind.weight / total)), self._size - len(self.phrases))
                if sum(1 for _ in islice(self._streams[kind], wanted)) < wanted:
                    del self._streams[kind]

    def _stream(self, kind: Kind, pair: _Pair, rng: Random) -> Iterator[None]:
        """Adds one new phrase at each step; ends when the kind has no more."""
        misses = 0
        while misses < _PATIENCE:
            phrase = pair.phrase(kind, kind.draw(rng))
            misses += 1
            if phrase is None or phrase.source in self._unfit:
                continue
            known = self.phrases.setdefault(phrase.source, phrase)
            if known is phrase:
                misses = 0
                yield
            elif known.target != phrase.target:
                # A text with two meanings (a day in one kind, a month in another): neither stays.
                self._unfit.add(phrase.source)
                del self.phrases[phrase.source]

    def drop_rare_words(self, least: int) -> int:
        """Drops, for good, the phrases with a word that is in fewer than `least` phrases of its side.

        Such a word ("1 ounce" is the only phrase with its singular) could not be learnt once its phrase is held out.

        Returns:
            How many phrases were dropped.
        """
        sides = [Counter(word for text in texts for word in set(text.split(" "))) for texts in self._texts()]
        rare = [
            phrase.source
            for phrase in self.phrases.values()
            if any(sides[0][word] < least for word in phrase.source.split(" "))
            or any(sides[1][word] < least for word in phrase.target.split(" "))
        ]
        self._unfit.update(rare)
        for source in rare:
            del self.phrases[source]
        return len(rare)

    def _texts(self) -> tuple[list[str], list[str]]:
        phrases = self.phrases.values()
        return [phrase.source for phrase in phrases], [phrase.target for phrase in phrases]


def split_phrases(
    phrases: Sequence[Phrase], *, dev: int = 500, test: int = 1000, seed: int = 1
) -> tuple[list[Phrase], list[Phrase], list[Phrase]]:
    """Training, development and test parts, no source text in two of them.

    Args:
        phrases: the corpus. Phrases whose sources are equal but for upper and lower case stay together.
        dev: how many distinct sources the development part gets, 0 or more.
        test: the same for the test part.
        seed: of the shuffle.

    Returns:
        (train, dev, test); train has all the others.

    Raises:
        ArgumentError: a negative number, or nothing is left to train on.
    """
    for name, count in (("dev", dev), ("test", test)):
        if count < 0:
            raise ArgumentError(f"{name}: must be 0 or more, got {count}; 0 leaves this part empty")
    groups: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        groups.setdefault(phrase.source.casefold(), []).append(phrase)
    if dev + test >= len(groups):
        raise ArgumentError(
            f"dev + test: must leave phrases to train on, but {dev} + {test} are wanted of {len(groups)} "
            "distinct sources; ask for fewer, or generate more"
        )
    order = list(groups.values())
    Random(seed).shuffle(order)
    parts = order[dev + test :], order[:dev], order[dev : dev + test]
    train, development, held_out = ([phrase for group in part for phrase in group] for part in parts)
    return train, development, held_out
