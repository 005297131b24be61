"""Pictures as files (PNG, SVG, PDF): attention heatmaps, and BLEU by sentence length.

Figures are made as objects, without pyplot: no window, no global state, and settings are given back when a call ends.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.cells import cell_len

from limelight.errors import ArgumentError
from limelight.evaluation.weights import Weights
from limelight.pictures.canvas import checked_path, draw_title, fonts, page, save, settings
from limelight.pictures.colours import PAPER
from limelight.pictures.labels import labelled, printable, shorten

if TYPE_CHECKING:
    # Only the type: drawing needs no sacrebleu.
    from limelight.evaluation.quality import LengthBin

_LONGEST_LABEL = 24
# Inches. Cells shrink as the map grows, from the second size to the first; then the map grows from its first size to
# its second; then cells shrink again. A map of 100 x 100 is 13 inches wide, with letters of 5.8 points.
_CELL = (0.11, 0.34)
_MAP = (13.0, 24.0)
# Height of a letter as a part of its cell, and about the width of a letter as a part of its height.
_LETTER = 0.62
_GREY = "#5b6470"
_FAINT = "#d9dde2"

# Colours that stay apart for the colour-blind and in grey print, with line styles to match.
_LINES = (("#087999", "-", "o"), ("#c2571a", "--", "s"), ("#253476", "-.", "^"), ("#52bc9b", ":", "D"))


def save_heatmap(
    path: str | Path,
    weights: Weights,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    title: str | None = None,
    dpi: int = 150,
) -> Path:
    """Draw an attention matrix to a file: source across on top, target down, white is 0 and dark is 1.

    The layout is that of figure 3 of Bahdanau, Cho and Bengio (2014), on an inverted scale. Cells are square; their
    size follows the number of tokens, so that every label can be read up to about 300 tokens a side; beyond that labels
    are thinned out evenly. Tokens are drawn as they are (`$` is no formula), in installed fonts for letters that the
    default font lacks, or as boxes where there is none; an SVG leaves the choice of font to whoever shows it.

    Arguments:
        path: the file to write, whole or not at all; its ending gives the format, one of `.png`, `.svg`, `.pdf`.
        weights: `[T, S]`, target by source, in [0, 1].
        source_tokens: S labels.
        target_tokens: T labels.
        title: a line above.
        dpi: pixels per inch of a PNG, and of the cells within an SVG or PDF.

    Returns:
        The path.

    Raises:
        ArgumentError: another ending, not one matrix of weights, tokens that do not fit it, or `dpi` outside [20, 300].
        OutputError: the file cannot be written.

    """
    path = checked_path(path, dpi)
    matrix, source, target = labelled(weights, source_tokens, target_tokens)
    rows, columns = matrix.shape
    longest = max(rows, columns)
    cell = min(_CELL[1], max(_CELL[0], _MAP[0] / longest), _MAP[1] / longest)
    with settings():
        figure, axes = page(columns * cell, rows * cell)
        mesh = _cells(axes, matrix, cell)
        _label_axes(axes, source, target, cell)
        _colour_bar(figure, mesh, columns * cell, rows * cell)
        draw_title(axes, title)
        return save(figure, path, dpi)


def save_length_plot(
    path: str | Path,
    series: "Mapping[str, Sequence[LengthBin]]",
    *,
    unit: str = "words",
    title: str | None = None,
    dpi: int = 150,
) -> Path:
    """Draw BLEU by sentence length for several models: figure 2 of Bahdanau, Cho and Bengio (2014).

    Arguments:
        path: the file to write, whole or not at all; its ending gives the format, one of `.png`, `.svg`, `.pdf`.
        series: for each model its name and what `evaluation.quality.by_length` returned.
        unit: what the lengths count.
        title: a line above.
        dpi: pixels per inch of a PNG.

    Returns:
        The path.

    Raises:
        ArgumentError: another ending, no series or one without intervals, or `dpi` outside [20, 300].
        OutputError: the file cannot be written.

    """
    path = checked_path(path, dpi)
    for name, bins in series.items():
        if not bins:
            raise ArgumentError(f"series: each model needs at least one interval, {name!r} has none")
    if not series:
        raise ArgumentError("series: needs at least one model, got none")
    places = sorted({(b.low, b.high) for bins in series.values() for b in bins})
    with settings():
        figure, axes = page(max(4.2, 0.75 * len(places)), 3.1)
        _draw_series(axes, series, places)
        _label_lengths(axes, series, places, unit)
        draw_title(axes, title)
        return save(figure, path, dpi)


def _cells(axes: Axes, matrix: np.ndarray, cell: float) -> ScalarMappable:
    """The squares, first row on top, and lines to follow with the eye."""
    rows, columns = matrix.shape
    # A line around each cell, until it would be more line than cell; then one every ten.
    outlined = cell > 0.15
    mesh = axes.pcolormesh(
        matrix,
        cmap=LinearSegmentedColormap.from_list("limelight", PAPER),
        vmin=0.0,
        vmax=1.0,
        edgecolors=_FAINT if outlined else "none",
        linewidth=0.5 if outlined else 0.0,
        # A vector picture of many cells would be slow to show and larger than its pixels.
        rasterized=matrix.size > 2_500,
    )
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    if not outlined:
        axes.set_xticks(range(10, columns, 10), minor=True)
        axes.set_yticks(range(10, rows, 10), minor=True)
        axes.grid(which="minor", color=_FAINT, linewidth=0.5)
    axes.spines[:].set(color=_FAINT, linewidth=0.8)
    return mesh


def _label_axes(axes: Axes, source: list[str], target: list[str], cell: float) -> None:
    """Tokens at the cells; upright if the source would overlap, every n-th where cells are smaller than letters."""
    size = min(10.0, max(5.0, _LETTER * 72 * cell))
    upright = max(cell_len(label) for label in source) * _LETTER * size / 72 > 0.9 * cell
    every = max(1, math.ceil(1.1 * size / 72 / cell))
    look = {"fontsize": size, "family": fonts("".join([*source, *target])), "parse_math": False}
    for axis, labels, turn in ((axes.xaxis, source, 90 if upright else 0), (axes.yaxis, target, 0)):
        texts = [shorten(label, _LONGEST_LABEL) for label in labels[::every]]
        axis.set_ticks(np.arange(len(labels))[::every] + 0.5, texts, rotation=turn, **look)
    axes.xaxis.tick_top()
    axes.tick_params(which="both", length=0, pad=3)


def _colour_bar(figure: Figure, mesh: ScalarMappable, width: float, height: float) -> None:
    """A bar at the right of the map, of the same thickness in inches for every size of map."""
    length = min(height, 2.4)
    place = (1 + 0.16 / width, 1 - length / height, 0.13 / width, length / height)
    bar = figure.colorbar(mesh, cax=figure.add_axes(place), ticks=[0, 0.5, 1] if length > 0.5 else [0, 1])
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=_GREY)
    bar.set_label("attention weight" if length > 1.1 else "weight", fontsize=8, color=_GREY)
    bar.outline.set(edgecolor=_FAINT, linewidth=0.8)  # type: ignore[operator]


def _draw_series(axes: Axes, series: "Mapping[str, Sequence[LengthBin]]", places: list[tuple[int, int]]) -> None:
    for number, bins in enumerate(series.values()):
        colour, line, mark = _LINES[number % len(_LINES)]
        ordered = sorted(bins, key=lambda b: b.low)
        axes.plot(
            [places.index((b.low, b.high)) for b in ordered],
            [b.bleu for b in ordered],
            color=colour,
            linestyle=line,
            marker=mark,
            markersize=5,
            linewidth=1.8,
            clip_on=False,
        )


def _label_lengths(
    axes: Axes, series: "Mapping[str, Sequence[LengthBin]]", places: list[tuple[int, int]], unit: str
) -> None:
    """Intervals with their numbers of sentences below, the names of the axes, and the legend."""
    ticks = []
    for low, high in places:
        # Models judged on different test sets have different counts.
        counts = {b.sentences: None for bins in series.values() for b in bins if (b.low, b.high) == (low, high)}
        ticks.append(f"{f'{low}–{high}' if low < high else low}\n{' / '.join(map(str, counts))}")
    axes.set_xticks(range(len(places)), ticks)
    axes.set_xlim(-0.3, len(places) - 0.7)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"source length in {printable(unit)} (below: sentences)", fontsize=9, color=_GREY, parse_math=False)
    axes.set_ylabel("BLEU", fontsize=9, color=_GREY)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    # Names go in afterwards: matplotlib leaves out labels that begin with an underscore.
    blank = [" "] * len(series)
    legend = axes.legend(
        axes.lines, blank, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, handlelength=2.8, fontsize=9
    )
    for text, name in zip(legend.get_texts(), map(printable, series), strict=True):
        text.set(text=name, family=fonts(name), parse_math=False)
