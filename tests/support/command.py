"""Running `limelight` in tests: in this process, or as one of its own."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from limelight.cli import app


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output, line by line."""
        return self.out.removesuffix("\n").split("\n") if self.out else []


def limelight(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run a command in this process; whatever would print a traceback fails the test."""
    # Wide enough that no message is wrapped, and without colours.
    surroundings = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, env=surroundings, prog_name="limelight")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.stderr
    return Ran(result.exit_code, result.stdout, result.stderr)


def refused(*arguments: object, stdin: bytes = b"") -> str:
    """Run a command that must be refused as a user's mistake, without results; what it said on standard error."""
    ran = limelight(*arguments, stdin=stdin)
    assert (ran.code, ran.out) == (2, "")
    return ran.err


def start(*arguments: object, **pipes: Any) -> "subprocess.Popen[bytes]":
    """Start a command as a process of its own, with pipes for what is not given."""
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii", "COLUMNS": "300"}
    every = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    command = [sys.executable, "-m", "limelight", *map(str, arguments)]
    return subprocess.Popen(command, env=surroundings, preexec_fn=_as_from_a_terminal, **every)


def _as_from_a_terminal() -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and that is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
