"""Weights as safetensors files with a checksum: what was cut short, changed or is of another model is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from limelight.errors import RunFolderError
from limelight.files import atomic_write

TRAIN_AGAIN = "restore it from a copy, or train again"
"""The way out when a file of a run is missing or damaged."""


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
    metadata = {"limelight": "1", "facts": text, "checksum": _checksum(tensors, text)}
    content = safetensors.torch.save(tensors, metadata)
    with atomic_write(path) as file:
        file.write(content)


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
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
