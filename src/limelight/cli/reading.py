"""Sentences from a pipe or a keyboard: as many at a time as are there, so that nobody waits for the next one."""

import io
import os
import select
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from limelight.cli.options import warn
from limelight.errors import DataError

MOST = 2000  # lines that are handed on together
_BLOCK = 1 << 16
_PAUSE = 0.02  # seconds after which a writer that has said nothing is taken to wait for an answer


def sentences(file: BinaryIO) -> Iterator[list[str]]:
    """The lines of a binary file in lists of 1 to `MOST`; what comes from a live writer is handed on at once.

    A line that is not UTF-8 is told on standard error and given as far as it can be read.
    """
    number = 0
    for chunk in _chunks(file):
        lines = []
        for raw in chunk:
            number += 1
            lines.append(readable(raw, f"line {number}"))
        yield lines


def readable(raw: bytes | bytearray, where: str) -> str:
    """The text of a line without its end; NUL is a space, and bytes that are not UTF-8 are left out, with a warning."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        warn(f"{where}: invalid UTF-8; what cannot be read is left out")
        text = raw.decode("utf-8", errors="ignore")
    return text.removeprefix("\ufeff").rstrip("\r\n").replace("\0", " ")


def _chunks(file: BinaryIO) -> Iterator[list[bytes | bytearray]]:
    try:
        descriptor = file.fileno()
        select.select([descriptor], [], [], 0)
    except (OSError, ValueError, io.UnsupportedOperation):
        # Not a file of the system, or one that cannot be asked whether something is there.
        lines = iter(file)
        while chunk := list[bytes | bytearray](islice(lines, MOST)):
            yield chunk
        return
    yield from _live_chunks(descriptor)


def _live_chunks(descriptor: int) -> Iterator[list[bytes | bytearray]]:
    lines: list[bytes | bytearray] = []
    rest = bytearray()
    while block := _read(descriptor):
        rest += block
        if b"\n" in block:
            *whole, rest = rest.split(b"\n")
            lines += whole
        while len(lines) >= MOST:
            yield lines[:MOST]
            lines = lines[MOST:]
        if lines and not select.select([descriptor], [], [], _PAUSE)[0]:
            yield lines
            lines = []
    if rest:
        lines.append(rest)
    if lines:
        yield lines


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _BLOCK)
    except OSError as error:
        raise DataError(
            f"standard input cannot be read: {error.strerror}; give sentences after the run folder"
        ) from error
