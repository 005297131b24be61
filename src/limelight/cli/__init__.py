"""The command line: one file per command.

Exit codes: 0 done; 1 something went wrong that is Limelight's own fault; 2 a mistake in the input, told without a traceback;
130 stopped by Ctrl-C.
"""

import os
import sys

import typer

from limelight.errors import LimelightError

app = typer.Typer(
    name="limelight",
    help="Attention you can look at: learn to translate from parallel text, translate, and see what was attended to.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    from limelight.cli import align, demo, evaluate, info, train, translate

    for command in (train.train, translate.translate, evaluate.evaluate, align.align, demo.demo, info.info):
        app.command()(command)


def main() -> None:
    """The entry point `limelight`: run a command and leave with its exit code."""
    _register()
    try:
        app()
    except LimelightError as error:
        print(f"limelight: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("limelight: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said to it, not even while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


__all__ = ["app", "main"]
