"""The log of a run, JSON lines: one record a line, each with the update it belongs to."""

import json
from pathlib import Path
from typing import Any

from limelight.errors import OutputError, RunFolderError
from limelight.files import atomic_write


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line; raises OutputError when that fails."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free some space, then --resume") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, of which those with an "update" count; a line that a kill cut short ends them.

    Raises:
        RunFolderError: the file cannot be read.
    """
    try:
        text = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}; remove it, it is only a log") from error
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if isinstance(record, dict) and isinstance(record.get("update"), int):
            records.append(record)
    return records


def rewrite_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
