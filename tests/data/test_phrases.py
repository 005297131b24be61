"""The embedded corpus: its texts against babel's own, its gold links against links set by hand, and its promises."""

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from babel import Locale
from babel.dates import format_date, format_time, format_timedelta
from babel.lists import format_list
from babel.units import format_unit

from limelight.data.phrases import Phrase, available_locales, generate, split_phrases, words
from limelight.data.phrases.kinds import KINDS
from limelight.data.phrases.links import align
from limelight.data.phrases.text import LocaleText
from limelight.data.phrases.words import join, tagged
from limelight.errors import ArgumentError

BY_NAME = {kind.name: kind for kind in KINDS}
MARCH = datetime(2025, 3, 4)


@pytest.fixture(scope="module")
def german() -> list[Phrase]:
    return generate()


def pair(kind: str, value, target: str, source: str = "en") -> tuple[str, str, str, str]:
    """Source, target, sure links, and the possible ones that are not sure, as words: "4~4 March~März"."""
    left, right = (BY_NAME[kind].write(LocaleText(Locale.parse(name)), value) for name in (source, target))
    assert left is not None
    assert right is not None
    sure, possible = align(left, right)
    assert sure <= possible
    spelled = [" ".join(f"{left[i].text}~{right[j].text}" for i, j in sorted(some)) for some in (sure, possible - sure)]
    return join(left), join(right), spelled[0], spelled[1]


def squeezed(text: str) -> str:
    return "".join(
        char for char in unicodedata.normalize("NFC", text) if unicodedata.category(char) not in ("Zs", "Cf")
    )


# -- words


def test_words_are_runs_of_letters_marks_and_digits_and_single_signs():
    assert words("Tuesday, 12.5 km/h") == ["Tuesday", ",", "12", ".", "5", "km", "/", "h"]
    assert words("3:45\u202fPM\u2009–\u20095") == ["3", ":", "45", "PM", "–", "5"]
    # A Hindi word with vowel signs, an Arabic date with marks of direction, m² and °C.
    assert words("किलोमीटर 5\u200f/3 m² °C") == ["किलोमीटर", "5", "/", "3", "m²", "°", "C"]
    assert words("می\u200cشود") == ["می\u200cشود"]
    assert words(" \u00a0") == []


# -- gold links, by hand


def test_german_date():
    source, target, sure, possible = pair("date_full", MARCH, "de")
    assert source == "Tuesday , March 4 , 2025"
    assert target == "Dienstag , 4 . März 2025"
    assert sure == "Tuesday~Dienstag ,~, March~März 4~4 2025~2025"
    # The comma after the weekday has a partner; the one before the year and the ordinal stop have not.
    assert possible == "Tuesday~, ,~Dienstag ,~März March~. 4~, 4~. ,~4 ,~2025"


def test_german_units():
    source, target, sure, _ = pair("unit", ("speed-kilometer-per-hour", Decimal("12.5")), "de")
    assert (source, target) == ("12 . 5 kilometers per hour", "12 , 5 Kilometer pro Stunde")
    assert sure == "12~12 .~, 5~5 kilometers~Kilometer per~pro hour~Stunde"
    # One word for two, and the same in the other direction.
    assert (
        pair("unit", ("area-square-kilometer", 7), "de")[2] == "7~7 square~Quadratkilometer kilometers~Quadratkilometer"
    )
    assert pair("unit", ("area-square-kilometer", 7), "en", "de")[2] == (
        "7~7 Quadratkilometer~square Quadratkilometer~kilometers"
    )


def test_words_in_another_order_link_by_the_component_that_they_name():
    source, target, sure, possible = pair("unit", ("area-square-meter", 5), "es")
    assert (source, target) == ("5 square meters", "5 metros cuadrados")
    assert sure == "5~5 square~cuadrados meters~metros"
    assert possible == "square~metros meters~cuadrados"
    assert pair("unit", ("length-light-year", 3), "es")[2] == "3~3 light~luz years~años"
    # The accusative of "per hour" is not a form of "3 hours" in Polish, and still known.
    assert pair("unit", ("speed-kilometer-per-hour", 3), "pl")[1:3] == (
        "3 kilometry na godzinę",
        "3~3 kilometers~kilometry per~na hour~godzinę",
    )


def test_half_of_the_day_is_possible_with_the_hour_that_tells_it():
    source, target, sure, possible = pair("time", datetime(2000, 1, 1, 15, 7), "de")
    assert (source, target, sure) == ("3 : 07 PM", "15 : 07", "3~15 :~: 07~07")
    assert "PM~15" in possible.split()


