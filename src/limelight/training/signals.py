"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopRequest:
    """Inside `with`, the first Ctrl-C or SIGTERM sets `asked` and calls `tell`; a second one raises KeyboardInterrupt.

    Signals can only be caught in the main thread; in any other nothing is caught and `asked` stays False.
    """

    def __init__(self, tell: Callable[[], None]):
        self.asked = False
        self._tell = tell
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "StopRequest":
        """Catch the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them to whom they belonged."""
        for number, handler in self._before.items():
            # None stands for a handler that was not set by Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # A signal that comes in the middle of a print cannot print.
        with contextlib.suppress(RuntimeError):
            self._tell()
