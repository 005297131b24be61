"""Tokens as labels: safe to print, short enough to fit, measured in terminal cells."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len

from limelight.errors import ArgumentError
from limelight.evaluation.weights import Weights, weight_matrix

_NAMED = {" ": "␣", "\u00a0": "␣", "\u3000": "␣", "\n": "↵", "\r": "↵", "\t": "⇥"}

# Joiners shape letters and emoji, so they stay; any other character of these classes could move or recolour the screen.
_JOINERS = {"\u200c", "\u200d"}
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def labelled(
    weights: Weights, source_tokens: Sequence[str], target_tokens: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """The checked matrix `[T, S]` with S source and T target labels made readable.

    Raises:
        ArgumentError: `weights` is not one matrix of weights, or a list of tokens does not fit its axis.

    """
    matrix = weight_matrix(weights)
    for name, tokens, axis in (("target_tokens", target_tokens, 0), ("source_tokens", source_tokens, 1)):
        if isinstance(tokens, str):
            raise ArgumentError(f"{name}: must be a list of tokens, got the string {tokens[:40]!r}; split it first")
        if len(tokens) != matrix.shape[axis]:
            raise ArgumentError(
                f"{name}: needs one token for each of the {matrix.shape[axis]} "
                f"{'rows' if axis == 0 else 'columns'} of weights, which are [target, source], got {len(tokens)}"
            )
    return matrix, [readable(token) for token in source_tokens], [readable(token) for token in target_tokens]


def readable(token: str) -> str:
    """The token with white space made visible and control characters replaced; `∅` for an empty token."""
    text = printable("".join(_NAMED.get(letter, letter) for letter in token))
    return text if cell_len(text) else "∅"


def printable(text: str) -> str:
    """The text with every character that would control the screen replaced."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) in _UNSAFE and letter not in _JOINERS else letter for letter in text
    )


def shorten(text: str, width: int) -> str:
    """The text in at most `width` terminal cells, with an ellipsis where it was cut."""
    if cell_len(text) <= width:
        return text
    end = 0
    while end < len(text) and cell_len(text[: end + 1]) <= width - 1:
        end += 1
    return text[:end] + "…"


def pad(text: str, width: int, side: str = "left") -> str:
    """The text, cut if need be, filled with spaces to exactly `width` cells; `side` is where the text stands."""
    text = shorten(text, width)
    space = width - cell_len(text)
    before = {"left": 0, "right": space, "centre": space // 2}[side]
    # Marks keep a right-to-left word from reordering its neighbours in terminals that apply the bidi algorithm.
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text):
        text = f"\u200e{text}\u200e"
    return " " * before + text + " " * (space - before)
