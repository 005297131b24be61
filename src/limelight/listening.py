"""Who hears of the calls of `attend` and `look` that a thread makes: nobody, or the listener that `watch` set up."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from limelight.view import AttentionView, Observation


class Listener(ABC):
    """Takes over the calls of its thread: it makes them, inside `listening_to(None)`, and returns the results."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """What `attend(query, key, value, **options)` returns."""

    @abstractmethod
    def look(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
        observe: Sequence[str | Observation],
    ) -> tuple[Tensor, AttentionView]:
        """What `look(query, key, value, **options, observe=observe)` returns."""


class _Thread(threading.local):
    listener: Listener | None = None


_THREAD = _Thread()


def listener() -> Listener | None:
    """The listener of this thread."""
    return _THREAD.listener


def set_listener(new: Listener | None) -> Listener | None:
    """Another listener for this thread from now on, or none; returns the one before."""
    before, _THREAD.listener = _THREAD.listener, new
    return before


@contextmanager
def listening_to(new: Listener | None) -> Iterator[None]:
    """Inside the block this thread has another listener, or none."""
    before = set_listener(new)
    try:
        yield
    finally:
        set_listener(before)
