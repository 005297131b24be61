"""The command line: one file per command.

Exit codes: 0 done; 1 something went wrong that is Limelight's own fault; 2 a mistake in the input, told without a
traceback; 130 stopped by Ctrl-C; 141 whoever read the output has gone.
"""

import contextlib
import inspect
import io
import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="limelight",
    help="Attention you can look at: learn to translate from parallel text, translate, and see what was attended to.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from limelight import __version__

        print(f"limelight {__version__}")
        raise typer.Exit


@app.callback()
def _limelight(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _register() -> None:
    from limelight.cli import align, demo, evaluate, export, info, train, translate
    from limelight.cli.guard import guarded

    for command in (
        train.train,
        translate.translate,
        evaluate.evaluate,
        align.align,
        export.export,
        demo.demo,
        info.info,
    ):
        # A paragraph is one line for typer, which otherwise keeps the line ends of the source file.
        paragraphs = (inspect.getdoc(command) or "").split("\n\n")
        app.command(help="\n\n".join(" ".join(part.split()) for part in paragraphs))(guarded(command))


def main() -> None:
    """The entry point `limelight`: run a command and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Files and pipes get UTF-8, as they are read; a terminal that lacks a letter shows "?" instead of failing.
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            if stream.isatty():
                stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
            else:
                stream.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        app(prog_name="limelight")
    except KeyboardInterrupt:
        sys.exit(130)


_register()

__all__ = ["app", "main"]
