"""A run folder: everything one training run leaves, and the only place that knows its file names.

    config.json             model, data and training settings, versions, the command
    source.tokenizer.json   and target.tokenizer.json
    best.safetensors        the weights that `translate` uses: best on the dev part, or the average where that was better
    last.safetensors        the whole state of training at its last save: what `--resume` goes on from
    snapshots/              the weights at the last validations, for the average
    log.jsonl               one line a report
    data/                   train.tsv, dev.tsv, test.tsv and the encoded training part

Weights are safetensors with a checksum, everything else is JSON or text; nothing is pickled or unpickled.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from limelight.data.tokenization import Tokenizer
from limelight.errors import OutputError, RunFolderError
from limelight.files import atomic_write, read_sealed_json, write_sealed_json
from limelight.models import TranslationModel, build_model, model_config

CONFIG_FORMAT = "limelight-run/1"
_TRAIN_AGAIN = "restore it from a copy, or train again"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder, and how its files are read and written."""

    path: Path

    @property
    def config(self) -> Path:
        """config.json."""
        return self.path / "config.json"

    @property
    def best(self) -> Path:
        """best.safetensors."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """last.safetensors."""
        return self.path / "last.safetensors"

    @property
    def snapshots(self) -> Path:
        """snapshots/."""
        return self.path / "snapshots"

    @property
    def log(self) -> Path:
        """log.jsonl."""
        return self.path / "log.jsonl"

    @property
    def data(self) -> Path:
        """data/."""
        return self.path / "data"

    def tokenizer(self, side: str) -> Path:
        """The tokenizer of "source" or "target"."""
        return self.path / f"{side}.tokenizer.json"

    def create(self) -> None:
        """Make the folder.

        Raises:
            OutputError: it holds something already, or cannot be made.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            resume = " go on with it (--resume)," if self.config.exists() else ""
            raise OutputError(f"out: {self.path} exists and is not empty;{resume} replace it (--overwrite) or choose another")
        try:
            for folder in (self.path, self.snapshots, self.data):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"out: cannot make {self.path}: {error.strerror}; choose another folder") from error

    def clear(self) -> None:
        """Remove what an earlier run left in the folder; files that no run writes stay where they are."""
        named = [self.config, self.best, self.last, self.log, self.tokenizer("source"), self.tokenizer("target")]
        for file in [*named, *self.snapshots.glob("*"), *sorted(self.data.rglob("*"), reverse=True)]:
            if file.is_dir():
                file.rmdir()
            else:
                file.unlink(missing_ok=True)
        for folder in (self.snapshots, self.data):
            if folder.is_dir():
                folder.rmdir()

    def check(self) -> None:
        """Raise RunFolderError when the folder is not there or was not made by a training run."""
        if not self.path.is_dir():
            raise RunFolderError(f"run: {self.path} is not a folder; give the folder that `limelight train --out` wrote")
        if not self.config.exists():
            raise RunFolderError(f"run: {self.path} has no config.json, so it is no run folder; {_TRAIN_AGAIN}")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        write_sealed_json(self.config, config, format=CONFIG_FORMAT)

    def read_config(self) -> dict[str, Any]:
        """Read config.json; raises RunFolderError when missing, truncated or changed."""
        self.check()
        return read_sealed_json(self.config, format=CONFIG_FORMAT, way_out=_TRAIN_AGAIN)

    def read_tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Source and target tokenizer."""
        return Tokenizer.load(self.tokenizer("source")), Tokenizer.load(self.tokenizer("target"))

    def load_model(self, weights: str = "best") -> TranslationModel:
        """Build the model of config.json and fill it with the "best" or "last" weights; in evaluation mode.

        Raises:
            RunFolderError: a file is missing, damaged, or does not belong to this configuration.
        """
        described = dict(self.read_config()["model"])
        model = build_model(model_config(described.pop("kind"), **described))
        path = {"best": self.best, "last": self.last}[weights]
        tensors, _ = read_tensors(path)
        if weights == "last":
            prefix = "model/"
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        fill_model(model, tensors, path)
        return model.eval()


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
            f"{_TRAIN_AGAIN}"
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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; raises RunFolderError when missing, truncated, foreign or changed."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; {_TRAIN_AGAIN}") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"{path} is truncated or not a safetensors file ({error}); {_TRAIN_AGAIN}") from error
    if metadata.get("limelight") != "1" or "facts" not in metadata:
        raise RunFolderError(f"{path} was not written by Limelight; {_TRAIN_AGAIN}")
    if metadata.get("checksum") != _checksum(tensors, metadata["facts"]):
        raise RunFolderError(f"{path} was changed after it was written (the checksum differs); {_TRAIN_AGAIN}")
    return tensors, json.loads(metadata["facts"])


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line; raises OutputError when that fails."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free some space, then --resume") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that a kill cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def rewrite_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace a JSON-lines file, atomically."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + os.linesep for record in records)


def _checksum(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
