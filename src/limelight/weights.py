"""Weights as safetensors files with a checksum: what was cut short, changed or is of another model is noticed."""

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from limelight.errors import RunFolderError
from limelight.files import atomic_write

TRAIN_AGAIN = "restore it from a copy, or train again"
"""The way out when a file of a run is missing or damaged."""

_DIGITS = 32
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of dtypes in safetensors files, as far as weights and views have them."""


def model_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights by name; a weight that serves in two places is named once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fill_model(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy `tensors` into the model; they must be exactly its weights, in name and shape."""
    expected = model_tensors(model)
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong += [n for n in sorted(expected.keys() & tensors.keys()) if expected[n].shape != tensors[n].shape]
    if wrong:
        raise RunFolderError(
            f"{path} does not fit the model in config.json: {len(wrong)} tensors differ, the first is {wrong[0]!r}; "
            f"{TRAIN_AGAIN}"
        )
    for name, parameter in expected.items():
        parameter.copy_(tensors[name])


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts (JSON) as one safetensors file, atomically, with a checksum.

    Raises:
        OutputError: the disk is full, say; the file that was there before is then untouched.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    # Straight from their memory, without a copy, while another thread makes the checksum.
    with atomic_write(path) as file, ThreadPoolExecutor(1) as beside:
        checksum = beside.submit(_checksum, tensors, text)
        order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
        file.write(_head(tensors, order, text, "0" * _DIGITS))
        for name in order:
            file.write(_bytes(tensors[name]))
        file.seek(0)
        file.write(_head(tensors, order, text, checksum.result()))


def _head(tensors: dict[str, Tensor], order: list[str], facts: str, checksum: str) -> bytes:
    """What a safetensors file begins with: its length in 8 bytes, and JSON, filled up to a multiple of 8."""
    head: dict[str, Any] = {"__metadata__": {"limelight": "1", "facts": facts, "checksum": checksum}}
    place = 0
    for name in order:
        one = tensors[name]
        end = place + one.nbytes
        head[name] = {"dtype": _DTYPES[one.dtype], "shape": list(one.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_tensors(path: Path, way_out: str = TRAIN_AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; raises RunFolderError when missing, truncated, foreign or changed."""
    try:
        while True:
            before = path.stat()
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            # A training run may have put a newer file in its place between the opening of its head and of its tensors.
            if path.stat().st_ino == before.st_ino:
                break
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; {way_out}") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"{path} is truncated or not a safetensors file ({error}); {way_out}") from error
    if metadata.get("limelight") != "1" or "facts" not in metadata:
        raise RunFolderError(f"{path} was not written by Limelight; {way_out}")
    if metadata.get("checksum") != _checksum(tensors, metadata["facts"]):
        raise RunFolderError(f"{path} was changed after it was written (the checksum differs); {way_out}")
    return tensors, json.loads(metadata["facts"])


def _checksum(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=_DIGITS // 2)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
