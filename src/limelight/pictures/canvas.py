"""What every picture file shares: the page, the settings, the fonts, and saving whole or not at all."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from limelight.errors import ArgumentError
from limelight.files import atomic_write
from limelight.pictures.labels import printable

FORMATS = (".png", ".svg", ".pdf")

# Around the picture, in inches.
_MARGIN = 0.12

# Asked for in this order when DejaVu lacks a letter; whatever is installed and has it is used.
_OTHER_FONTS = (
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "Noto Sans KR",
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Naskh Arabic",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "FreeSans",
    "FreeSerif",
    "Arial Unicode MS",
    "Segoe UI",
    "Nirmala UI",
    "Unifont",
)


def page(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that is all axes, in inches; what stands outside of them is added when it is saved."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


@contextmanager
def settings() -> Iterator[None]:
    """The settings that our files need, whatever the user's own are, and no warning for a letter that no font has."""
    values: dict[Any, Any] = {
        "text.usetex": False,
        "axes.unicode_minus": True,
        # Text stays text: small files, searchable, and the viewer finds fonts that are not installed here.
        "svg.fonttype": "none",
        # The same picture gives the same bytes.
        "svg.hashsalt": "limelight",
        # TrueType: type 3 has no letters beyond the first 256.
        "pdf.fonttype": 42,
    }
    with warnings.catch_warnings(), matplotlib.rc_context(values):
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield


def fonts(text: str) -> list[str]:
    """DejaVu Sans, which matplotlib brings along, and as many installed families as the other letters need."""
    families = ["DejaVu Sans"]
    missing = {letter for letter in text if letter.isprintable()} - _letters(families[0])
    for family in _OTHER_FONTS:
        if not missing:
            break
        found = missing & _letters(family)
        if found:
            families.append(family)
            missing -= found
    return families


@cache
def _letters(family: str) -> frozenset[str]:
    """The characters of an installed font family; none if it is not installed."""
    for entry in font_manager.fontManager.ttflist:
        if entry.name == family:
            return frozenset(map(chr, font_manager.get_font(entry.fname).get_charmap()))
    return frozenset()


def checked_path(path: str | Path, dpi: int) -> Path:
    """The path, if its ending names a format and `dpi` is in range; else an ArgumentError."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"path: the file must end in one of {', '.join(FORMATS)}, got {str(path)!r}")
    # Above, the largest page would take gigabytes.
    if not 20 <= dpi <= 300:
        raise ArgumentError(f"dpi: must lie in [20, 300], got {dpi}")
    return path


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write the figure, cut to what is drawn, in the format of the path's ending; OutputError if that fails."""
    kind = path.suffix.lower().removeprefix(".")
    # The date would make every file differ from the last.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    picture = io.BytesIO()
    figure.savefig(
        picture, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=_MARGIN, facecolor="white", metadata=metadata
    )
    with atomic_write(path) as file:
        file.write(picture.getvalue())
    return path


def draw_title(axes: Axes, title: str | None) -> None:
    """A title at the left edge, as it is written; nothing for None."""
    if title:
        text = printable(title)
        axes.set_title(text, fontsize=11, family=fonts(text), parse_math=False, pad=10, loc="left")
