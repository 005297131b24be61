"""Files that are there whole or not at all: atomic writing, and small JSON files that notice when they were changed.

Everything Limelight saves goes through `atomic_write`: the bytes go to a temporary name in the same folder, reach the
disk (fsync), and only then take the real name (`os.replace`). A crash, Ctrl-C or a full disk at any moment leaves the
old file as it was.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from limelight.errors import LimelightError, OutputError, RunFolderError

TEMPORARY_SUFFIX = ".limelight-tmp"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing which appears under its name only when the block has ended without an exception.

    Args:
        path: the file to write; its folder must exist. An existing file is replaced, and untouched if anything fails.
        mode: "wb" (bytes) or "w" (text, UTF-8, line ends kept as written).

    Yields:
        The file handle, seekable. The handle must not be closed by the caller.

    Errors:
        OutputError when the file cannot be written (no space, no permission, folder missing). Whatever else the block
        raises passes through; in every case the temporary file is removed.

    Example:
        >>> with atomic_write("notes.txt", "w") as file:
        ...     file.write("one line")
    """
    with atomic_path(path) as temporary, _open_new(temporary, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `atomic_write` for libraries which want a name, not a handle: yields the temporary path to write to.

    Errors: as `atomic_write`; the caller's file is not fsynced here unless it came from `atomic_write`.
    """
    final = Path(path)
    temporary = final.parent / f".{final.name[:100]}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        if final.is_dir():
            raise OutputError(f"cannot write {final}: it is a folder; choose another name or remove it")
        yield temporary
        os.replace(temporary, final)
        _sync_folder(final.parent)
    except OSError as error:
        # An error that names another file (a corpus that was being read, say) is not about this one.
        foreign = error.filename is not None and Path(os.fsdecode(error.filename)) not in (temporary, final)
        if foreign or isinstance(error, LimelightError):
            raise
        raise OutputError(f"cannot write {final}: {error.strerror or error}; {_way_out(error, final)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Remove temporary files which a killed process (kill -9, power cut) left in `folder`; returns how many there were.

    Call it only when no other process writes into the folder.
    """
    leftovers = [entry for entry in Path(folder).glob(f".*{TEMPORARY_SUFFIX}") if entry.is_file()]
    for entry in leftovers:
        entry.unlink(missing_ok=True)
    return len(leftovers)


def file_checksum(path: str | os.PathLike[str]) -> str:
    """A checksum of a file's bytes, for telling whether it was changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_sealed_json(path: str | os.PathLike[str], payload: dict[str, Any], *, format: str) -> None:
    """Write `payload` as JSON with the name of its format and a checksum, atomically.

    Args:
        path: the file.
        payload: what json can hold; the keys "format" and "checksum" are taken.
        format: what the file is, such as "limelight-tokenizer/1"; `read_sealed_json` insists on it.

    Errors:
        OutputError, as `atomic_write`.
    """
    sealed = {"format": format, "checksum": _checksum(payload), **payload}
    with atomic_write(path, "w") as file:
        json.dump(sealed, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_sealed_json(path: str | os.PathLike[str], *, format: str, way_out: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, and check that it is complete, of this format, and unchanged.

    Args:
        path: the file.
        format: the format expected.
        way_out: what the user can do, the end of each error message, such as "train again".

    Returns:
        The payload, without "format" and "checksum".

    Errors:
        RunFolderError when the file is missing, unreadable, truncated, of another format, or was changed.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; {way_out}") from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}; {way_out}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is truncated or is not JSON ({error}); {way_out}") from error
    if not isinstance(content, dict) or content.get("format") != format:
        found = content.get("format") if isinstance(content, dict) else None
        raise RunFolderError(f"{path} is not a {format} file (its format: {found!r}); {way_out}")
    payload = {key: value for key, value in content.items() if key not in ("format", "checksum")}
    if content.get("checksum") != _checksum(payload):
        raise RunFolderError(f"{path} was changed after it was written (the checksum differs); {way_out}")
    return payload


def _open_new(path: Path, mode: str) -> IO[Any]:
    # "x" refuses to follow a file or link that is already there.
    if mode == "wb":
        return open(path, "xb")
    return open(path, "x", encoding="utf-8", newline="")


def _checksum(payload: dict[str, Any]) -> str:
    canonical = json.dumps(payload, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    # The new name itself must reach the disk too; some file systems cannot sync a folder, which is no failure.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _way_out(error: OSError, path: Path) -> str:
    ways = {
        errno.ENOSPC: "free some space or choose another disk, then run the same command again",
        errno.EDQUOT: "your disk quota is used up: free some space or choose another disk, then run the command again",
        errno.EFBIG: "a size limit stands in the way (see `ulimit -f`): raise it or choose another disk",
        errno.ENOENT: f"the folder {path.parent} does not exist: create it first",
        errno.ENOTDIR: f"{path.parent} is not a folder: choose another name",
        errno.EACCES: f"you may not write into {path.parent}: choose another folder or change its permissions",
        errno.EPERM: f"you may not write into {path.parent}: choose another folder or change its permissions",
        errno.EROFS: f"{path.parent} is read-only: choose another folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    return ways.get(error.errno or 0, "the file that was there before, if any, is unchanged; choose another place")
