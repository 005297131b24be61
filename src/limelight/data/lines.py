"""The lines of a text file, plain or gzip, one at a time; what is no text file is said at once."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from limelight.errors import DataError

# A line of more bytes is not text; it is passed over in pieces of this size and never held in memory.
MAX_LINE_BYTES = 1 << 20


def read_lines(path: Path, expected: str) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None for a line over MAX_LINE_BYTES. Plain or gzip, by its first bytes.

    Args:
        path: the file.
        expected: what it should hold, for the message about an empty one.

    Errors:
        DataError, when reading starts: the file is missing, a folder, empty, or of another format (UTF-16, zip, .gz
        which is not gzip); on the way: it is damaged or cannot be read.
    """
    number = 0
    try:
        with _open(path, expected) as file:
            while raw := file.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                huge = len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n")
                while huge and (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield None if huge else raw.rstrip(b"\r\n")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path}, after line {number}: the gzip data is damaged or cut off ({error}); copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}, after line {number}: cannot be read: {error.strerror or error}") from error


def _open(path: Path, expected: str) -> IO[bytes] | gzip.GzipFile:
    if not path.exists():
        raise DataError(f"{path} does not exist; check the name")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; it is read more than once, so save it to a file first")
    with open(path, "rb") as file:
        head = file.read(4)
    if not head:
        raise DataError(f"{path} is empty; expected {expected}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    if head == b"PK\x03\x04":
        raise DataError(f"{path} is a zip archive; unpack it and name the text file in it")
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if path.suffix == ".gz":
        raise DataError(f"{path} ends in .gz but is not gzip; rename it or compress it again")
    return open(path, "rb")