def test_spanish_function_words_are_only_possible():
    source, target, sure, possible = pair("date_long", MARCH, "es")
    assert (source, target) == ("March 4 , 2025", "4 de marzo de 2025")
    assert sure == "March~marzo 4~4 2025~2025"
    assert possible == "March~de March~de 4~de ,~4 ,~2025 2025~de"


def test_hebrew_prefix_and_arabic_numbers_without_a_digit():
    source, target, sure, possible = pair("date_long", MARCH, "he")
    assert (source, target) == ("March 4 , 2025", "4 ב מרץ 2025")
    assert sure == "March~מרץ 4~4 2025~2025"
    assert possible == "March~ב 4~ב ,~4 ,~2025"
    assert pair("unit", ("duration-hour", 1), "ar")[1:] == ("ساعة", "hour~ساعة", "1~ساعة")
    assert pair("duration", (("duration-hour", "duration-minute"), (1, 12)), "ar")[1:3] == (
        "ساعة و 12 دقيقة",
        "hour~ساعة 12~12 minutes~دقيقة",
    )


def test_japanese():
    source, target, sure, _ = pair("date_full", MARCH, "ja")
    assert (source, target) == ("Tuesday , March 4 , 2025", "2025 年 3 月 4 日 火曜日")
    assert sure == "Tuesday~火曜日 March~3 4~4 2025~2025"
    assert pair("unit", ("speed-kilometer-per-hour", 9), "ja")[1:3] == (
        "時速 9 キロメートル",
        "9~9 kilometers~キロメートル per~時速 hour~時速",
    )


def test_intervals_keep_their_halves_apart_and_share_the_rest():
    days = datetime(2025, 3, 4), datetime(2025, 3, 6)
    assert pair("days", days, "de")[:3] == (
        "Mar 4 – 6 , 2025",
        "4 . – 6 . März 2025",
        "Mar~März 4~4 –~– 6~6 2025~2025",
    )
    times = datetime(2000, 1, 1, 15, 30), datetime(2000, 1, 1, 19, 30)
    source, target, sure, possible = pair("times", times, "de")
    assert (source, target) == ("3 : 30 – 7 : 30 PM", "15 : 30 – 19 : 30 Uhr")
    assert sure == "3~15 :~: 30~30 –~– 7~19 :~: 30~30"
    assert {"PM~15", "PM~19", "30~Uhr"} <= set(possible.split())


def test_separators_between_the_same_fields_are_partners_however_they_look():
    assert pair("time", datetime(2000, 1, 1, 15, 7), "fi")[1:3] == ("15 . 07", "3~15 :~. 07~07")
    assert pair("days", (datetime(2025, 3, 4), datetime(2025, 3, 6)), "ja")[1:3] == (
        "2025 年 3 月 4 日 ～ 6 日",
        "Mar~3 4~4 –~～ 6~6 2025~2025",
    )
    # A mark and a word are not.
    assert pair("duration", (("duration-hour", "duration-minute"), (3, 12)), "es")[1:3] == (
        "3 horas y 12 minutos",
        "3~3 hours~horas 12~12 minutes~minutos",
    )


def test_relative_times_and_quarters():
    assert pair("relative", ("day", 3, -1), "fr")[1:3] == ("il y a 3 jours", "3~3 days~jours ago~il ago~y ago~a")
    # The dative is not a form of "3 days" in German.
    assert pair("relative", ("day", 3, -1), "de")[1:3] == ("vor 3 Tagen", "3~3 days~Tagen ago~vor")
    assert pair("relative", ("minute", 90, 1), "nl")[1] == "over 90 minuten"
    assert pair("quarter", datetime(2025, 8, 1), "es")[1:3] == (
        "3 . er trimestre de 2025",
        "3rd~3 3rd~er quarter~trimestre 2025~2025",
    )


def test_several_words_with_nothing_known_are_only_possible():
    sure, possible = align(tagged("two words", "unit0"), tagged("deux mots", "unit0"))
    assert sure == frozenset()
    assert possible == {(0, 0), (0, 1), (1, 0), (1, 1)}


# -- the texts against babel's own


def check_text(kind: str, value, name: str, expected: str) -> None:
    sequence = BY_NAME[kind].write(LocaleText(Locale.parse(name)), value)
    assert sequence is not None
    assert join(sequence).replace(" ", "") == squeezed(expected)


@pytest.mark.parametrize("name", ["en", "de", "es", "fr", "nl", "ja", "ar", "pl", "fi", "he", "th", "hi", "zh_Hant"])
def test_dates_and_times_are_those_of_babel_but_for_spaces(name):
    moment = datetime(1987, 11, 5, 16, 8, 9)
    for length in ("full", "long", "medium", "short"):
        check_text(f"date_{length}", moment, name, format_date(moment, length, locale=name))
    check_text("time", moment, name, format_time(moment, "short", locale=name))
    check_text("time_seconds", moment, name, format_time(moment, "medium", locale=name))
    weeks = format_timedelta(timedelta(weeks=23), granularity="week", threshold=99, add_direction=True, locale=name)
    check_text("relative", ("week", 23, 1), name, weeks)


