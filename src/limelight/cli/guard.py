"""What stands around every command: mistakes become one message and an exit code, without a traceback."""

import contextlib
import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from limelight.errors import LimelightError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_ARGUMENTS = ("run", "corpus", "text")


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with the exit codes that `limelight.cli` lists for what can go wrong in it."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            # What is still in the buffer meets a full disk or a closed pipe here, and not while Python shuts down.
            _flush()
        except LimelightError as error:
            _leave(_in_options(str(error), command), error.exit_code)
        except KeyboardInterrupt:
            _leave("stopped", 130)
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(141) from None
        except OSError as error:
            if error.filename is not None or error.errno not in _FULL:
                raise
            _drop_output()
            _leave(f"cannot write the output: {error.strerror}; free some space, then run the same command again", 2)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            _leave(f"out of memory ({str(error).splitlines()[0]}); {_way_out(command)}", 2)

    return run


def _leave(message: str, code: int) -> NoReturn:
    # The results so far come before the message where both go to one terminal.
    try:
        _flush()
    except OSError:
        _drop_output()
    print(f"limelight: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(code) from None


def _flush() -> None:
    if sys.stdout is not None:  # it was closed before we began
        sys.stdout.flush()


def _drop_output() -> None:
    """Nothing more can be said on standard output, not even while Python shuts down."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_options(message: str, command: Callable[..., None]) -> str:
    """The message as the command line says it: a Python argument that it begins with becomes its option."""
    name, colon, rest = message.partition(":")
    if colon and name in inspect.signature(command).parameters and name not in _ARGUMENTS:
        return f"--{name.replace('_', '-')}:{rest}"
    return message


def _out_of_memory(error: BaseException) -> bool:
    # torch has no class of its own for the CPU's.
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)


def _way_out(command: Callable[..., None]) -> str:
    options = inspect.signature(command).parameters
    if "batch_tokens" in options:
        return "take a smaller --batch-tokens, --vocabulary or model"
    return "take a smaller --beam" if "beam" in options else "close other programs, or take a larger machine"
