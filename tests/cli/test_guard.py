import errno

import pytest
import typer

from limelight.cli.guard import guarded
from limelight.errors import ArgumentError, DataError


def raising(error):
    def command(batch_tokens=1, run=None):
        raise error

    return guarded(command)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArgumentError("batch_tokens: too many"), 2, "limelight: --batch-tokens: too many"),
        (ArgumentError("run: no run"), 2, "limelight: run: no run"),
        (DataError("a.tsv: is empty"), 2, "limelight: a.tsv: is empty"),
        (KeyboardInterrupt(), 130, "limelight: stopped"),
        (
            OSError(errno.ENOSPC, "No space left"),
            2,
            "limelight: cannot write the output: No space left; free some space",
        ),
        (MemoryError("too large"), 2, "limelight: out of memory (too large); take a smaller --batch-tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you\nsee"), 2, "memory: you); take a smaller"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(capfd, error, code, message):
    with pytest.raises(typer.Exit) as left:
        raising(error)()
    assert left.value.exit_code == code
    assert message in capfd.readouterr().err


def test_a_reader_that_has_gone_hears_nothing(capfd):
    with pytest.raises(typer.Exit) as left:
        raising(BrokenPipeError())()
    assert left.value.exit_code == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyError("a bug"), FileNotFoundError(errno.ENOENT, "no", "a")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        raising(error)()
