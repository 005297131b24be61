"""What a run shows while it works: a live bar in a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_ENOUGH_UPDATES = 20  # before this many, the time left is a guess


@dataclass(frozen=True)
class Report:
    """Where training stands.

    Attributes:
        update: updates done.
        total: updates planned.
        epoch: the pass over the data, from 1.
        loss: negative log-likelihood per target token, in nats, a running mean.
        tokens_per_second: non-padding target tokens since the last report, in training alone.
        rate: the learning rate.
    """

    update: int
    total: int
    epoch: int
    loss: float
    tokens_per_second: float
    rate: float


class Speed:
    """Tokens over time, since it was made."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.tokens += tokens
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        """The speed so far; 0 before the first batch."""
        return self.tokens / max(self.seconds, 1e-9)


class Display(Protocol):
    """What the training loop tells; each method is called from the loop's own thread."""

    def say(self, line: str) -> None:
        """Something worth a line."""
        ...

    def update(self, report: Report) -> None:
        """Called every few updates."""
        ...

    def close(self) -> None:
        """Called once, at the end or on the way out of an error."""
        ...


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def update(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """A line every `seconds`, for files and pipes. The time left is told by the updates since the first report."""

    def __init__(self, seconds: float = 15.0):
        self.seconds = seconds
        self.last = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first report came, and its update

    def say(self, line: str) -> None:
        """Print it."""
        print(line, file=sys.stderr, flush=True)

    def update(self, report: Report) -> None:
        """Print a line when enough time has passed."""
        now = time.monotonic()
        # What came before the first report, reading the corpus or an earlier run, says nothing about the time left.
        self.first = self.first or (now, report.update)
        if now - self.last < self.seconds:
            return
        self.last = now
        self.say(
            f"epoch {report.epoch}  update {report.update}/{report.total}  loss {report.loss:.3f}  "
            f"{report.tokens_per_second:,.0f} tokens/s" + self._left(now, report)
        )

    def close(self) -> None:
        """Nothing to do."""

    def _left(self, now: float, report: Report) -> str:
        assert self.first is not None
        start, update = self.first
        done = report.update - update
        if done < _ENOUGH_UPDATES:
            return ""
        minutes = (now - start) / done * (report.total - report.update) / 60
        return f"  about {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"


class Live:
    """A live bar with loss, speed and time left."""

    def __init__(self, console: Console | None = None):
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("loss {task.fields[loss]:.3f}"),
            _SpeedColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=False,
        )
        self.task = None

    def say(self, line: str) -> None:
        """Print it above the bar."""
        self.progress.console.print(line, highlight=False, markup=False)

    def update(self, report: Report) -> None:
        """Move the bar."""
        fields = {"epoch": report.epoch, "loss": report.loss, "speed": report.tokens_per_second}
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task("", total=report.total, completed=report.update, **fields)
        self.progress.update(self.task, completed=report.update, total=report.total, **fields)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self.progress.stop()


class _SpeedColumn(ProgressColumn):
    def render(self, task) -> Text:
        """Target tokens per second."""
        return Text(f"{task.fields['speed']:,.0f} tokens/s")


def default_display() -> Display:
    """`Live` where standard error is a terminal, `Lines` elsewhere."""
    return Live() if sys.stderr.isatty() else Lines()