@pytest.mark.parametrize("name", ["en", "de", "es", "fr", "nl", "ja", "ar", "pl", "fi", "he", "th", "hi"])
@pytest.mark.parametrize("number", [2, 5, 23, 300, Decimal("7.5")])
def test_units_are_those_of_babel_but_for_spaces(name, number):
    for unit in ("length-kilometer", "speed-mile-per-hour"):
        check_text("unit", (unit, number), name, format_unit(number, unit, "long", locale=name))
    check_text("unit_short", ("mass-gram", number), name, format_unit(number, "mass-gram", "short", locale=name))


def test_durations_are_joined_as_cldr_joins_lists_of_units():
    units, values = ("duration-day", "duration-hour", "duration-minute"), (2, 23, 59)
    parts = [format_unit(value, unit, "long", locale="en") for unit, value in zip(units, values, strict=True)]
    check_text("duration", (units, values), "en", format_list(parts, style="unit", locale="en"))
    # Where babel's format_list has no pattern, CLDR's inheritance gives one.
    check_text("duration", (units, values), "es", "2 días, 23 horas y 59 minutos")
    check_text("duration", (units, values), "fr", "2 jours, 23 heures et 59 minutes")
    check_text("duration", (units[1:], values[1:]), "de", "23 Stunden, 59 Minuten")


def test_units_that_babel_has_no_long_pattern_for_are_short_and_never_a_code():
    assert pair("unit", ("duration-hour", 2), "nl")[1] == "2 uur"
    assert pair("unit_short", ("duration-hour", 1), "es")[1] == "1 h"
    assert pair("unit", ("duration-hour", 2), "ja")[1] == "2 時間"


# -- the corpus


def check_links(phrases: list[Phrase]) -> None:
    for phrase in phrases:
        for text in (phrase.source, phrase.target):
            assert words(text) == text.split() == text.split(" ")
        source, target = len(phrase.source.split()), len(phrase.target.split())
        assert phrase.links
        assert phrase.links <= phrase.possible
        assert all(0 <= i < source and 0 <= j < target for i, j in phrase.possible)


def test_default_corpus(german):
    assert len(german) == 20_000
    assert len({phrase.source for phrase in german}) == 20_000
    check_links(german)
    counts = Counter(phrase.kind for phrase in german)
    assert set(counts) == set(BY_NAME)
    assert min(counts.values()) > 100


def test_every_word_occurs_often_enough_to_be_learnt(german):
    for texts in ([phrase.source for phrase in german], [phrase.target for phrase in german]):
        counts = Counter(word for text in texts for word in set(text.split()))
        assert min(counts.values()) >= 10
        assert len(counts) < 450


def test_no_digits_differ_but_by_the_locale_in_years(german):
    # Whatever the order of the fields, the year of the source is in the target.
    years = re.compile(r"\b(?:19|20)\d\d\b")
    dated = [phrase for phrase in german if years.search(phrase.source)]
    assert len(dated) > 5_000
    assert all(years.findall(phrase.source) == years.findall(phrase.target) for phrase in dated)


@pytest.mark.parametrize(("source", "target"), [("en", "es"), ("ja", "en"), ("fr", "pl")])
def test_pairs_are_a_function_of_the_source_for_all_seeds(source, target):
    known: dict[str, str] = {}
    for seed in (1, 2):
        for phrase in generate(source, target, size=2_003, seed=seed):
            assert known.setdefault(phrase.source, phrase.target) == phrase.target


def test_a_text_that_two_kinds_share_belongs_to_the_first(german):
    # Long and medium dates are alike in May; German writes them "4. Mai 2025" and "04.05.2025".
    kinds = {phrase.kind for phrase in german if re.fullmatch(r"May \d+ , \d{4}", phrase.source)}
    assert kinds == {"date_long"}


@pytest.mark.parametrize(
    "target", ["es", "fr", "nl", "ja", "ar", "pl", "fi", "he", "de-AT", "pt_BR", "zh-Hant", "th", "fa"]
)
def test_locales(target):
    phrases = generate("en", target, size=311)
    assert len({phrase.source for phrase in phrases}) == 311
    check_links(phrases)
    assert len({phrase.kind for phrase in phrases}) >= 18
    assert not any("duration" in phrase.target for phrase in phrases)


