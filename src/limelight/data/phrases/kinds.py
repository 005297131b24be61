"""The kinds of phrases: how a value of each is drawn, and how a locale writes it.

A kind knows no locale. Its value is language-neutral (a moment, a number and a unit, ...), both sides write the same
value, and so a pair and its gold links follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from limelight.data.phrases.text import LocaleText
from limelight.data.phrases.units import LARGEST, RELATIVE_UNITS, SERIES, UNITS
from limelight.data.phrases.words import Word

# Exactly a hundred years, so that a year of two digits means one year.
FIRST_DAY = datetime(1950, 1, 1)
DAYS = (datetime(2050, 1, 1) - FIRST_DAY).days
LARGE_NUMBERS = (100, 120, 150, 200, 250, 300, 400, 500, 600, 750, 800, 900)


@dataclass(frozen=True)
class Kind:
    """One kind of phrase.

    Attributes:
        name: as in `Phrase.kind`.
        family: kinds of one family write the same values, in different ways; where two write a value alike in the
            source language ("May 4, 2025" is the long and the medium date), only the first one has it.
        weight: its share of a corpus, relative to the other kinds'.
        draw: a random value.
        write: the words of a value in one locale, or None where CLDR has no data for it.
    """

    name: str
    family: str
    weight: float
    draw: Callable[[Random], Any]
    write: Callable[[LocaleText, Any], Sequence[Word] | None]


def _day(rng: Random) -> datetime:
    return FIRST_DAY + timedelta(days=rng.randrange(DAYS))


def _minute(rng: Random) -> datetime:
    """A time of day; the date is always the same."""
    return datetime(2000, 1, 1) + timedelta(minutes=rng.randrange(24 * 60))


def _second(rng: Random) -> datetime:
    return _minute(rng) + timedelta(seconds=rng.randrange(60))


def _weekday_minute(rng: Random) -> datetime:
    return _minute(rng) + timedelta(days=rng.randrange(7))


def _day_and_minute(rng: Random) -> datetime:
    return _day(rng) + timedelta(minutes=rng.randrange(24 * 60))


def _days(rng: Random) -> tuple[datetime, datetime]:
    """Two different days of one month."""
    first, second = sorted(rng.sample(range(1, 29), 2))
    day = _day(rng)
    return day.replace(day=first), day.replace(day=second)


def _days_of_months(rng: Random) -> tuple[datetime, datetime]:
    """Two days of different months of one year."""
    first, second = sorted(rng.sample(range(1, 13), 2))
    year = FIRST_DAY.year + rng.randrange(100)
    return datetime(year, first, rng.randint(1, 28)), datetime(year, second, rng.randint(1, 28))


def _times(rng: Random) -> tuple[datetime, datetime]:
    """Two full hours, or hours and minutes, of one half of the day; the hours differ."""
    first, second = sorted(rng.sample(range(12), 2))
    half = 12 * rng.randrange(2)
    minutes = [5 * rng.randrange(12) for _ in range(2)]
    return datetime(2000, 1, 1, half + first, minutes[0]), datetime(2000, 1, 1, half + second, minutes[1])


def _number(rng: Random) -> int | Decimal:
    """Numbers of a small inventory of words: 1 to 99, some round ones, and 1.1 to 99.9 in tenths."""
    choice = rng.random()
    if choice < 0.65:
        return rng.randint(1, 99)
    if choice < 0.75:
        return rng.choice(LARGE_NUMBERS)
    return Decimal(f"{rng.randint(1, 99)}.{rng.randint(1, 9)}")


def _quantity(rng: Random) -> tuple[str, int | Decimal]:
    return rng.choice(UNITS), _number(rng)


def _series(rng: Random) -> tuple[tuple[str, ...], tuple[int, ...]]:
    units = rng.choice(SERIES)
    return tuple(f"duration-{unit}" for unit in units), tuple(rng.randint(1, LARGEST[unit]) for unit in units)


def _relative(rng: Random) -> tuple[str, int, int]:
    return rng.choice(RELATIVE_UNITS), rng.randint(1, 99), rng.choice((-1, 1))


def _moments(table: str, key: str) -> Callable[[LocaleText, datetime], Sequence[Word] | None]:
    return lambda text, value: text.moment(text.pattern(table, key), value)


def _weekday_and_time(text: LocaleText, value: datetime) -> Sequence[Word] | None:
    return text.moment(text.pattern("skeleton", "Ehm" if text.halves_of_day() else "EHm"), value)


def _interval(text: LocaleText, skeleton: str, difference: str, value: tuple[datetime, datetime]) -> list[Word] | None:
    halves = text.interval(skeleton, difference)
    if halves is None:
        return None
    first, second = text.moment(halves[0], value[0], 0), text.moment(halves[1], value[1], 1)
    return None if first is None or second is None else first + second


def _time_interval(text: LocaleText, value: tuple[datetime, datetime]) -> Sequence[Word] | None:
    return _interval(text, "hm", "h", value) if text.halves_of_day() else _interval(text, "Hm", "H", value)


def _lengths(name: str, weight: float, short: float, draw, write) -> tuple[Kind, Kind]:
    """The kind with units in words, and the one with their abbreviations."""
    return (
        Kind(name, name, weight, draw, lambda text, value: write(text, value, "long")),
        Kind(f"{name}_short", name, short, draw, lambda text, value: write(text, value, "short")),
    )


KINDS: tuple[Kind, ...] = (
    Kind("date_full", "date", 14, _day, _moments("date", "full")),
    Kind("date_long", "date", 9, _day, _moments("date", "long")),
    Kind("date_medium", "date", 7, _day, _moments("date", "medium")),
    Kind("date_short", "date", 6, _day, _moments("date", "short")),
    Kind("date_weekday", "date", 6, _day, _moments("skeleton", "yMMMEd")),
    Kind("weekday_day", "day", 5, _day, _moments("skeleton", "MMMEd")),
    Kind("day", "day", 1.2, _day, _moments("skeleton", "MMMMd")),
    Kind("month", "month", 4, _day, _moments("skeleton", "yMMMM")),
    Kind("quarter", "quarter", 1, _day, _moments("skeleton", "yQQQQ")),
    Kind("time", "time", 4, _minute, _moments("time", "short")),
    Kind("time_seconds", "time", 5, _second, _moments("time", "medium")),
    Kind("weekday_time", "weekday_time", 5, _weekday_minute, _weekday_and_time),
    Kind("date_time_full", "date_time", 5, _day_and_minute, _moments("joined", "full")),
    Kind("date_time_long", "date_time", 5, _day_and_minute, _moments("joined", "long")),
    Kind("days", "days", 5, _days, lambda text, value: _interval(text, "yMMMd", "d", value)),
    Kind("days_of_months", "days", 3, _days_of_months, lambda text, value: _interval(text, "yMMMd", "M", value)),
    Kind("times", "times", 4, _times, _time_interval),
    *_lengths("unit", 12, 4, _quantity, lambda text, value, length: text.unit(value[0], length, value[1], 0)),
    *_lengths("duration", 7, 4, _series, lambda text, value, length: text.series(value[0], length, value[1])),
    Kind("relative", "relative", 4, _relative, lambda text, value: text.relative(*value)),
)
