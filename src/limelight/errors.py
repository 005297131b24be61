"""Every exception Limelight raises on purpose.

Each message names the argument, the rule, the value that broke it and the way out. The command line prints the
message of a `LimelightError` alone, without a traceback, and leaves with the exception's `exit_code`.
"""


class LimelightError(Exception):
    """Base class: a mistake in the input that the user can mend."""

    exit_code = 2


class ArgumentError(LimelightError, ValueError):
    """An argument breaks a rule: a shape, a dtype, a range, a name."""


class TorchArgumentError(ArgumentError, AssertionError, RuntimeError):
    """An argument of something that takes the place of torch's own breaks a rule.

    torch raises ValueError, AssertionError or RuntimeError there; code that catches any of them catches this.
    """


class BackendError(LimelightError, RuntimeError):
    """No backend, or not the one asked for, can run this call; the message lists each backend's reasons."""


class DenseSizeError(LimelightError, MemoryError):
    """The dense attention matrix was asked for and is larger than the limit; the message names the bytes."""


class WatchError(LimelightError, KeyError):
    """A model cannot be watched, or nothing was seen where it is looked for; the message says what was."""

    # A KeyError would put its message in quotes.
    __str__ = Exception.__str__


class DataError(LimelightError, ValueError):
    """A corpus, or a line of it, breaks a rule; the message names the file and the line."""


class RunFolderError(LimelightError, ValueError):
    """A run folder is missing a file, or holds one that is truncated, foreign or tampered with."""


class OutputError(LimelightError, OSError):
    """A file could not be written: no space, no permission, or something is in the way."""


class ExportError(LimelightError, RuntimeError):
    """A model cannot be exported: a package is missing, or what was exported computes something else."""


class StaleViewError(LimelightError, RuntimeError):
    """A view was asked after a tensor that it computes from was changed in place; the message names the tensor."""


class ViewFileError(LimelightError, ValueError):
    """The file of a view is missing, truncated, foreign or changed; the message names the file."""
