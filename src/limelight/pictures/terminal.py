"""An attention matrix as coloured or shaded blocks on the terminal, source across, target down."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from limelight.errors import ArgumentError
from limelight.evaluation.weights import Weights
from limelight.pictures.colours import STAGE, STAGE_256, mix
from limelight.pictures.labels import labelled, pad, printable, shorten

_NARROWEST = 20
_LONGEST_LABEL = 24
_BAR = 24
_STEPS = 64

# Lower ends of the intervals that share a shade; the last one ends at 1.
_SHADE_FROM = (0.0, 0.05, 0.25, 0.5, 0.75)
_BLOCKS = "·░▒▓█"
_ASCII_BLOCKS = ".:+*#"

_PLAIN = Style.null()
_BOLD = Style(bold=True)
_DIM = Style(dim=True)


@dataclass(frozen=True)
class Heatmap:
    """A picture that rich can print; made by `heatmap`. `str()` of it is the plain version, 80 columns wide."""

    weights: np.ndarray
    source: list[str]
    target: list[str]
    width: int | None = None
    title: str | None = None
    caption: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines of the picture, in colour where the console has at least 256 of them."""
        width = max(_NARROWEST, min(self.width or options.max_width, options.max_width))
        system = None if console.no_color else console.color_system
        ink = _Ink(system, _ASCII_BLOCKS if options.ascii_only else _BLOCKS)
        for line in _lines(self, width, ink):
            yield from line
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Any width from the narrowest up to the one asked for."""
        widest = max(_NARROWEST, min(self.width or options.max_width, options.max_width))
        return Measurement(_NARROWEST, widest)

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=self.width or 80, color_system=None, legacy_windows=False).print(self)
        return out.getvalue()


def heatmap(
    weights: Weights,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    width: int | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Heatmap:
    """An attention matrix for the terminal: source across, target down, the darker ground the smaller the weight.

    Each row's largest weight is also written as a number, in percent. The source reads as a line of text above its
    columns where that fits; a longer one is written as stairs, each word leading down to its column, and wraps into
    several panels rather than being cut. On a console without colour (a pipe, a file, NO_COLOR) the shades are
    the blocks `·░▒▓█`. Wide characters, combining marks and right-to-left words keep the columns straight.

    Arguments:
        weights: `[T, S]`, target by source, in [0, 1].
        source_tokens: S labels.
        target_tokens: T labels.
        width: columns to use at most, 20 or more; by default the console's.
        title: a line above.
        caption: a line below the scale.

    Returns:
        What `rich.print` and `Console.print` take; `str()` of it is the plain version.

    Raises:
        ArgumentError: not one matrix of weights, tokens that do not fit it, or a width below 20.

    """
    if width is not None and width < _NARROWEST:
        raise ArgumentError(f"width: must be {_NARROWEST} columns or more, got {width}")
    matrix, source, target = labelled(weights, source_tokens, target_tokens)
    return Heatmap(matrix, source, target, width, title, caption)


@dataclass(frozen=True)
class _Ink:
    """How a weight becomes a run of cells."""

    system: str | None
    blocks: str

    @property
    def colour(self) -> bool:
        # The 16 colours of old consoles have no order to read.
        return self.system in ("256", "truecolor")

    def cell(self, weight: float, width: int, text: str = "") -> Segment:
        if self.colour:
            return Segment(pad(text, width, "centre"), _style(self.system, round(weight * _STEPS)))
        block = self.blocks[_shade(weight)]
        # A gap on the right keeps neighbours of one shade apart; the faintest shade is one mark, to show the grid.
        body = f"{block:^{width - 1}}" if block == self.blocks[0] else block * (width - 1)
        if text:
            body = body[: (width - len(text)) // 2] + text + body[(width - len(text)) // 2 + len(text) :]
        return Segment(f"{body:<{width}}", _BOLD if text else _PLAIN)

    def scale(self) -> list[list[Segment]]:
        """What a shade means, in parts that stay whole when the line is wrapped."""
        if self.colour:
            bar = [Segment(" ", _style(self.system, round(n / (_BAR - 1) * _STEPS))) for n in range(_BAR)]
            return [[Segment("weight 0 ", _DIM), *bar, Segment(" 1", _DIM)]]
        ends = [f"{end:g}".lstrip("0") or "0" for end in (*_SHADE_FROM, 1.0)]
        parts = [f"{block} {low}–{high}" for block, low, high in zip(self.blocks, ends, ends[1:], strict=False)]
        return [[Segment(part, _PLAIN)] for part in ["weight", *parts]]


@lru_cache(maxsize=2 * _STEPS)
def _style(system: str | None, step: int) -> Style:
    if system == "256":
        ground = Color.from_ansi(STAGE_256[round(step / _STEPS * (len(STAGE_256) - 1))])
    else:
        ground = Color.from_rgb(*mix(STAGE, step / _STEPS))
    ink = Color.from_rgb(0, 0, 0) if step > 0.45 * _STEPS else Color.from_rgb(255, 255, 255)
    return Style(color=ink, bgcolor=ground, bold=True)


def _shade(weight: float) -> int:
    return sum(weight >= low for low in _SHADE_FROM[1:])


def _lines(picture: Heatmap, width: int, ink: _Ink) -> Iterator[list[Segment]]:
    if picture.title:
        yield [Segment(shorten(printable(picture.title), width), _BOLD)]
    margin = min(max(cell_len(label) for label in picture.target), _LONGEST_LABEL, width // 3)
    panels, sizes, stairs = _arranged(picture.source, width - margin - 1)
    for panel in panels:
        labels = [picture.source[n] for n in panel]
        if panel.start > 0:
            yield []
        if len(panels) > 1:
            yield [Segment(shorten(f"source {panel.start + 1} to {panel.stop} of {len(sizes)}", width), _DIM)]
        if stairs:
            header = _stairs(labels, sizes[0], width - margin - 1)
        else:
            header = [[Segment("".join(_centred(picture.source[n], sizes[n]) for n in panel), _BOLD)]]
        for line in header:
            yield [Segment(" " * (margin + 1)), *line]
        yield from _rows(picture, panel, sizes, margin, ink)
    yield []
    yield from _wrapped([*ink.scale(), [Segment("number: the row's largest, in %", _DIM)]], width, margin + 1)
    if picture.caption:
        yield [Segment(shorten(printable(picture.caption), width), _DIM)]


def _rows(picture: Heatmap, panel: range, sizes: list[int], margin: int, ink: _Ink) -> Iterator[list[Segment]]:
    strongest = picture.weights.argmax(axis=1)
    for row, label in enumerate(picture.target):
        cells = []
        for column in panel:
            size = sizes[column]
            weight = float(picture.weights[row, column])
            marked = column == strongest[row]
            # Two cells have no room for 100.
            percent = min(round(100 * weight), 99 if size < 3 else 100)
            text = str(percent) if marked and percent else ""
            cells.append(ink.cell(weight, size, text))
        yield [Segment(pad(label, margin, "right") + " ", _BOLD), *cells]


def _centred(label: str, width: int) -> str:
    return pad(label, width, "centre")


def _arranged(labels: list[str], room: int) -> tuple[list[range], list[int], bool]:
    """The columns of each panel, the width of every column, and whether the labels stand on stairs.

    A line of text above the columns is easiest to read, so it is taken unless stairs need fewer panels; and wide cells
    are taken unless narrow ones need fewer.
    """
    lengths = [min(cell_len(label), _LONGEST_LABEL, room - 2) for label in labels]
    choices = []
    for stairs in (False, True):
        for least in (3, 2):
            sizes = [least if stairs else max(least, length + 1) for length in lengths]
            # On stairs a label reaches over the columns to its right.
            reach = [max(size, 2 + length) if stairs else size for size, length in zip(sizes, lengths, strict=True)]
            choices.append((_panels(sizes, reach, room), sizes, stairs))
    return min(choices, key=lambda choice: len(choice[0]))


def _panels(sizes: list[int], reach: list[int], room: int) -> list[range]:
    """Runs of columns that fit into the room, as few as possible and of about equal length."""

    def split(most: int) -> list[range]:
        panels, start, used = [], 0, 0
        for n, size in enumerate(sizes):
            if n - start == most or used + reach[n] > room:
                panels.append(range(start, n))
                start, used = n, 0
            used += size
        return [*panels, range(start, len(sizes))]

    fewest = len(split(len(sizes)))
    even = -(-len(sizes) // fewest)
    return next(panels for most in range(even, len(sizes) + 1) if len(panels := split(most)) == fewest)


def _stairs(labels: list[str], size: int, room: int) -> list[list[Segment]]:
    """Column labels, each on a line of its own, that lead down to columns `size` cells wide."""
    lines = []
    for step, label in enumerate(labels):
        leaders = ("│" + " " * (size - 1)) * step
        text = shorten(label, min(_LONGEST_LABEL, room - 2))
        lines.append([Segment(f"{leaders}┌ ", _DIM), Segment(pad(text, cell_len(text)), _BOLD)])
    return lines


def _wrapped(parts: list[list[Segment]], width: int, indent: int) -> Iterator[list[Segment]]:
    """Parts side by side with two spaces between, on as many lines as they need."""
    line, used = [Segment(" " * indent)], indent
    for part in parts:
        size = sum(segment.cell_length for segment in part)
        if used > indent and used + 2 + size > width:
            yield line
            line, used = [Segment(" " * indent)], indent
        gap = 2 if used > indent else 0
        line = [*line, Segment(" " * gap), *part]
        used += gap + size
    yield line
