"""What several commands share: options, and small ways of reading and printing."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from limelight.data import Corpus

Run = Annotated[Path, typer.Argument(help="The folder that [bold]limelight train --out[/bold] wrote.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores where not given.", min=1, show_default=False)]
Weights = Annotated[str, typer.Option(help="best (on the dev part) or last.")]
Beam = Annotated[int, typer.Option(help="Hypotheses kept at each step; 1 is greedy search.", min=1)]
Alpha = Annotated[float, typer.Option(help="Exponent of the length penalty of beam search.", min=0.0)]


def default_of(config: type, name: str) -> Any:
    """The default of a configuration's field, so that help tells the truth."""
    return next(field.default for field in fields(config) if field.name == name)


def given(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the named values that the user set."""
    return {name: values[name] for name in names if values[name] is not None}


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


def stderr() -> "Console":
    """A console for what is not the command's result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def warn(message: str) -> None:
    """Say something that is not an error on standard error."""
    stderr().print(f"limelight: {message}", markup=False, style="yellow", soft_wrap=True)
