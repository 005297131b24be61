"""Gold links between two renderings of one value, read off the fields their words were made from.

The distinction of sure and possible links, and what they are for, is that of Och and Ney, "A Systematic Comparison of
Various Statistical Alignment Models" (2003), section 5. Nothing here is estimated from text.
"""

from collections.abc import Sequence
from itertools import groupby, product

from limelight.data.phrases.words import LITERAL, Word, fields_of, is_punctuation

Links = frozenset[tuple[int, int]]

_Indices = Sequence[int]


def align(source: Sequence[Word], target: Sequence[Word]) -> tuple[Links, Links]:
    """Sure and possible links of two sequences of tagged words.

    Sure are
    - the words of one field on both sides: one word to all of the other side's; of several words to several, those
      with the same role, those that are spelled alike, and what is then left of one word; the digits and separators
      of a number one by one. Punctuation inside a field (the stop of an abbreviation) is sure only to its own kind;
    - a literal (comma, "at", "and") and its counterpart between the same two fields: equal ones, and the only mark or
      only word on each side; and equal punctuation after the same field.

    Possible are, besides the sure ones, all pairs of words of one field; a literal and the words of the two fields
    that it stands between; and a field that one side does not spell out with the field that tells it
    (`PM` with `15`, the 1 of "1 hour" with an Arabic singular).

    Args:
        source: S words.
        target: T words.

    Returns:
        (sure, possible), each of pairs (i, j) with i in [0, S - 1] and j in [0, T - 1]; sure is part of possible.
    """
    sure: set[tuple[int, int]] = set()
    possible: set[tuple[int, int]] = set()
    left_fields, right_fields = fields_of(source), fields_of(target)
    for field, left in left_fields.items():
        if field not in right_fields:
            possible.update(product(left, _hosts(field, right_fields)))
    for field, right in right_fields.items():
        if field not in left_fields:
            possible.update(product(_hosts(field, left_fields), right))
            continue
        for some, others in _halves(source, left_fields[field], target, right):
            possible.update(product(some, others))
            sure.update(_link_field(source, some, target, others))
    _link_literals(source, target, sure, possible)
    return frozenset(sure), frozenset(possible | sure)


def _hosts(field: str, fields: dict[str, list[int]]) -> list[int]:
    """The words of the field that tells `field` where it is not spelled out; nothing if there is none."""
    host = {"period": "hour", "era": "year"}.get(field, field.replace("number", "unit"))
    return fields.get(host, []) if host != field else []


def _halves(source: Sequence[Word], left: _Indices, target: Sequence[Word], right: _Indices):
    """The two halves of an interval apart, if both sides name the field in the same halves; else all in one."""
    parts = sorted({source[i].part for i in left})
    if parts != sorted({target[j].part for j in right}):
        return [(left, right)]
    return [
        ([i for i in left if source[i].part == part], [j for j in right if target[j].part == part]) for part in parts
    ]


def _link_field(source: Sequence[Word], left: _Indices, target: Sequence[Word], right: _Indices):
    """Sure links within one field."""
    if len(left) == len(right) == 1:
        return [(left[0], right[0])]
    if source[left[0]].field.startswith("number") and len(left) == len(right):
        return list(zip(left, right, strict=True))
    common = {source[i].role for i in left} & {target[j].role for j in right} - {""}
    links: list[tuple[int, int]] = []
    for role in sorted(common):
        some, others = [i for i in left if source[i].role == role], [j for j in right if target[j].role == role]
        links += _link_group(source, some, target, others)
    some, others = [i for i in left if source[i].role not in common], [j for j in right if target[j].role not in common]
    return links + _link_group(source, some, target, others)


def _link_group(source: Sequence[Word], left: _Indices, target: Sequence[Word], right: _Indices):
    """Equal words first; then, if one side has one content word left, that one with all of the other's."""
    links = _equal_words(source, left, target, right)
    left, right = _others(left, right, links)
    left, right = _content(source, left), _content(target, right)
    return links + list(product(left, right)) if 1 in (len(left), len(right)) else links


def _content(sequence: Sequence[Word], indices: _Indices) -> _Indices:
    return [i for i in indices if not is_punctuation(sequence[i].text)] or indices


def _others(left: _Indices, right: _Indices, links: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The words of both sides without those that are linked."""
    linked, reached = {i for i, _ in links}, {j for _, j in links}
    return [i for i in left if i not in linked], [j for j in right if j not in reached]


def _equal_words(source: Sequence[Word], left: _Indices, target: Sequence[Word], right: _Indices):
    """Pairs of words that are spelled alike and stand once on each side."""

    def once(sequence: Sequence[Word], indices: _Indices) -> dict[str, int]:
        texts = [sequence[i].text.casefold() for i in indices]
        return {text: i for text, i in zip(texts, indices, strict=True) if texts.count(text) == 1}

    others = once(target, right)
    return [(i, others[text]) for text, i in once(source, left).items() if text in others]


def _literals(sequence: Sequence[Word]) -> list[tuple[list[int], tuple, tuple]]:
    """Runs of literals as (positions, field before, field after); a field as (name, part), () at an end."""
    runs: list[tuple[list[int], tuple, tuple]] = []
    for literal, group in groupby(range(len(sequence)), key=lambda i: sequence[i].field == LITERAL):
        if literal:
            run = list(group)
            before = sequence[run[0] - 1][1:3] if run[0] else ()
            after = sequence[run[-1] + 1][1:3] if run[-1] + 1 < len(sequence) else ()
            runs.append((run, before, after))
    return runs


def _link_literals(source: Sequence[Word], target: Sequence[Word], sure: set, possible: set) -> None:
    """Add the links of literals to `sure` and `possible`."""
    left_runs, right_runs = _literals(source), _literals(target)
    for run, before, after in left_runs:
        near = [j for j, word in enumerate(target) if word.field != LITERAL and word[1:3] in (before, after)]
        possible.update(product(run, near))
    for run, before, after in right_runs:
        near = [i for i, word in enumerate(source) if word.field != LITERAL and word[1:3] in (before, after)]
        possible.update(product(near, run))
    for (left, before, after), (right, other_before, other_after) in product(left_runs, right_runs):
        if {before, after} == {other_before, other_after}:
            possible.update(product(left, right))
            sure.update(_link_same_place(source, left, target, right))
        elif before and before == other_before:
            sure.update(
                link for link in _equal_words(source, left, target, right) if is_punctuation(source[link[0]].text)
            )


def _link_same_place(source: Sequence[Word], left: _Indices, target: Sequence[Word], right: _Indices):
    """Sure links of two runs of literals between the same fields."""
    links = _equal_words(source, left, target, right)
    left, right = _others(left, right, links)
    for punctuation in (True, False):
        some = [i for i in left if is_punctuation(source[i].text) == punctuation]
        others = [j for j in right if is_punctuation(target[j].text) == punctuation]
        if len(some) == len(others) == 1:
            links.append((some[0], others[0]))
    return links