def test_same_seed_same_corpus_in_every_process():
    code = (
        "from limelight.data.phrases import generate\n"
        "for p in generate(size=53): print(p.source, p.target, sorted(p.links), sorted(p.possible), p.kind, sep='|')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    here = [f"{p.source}|{p.target}|{sorted(p.links)}|{sorted(p.possible)}|{p.kind}" for p in generate(size=53)]
    assert run.stdout.splitlines() == here
    assert generate(size=53, seed=2) != generate(size=53, seed=1) == generate(size=53)


def test_spellings_of_a_locale_are_one():
    assert generate("en", "pt-BR", size=7) == generate("EN", "pt_br", size=7) == generate("en", "pt_BR.UTF-8", size=7)


def test_a_text_with_two_meanings_stays_with_neither(monkeypatch):
    def draw(rng):
        return rng.randrange(50)

    def write(text, value):
        return tagged(f"{value}", "day")

    def write_otherwise(text, value):
        # Below 10 the source is that of `write`, and the target is not.
        return tagged(f"{value}" if value < 10 and str(text.locale) == "en" else f"x{value}", "day")

    first, second = BY_NAME["month"], BY_NAME["quarter"]
    kinds = replace(first, draw=draw, write=write), replace(second, draw=draw, write=write_otherwise)
    monkeypatch.setattr("limelight.data.phrases.pairs.KINDS", kinds)
    with pytest.raises(ArgumentError, match="has only 80 distinct pairs"):
        generate(size=81)


# -- parts


def test_split_has_no_source_in_two_parts(german):
    train, dev, test = split_phrases(german)
    assert (len(train), len(dev), len(test)) == (18_500, 500, 1_000)
    sources = [{phrase.source for phrase in part} for part in (train, dev, test)]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 20_000
    assert split_phrases(german)[2] == test
    assert split_phrases(german, seed=2)[2] != test
    # Nothing in the held-out part is a word that training has not shown.
    for side in ("source", "target"):
        shown = {word for phrase in train for word in getattr(phrase, side).split()}
        assert all(set(getattr(phrase, side).split()) <= shown for phrase in test)


def test_split_keeps_equal_sources_together():
    link = frozenset({(0, 0)})
    phrases = [
        Phrase(source, f"{source}{i}", link, link, "x") for source in ("a", "b", "c", "d", "e") for i in range(2)
    ]
    phrases += [Phrase("A", "z", link, link, "x")]
    train, dev, test = split_phrases(phrases, dev=1, test=1)
    sides = [{phrase.source.casefold() for phrase in part} for part in (train, dev, test)]
    assert [len(side) for side in sides] == [3, 1, 1]
    assert set.union(*sides) == set("abcde")
    assert len(train) + len(dev) + len(test) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dev": -1}, r"dev: must be 0 or more, got -1"),
        ({"test": -3}, r"test: must be 0 or more, got -3"),
        (
            {"dev": 3, "test": 4},
            r"dev \+ test: must leave phrases to train on, but 3 \+ 4 are wanted of 7 distinct sources",
        ),
    ],
)
def test_split_refuses(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        split_phrases(generate(size=7), **arguments)


# -- locales


def test_available_locales_can_all_be_named():
    names = available_locales()
    assert len(names) > 500
    assert names == sorted(set(names))
    assert {"de", "es", "fr", "nl", "ja", "ar", "pt_BR"} <= set(names)
    assert "root" not in names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "german",
            r"target: 'german' is not a locale .* carries; close matches: de.*available_locales\(\) lists all 1,\d\d\d",
        ),
        ("de_XX", r"'de_XX' is not a locale .*close matches: .*\bde\b"),
        ("es-ESS", r"'es-ESS' is not a locale .*close matches: es_ES"),
        ("", r"target: '' is not a locale that the babel package carries; "),
        ("root", r"'root' is not a locale"),
    ],
)
def test_unknown_locale_is_refused_with_close_matches(name, message):
    with pytest.raises(ArgumentError, match=message):
        generate("en", name, size=3)


def test_source_is_named_when_it_is_the_wrong_one():
    with pytest.raises(ArgumentError, match="source: 'klingon' is not a locale"):
        generate("klingon", "de", size=3)


def test_same_locale_on_both_sides_is_refused():
    with pytest.raises(ArgumentError, match="target: must differ from source, but both are 'de_AT'"):
        generate("de-AT", "de_at", size=3)


def test_size_is_checked():
    with pytest.raises(ArgumentError, match="size: must be 1 or more, got 0"):
        generate(size=0)
    with pytest.raises(ArgumentError, match="size: must be at most 1000000, got 1000001; the default is 20000"):
        generate(size=1_000_001)


def test_too_large_a_size_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr("limelight.data.phrases.pairs.KINDS", (BY_NAME["day"],))
    with pytest.raises(ArgumentError, match=r"size: 'en' to 'de' has only 36\d distinct pairs, 400 were asked for"):
        generate(size=400)
