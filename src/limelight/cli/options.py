"""What several commands share: options, and small ways of reading and telling."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from limelight.data import Corpus

MOST_THREADS = 1024
"""As `training.config.MOST_THREADS`, which cannot be had here without importing torch; a test holds them together."""

Run = Annotated[
    Path, typer.Argument(help="The folder that [bold]limelight train --out[/bold] wrote.", show_default=False)
]
Tsv = Annotated[Path | None, typer.Argument(help="source<TAB>target lines, .gz too.", show_default=False)]
Source = Annotated[Path | None, typer.Option(help="Source sentences, a line each, .gz too.", show_default=False)]
Target = Annotated[Path | None, typer.Option(help="Their translations, a line each.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads; all cores where not given.", min=1, max=MOST_THREADS, show_default=False),
]
Weights = Annotated[str, typer.Option(help="best (on the dev part) or last.")]
Beam = Annotated[int, typer.Option(help="Hypotheses kept at each step; 1 is greedy search.", min=1)]
Alpha = Annotated[float, typer.Option(help="Exponent of the length penalty of beam search.", min=0.0)]


def use_threads(threads: int | None) -> None:
    """Tell torch how many threads to use."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def pairs_from(tsv: Path | None, source: Path | None, target: Path | None) -> "Corpus":
    """The corpus that a TSV argument or --source and --target name."""
    from limelight.data import Corpus
    from limelight.errors import ArgumentError

    if (tsv is None) == (source is None and target is None):
        raise ArgumentError("corpus: give either one TSV file, or both --source FILE and --target FILE")
    if tsv is None and (source is None or target is None):
        raise ArgumentError("corpus: --source and --target belong together; give both")
    return Corpus(tsv=tsv, source=source, target=target)


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be written, before the work and not after it."""
    from limelight.errors import ArgumentError, OutputError
    from limelight.pictures.canvas import FORMATS

    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"picture: must end in {', '.join(FORMATS)}, got {path}")
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"the folder {path.parent} does not exist; create it first"
        raise OutputError(f"picture: cannot write {path}: {why}")


def stderr() -> "Console":
    """A console for what is not the command's result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def warn(message: str) -> None:
    """Say on standard error that something is not as it should be, though the command goes on."""
    stderr().print(f"limelight: {message}", markup=False, style="yellow", soft_wrap=True)


def say(message: str) -> None:
    """Say something on standard error."""
    stderr().print(message, markup=False, soft_wrap=True)


def quoted(path: Path) -> str:
    """The path as a shell takes it."""
    return shlex.quote(str(path))
