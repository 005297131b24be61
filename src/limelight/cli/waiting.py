"""A bar on standard error for what takes a while, where a person watches."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limelight.cli.options import stderr

_PATIENCE = 1.0  # seconds without a bar; what is done by then needs none


@contextmanager
def waiting(title: str, total: int | None, *, printing: bool = False) -> Iterator[Callable[[int], None]]:
    """A context manager that gives a function to be told how many are done.

    The bar appears after a second, vanishes at the end, and is there only when standard error is a terminal.

    Args:
        title: what is being done.
        total: how many there are; None where nobody knows, which shows the number done.
        printing: results are printed meanwhile; on a terminal they are the progress, and a bar would run into them.
    """
    if not sys.stderr.isatty() or (printing and sys.stdout.isatty()):
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    )
    task = progress.add_task(title, total=total)
    began = time.monotonic()

    def advance(done: int) -> None:
        progress.update(task, completed=done)
        if time.monotonic() - began > _PATIENCE:
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()
