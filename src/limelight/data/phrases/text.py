"""One locale's way to write dates, times, numbers and units, as words that know which field they came from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache

from babel import Locale
from babel.dates import DateTimeFormat, format_timedelta, tokenize_pattern
from babel.numbers import format_decimal

from limelight.data.phrases.units import COMPONENTS
from limelight.data.phrases.words import LITERAL, Word, tagged, words

_FIELDS = {
    **dict.fromkeys("yu", "year"),
    **dict.fromkeys("Qq", "quarter"),
    **dict.fromkeys("ML", "month"),
    "d": "day",
    **dict.fromkeys("Eec", "weekday"),
    **dict.fromkeys("hHKk", "hour"),
    "m": "minute",
    "s": "second",
    **dict.fromkeys("abB", "period"),
    "G": "era",
}
# What of a moment decides how a field of it is written.
_TOLD_BY = {
    **{name: (name,) for name in ("year", "month", "day", "hour", "minute", "second")},
    "quarter": ("month",),
    "period": ("hour", "minute"),
    "era": (),
}
# Where a locale has no list pattern of one style, CLDR's root points to the next of these.
_LIST_STYLES = {"long": ("unit", "unit-short", "standard"), "short": ("unit-short", "standard")}
_SECONDS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
    "year": 31_536_000,
}
# One number for each plural form of each language.
_PLURALS = (0, 1, 2, 3, 5, 11, 21, 100, Decimal("1.5"))


class LocaleText:
    """Writes values in one locale; keeps what it has written, for a demo corpus repeats its parts often.

    Args:
        locale: the locale; numbers are written in Latin digits in all of them, as `babel` does for dates.
    """

    def __init__(self, locale: Locale) -> None:
        self.locale = locale
        # Bound here rather than decorated on the class, so that the caches go with the object.
        self.unit = cache(self._unit)
        self.relative = cache(self._relative)
        self._moment_field = cache(self._format_field)
        self._tokens = cache(self._tokenize)
        self._forms = cache(self._unit_forms)
        self._ending = cache(self._per_forms)
        self._function_words = cache(self._relative_function_words)
        # Private data of babel, for two reasons: its format_unit fills missing plurals and lengths with display
        # names or codes ("2 duration-hour" in Dutch), and its format_list has no fallback between styles.
        self._units = locale._data["unit_patterns"]
        self._lists = locale.list_patterns

    # -- dates and times

    def pattern(self, table: str, key: str) -> str | None:
        """The CLDR pattern `table[key]` of this locale (`date`, `time`, `joined` or `skeleton`), or None if missing."""
        if table == "joined":
            return self._joined(key)
        tables = {
            "date": self.locale.date_formats,
            "time": self.locale.time_formats,
            "skeleton": self.locale.datetime_skeletons,
        }
        found = tables[table].get(key)
        return None if found is None else found.pattern

    def _joined(self, length: str) -> str | None:
        """A date of this length and a short time in one pattern."""
        date, time = self.pattern("date", length), self.pattern("time", "short")
        glue = self.locale.datetime_formats.get(length)
        if date is None or time is None or glue is None:
            return None
        return str(glue).replace("{1}", date).replace("{0}", time)

    def halves_of_day(self) -> bool:
        """Whether short times of this locale count to 12."""
        return any(letter in (self.pattern("time", "short") or "") for letter in "hK")

    def interval(self, skeleton: str, difference: str) -> list[str] | None:
        """The two halves of the interval pattern for this greatest difference, or None if CLDR has none."""
        halves = (self.locale.interval_formats.get(skeleton) or {}).get(difference)
        return list(halves) if halves and len(halves) == 2 else None

    def moment(self, pattern: str | None, value: datetime, part: int = 0) -> list[Word] | None:
        """The words of `value` written by a CLDR date pattern, or None for one with other fields, such as zones."""
        if pattern is None:
            return None
        sequence: list[Word] = []
        for field, token in self._tokens(pattern):
            if field is None:
                return None
            if field == LITERAL:
                sequence += tagged(token)
            else:
                sequence += self._moment_field(token, field, part, _key(field, value))
        return sequence

    def _tokenize(self, pattern: str) -> list[tuple[str | None, str]]:
        """Pairs of field and the letters of the pattern that stand for it; the field is None if it is another one."""
        return [
            (LITERAL, value) if isinstance(value, str) else (_FIELDS.get(value[0]), value[0] * value[1])
            for _, value in tokenize_pattern(pattern)
        ]

    def _format_field(self, token: str, field: str, part: int, key: tuple[int, ...]) -> tuple[Word, ...]:
        if field == "weekday":
            # 2000-01-03 is a Monday, weekday 0.
            value = datetime(2000, 1, 3 + key[0])
        else:
            told = {"year": 2000, "month": 1, "day": 1} | dict(zip(_TOLD_BY[field], key, strict=True))
            hour, minute, second = (told.get(name, 0) for name in ("hour", "minute", "second"))
            value = datetime(told["year"], told["month"], told["day"], hour, minute, second)
        text = DateTimeFormat(value, self.locale)[token]
        if field != "quarter":
            return tuple(tagged(text, field, part))
        # What all four quarters share is the word "quarter"; the rest tells which.
        names = frozenset.intersection(*(_word_set([name]) for name in self.locale.quarters["format"]["wide"].values()))
        return tuple(Word(word, field, part, "name" if word.casefold() in names else "") for word in words(text))

    # -- numbers and units

    def number(self, value: int | Decimal) -> str:
        """The number as this locale writes it."""
        return format_decimal(value, locale=self.locale, numbering_system="latn")

    def _unit(self, unit: str, length: str, value: int | Decimal, index: int) -> tuple[Word, ...] | None:
        """The words of `value` `unit`s, fields `number<index>` and `unit<index>`; None if the locale has no pattern."""
        pattern = self._unit_pattern(unit, length, self.locale.plural_form(value))
        if pattern is None:
            return None
        field = f"unit{index}"
        before, number, after = pattern.partition("{0}")
        sequence = [Word(word, field, 0, self._role(word, unit)) for word in words(before)]
        sequence += tagged(self.number(value), f"number{index}") if number else []
        return (*sequence, *(Word(word, field, 0, self._role(word, unit)) for word in words(after)))

    def _unit_pattern(self, unit: str, length: str, plural: str) -> str | None:
        """CLDR's inheritance: a missing plural form is `other`; a missing long form is the short one."""
        for style in (length, "short"):
            patterns = self._units.get(unit, {}).get(style, {})
            if plural in patterns or "other" in patterns:
                return patterns.get(plural, patterns.get("other"))
        return None

    def _role(self, word: str, unit: str) -> str:
        """Which component of a composed unit the word names: `kilometers` in "kilometers per hour"."""
        for component in COMPONENTS.get(unit, ()):
            if word.casefold() in self._forms(component) or word.casefold() in self._ending(component):
                return component
        return ""

    def _unit_forms(self, unit: str) -> frozenset[str]:
        """All words by which this locale names a unit."""
        patterns = (self._unit_pattern(unit, "long", self.locale.plural_form(value)) for value in _PLURALS)
        return _word_set(pattern for pattern in patterns if pattern)

    def _per_forms(self, unit: str) -> frozenset[str]:
        """The unit's own words in "per hour": those that are not in the same pattern of another unit."""
        names = (
            "duration-second",
            "duration-minute",
            "duration-hour",
            "duration-day",
            "length-meter",
            "length-centimeter",
        )
        patterns = {name: _word_set([self._units.get(name, {}).get("long", {}).get("per", "")]) for name in names}
        return patterns.get(unit, frozenset()) - _shared(patterns.values())

    def series(self, units: Sequence[str], length: str, values: Sequence[int]) -> list[Word] | None:
        """A duration of several units, "3 hours, 12 minutes", joined as this locale joins lists of units."""
        parts = [
            self.unit(unit, length, value, index) for index, (unit, value) in enumerate(zip(units, values, strict=True))
        ]
        sequence: list[Word] = []
        for index, part in enumerate(parts):
            if part is None:
                return None
            if not index:
                sequence = list(part)
                continue
            last = index == len(parts) - 1
            glue = self._list_pattern(length, "2" if len(parts) == 2 else "end" if last else "start")
            if glue is None:
                return None
            opening, _, rest = glue.partition("{0}")
            middle, _, closing = rest.partition("{1}")
            sequence = [*tagged(opening), *sequence, *tagged(middle), *part, *tagged(closing)]
        return sequence

    def _list_pattern(self, length: str, key: str) -> str | None:
        for style in _LIST_STYLES[length]:
            patterns = self._lists.get(style, {})
            if key in patterns:
                return patterns[key]
        return None

    # -- relative times

    def _relative(self, unit: str, value: int, direction: int) -> tuple[Word, ...] | None:
        """The words of "in 3 days" (direction 1) or "3 days ago" (-1); None if the locale has no pattern."""
        text = self._relative_text(unit, value, direction)
        before, number, after = text.partition(str(value))
        function = self._function_words(direction)

        def roles(part: str) -> list[Word]:
            return [Word(word, "unit0", 0, "function" if word.casefold() in function else "") for word in words(part)]

        return (*roles(before), *tagged(number, "number0"), *roles(after)) or None

    def _relative_text(self, unit: str, value: int, direction: int) -> str:
        # The threshold keeps babel from going over to a larger unit: 90 minutes stay 90 minutes.
        span = timedelta(seconds=_SECONDS[unit] * value * direction)
        return format_timedelta(span, granularity=unit, threshold=1e9, add_direction=True, locale=self.locale)  # pyright: ignore[reportArgumentType]

    def _relative_function_words(self, direction: int) -> frozenset[str]:
        """The words that say "in" or "ago": those that go with more than one unit."""
        values = [value for value in _PLURALS if isinstance(value, int) and value]
        return _shared(
            [_word_set(self._relative_text(unit, value, direction) for value in values) for unit in _SECONDS]
        )


def _key(field: str, value: datetime) -> tuple[int, ...]:
    """What of `value` decides how `field` is written."""
    return (value.weekday(),) if field == "weekday" else tuple(getattr(value, name) for name in _TOLD_BY[field])


def _word_set(texts: Iterable[str]) -> frozenset[str]:
    """All words of some texts or patterns in lower case, without numbers."""
    found = {word.casefold() for text in texts for word in words(text.replace("{0}", " "))}
    return frozenset(word for word in found if not word.isdigit() and word != LITERAL)


def _shared(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """What is in at least two of the sets."""
    counts = Counter(word for some in sets for word in some)
    return frozenset(word for word, count in counts.items() if count > 1)
