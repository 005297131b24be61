"""A run folder: everything one training run leaves, and the only place that knows its file names.

    config.json             model, data and training settings, versions, the command
    source.tokenizer.json   and target.tokenizer.json
    best.safetensors        the weights that `translate` uses: best on the dev part, or the average where it is better
    last.safetensors        the whole state of training at its last save: what `--resume` goes on from
    snapshots/              the weights at the last validations, for the average
    log.jsonl               one line a report
    data/                   train.tsv, dev.tsv, test.tsv, their word links where training is guided by such
                            (train.links, ...), and the encoded training part

Weights are safetensors with a checksum, everything else is JSON or text; nothing is pickled or unpickled.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limelight.data.dataset import LINKS, META, NAMES
from limelight.data.split import PARTS, links_beside
from limelight.data.tokenization import Tokenizer
from limelight.errors import ArgumentError, LimelightError, OutputError, RunFolderError
from limelight.files import TEMPORARY_SUFFIX, read_sealed_json, remove_leftovers, write_sealed_json
from limelight.models import TranslationModel, build_model, model_config
from limelight.weights import TRAIN_AGAIN, fill_model, read_tensors

CONFIG_FORMAT = "limelight-run/1"


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

    @property
    def successor(self) -> "RunFolder":
        """The folder within this one where a run that shall replace it begins; a kill may leave one behind."""
        return RunFolder(self.path / f".successor{TEMPORARY_SUFFIX}")

    def create(self, *, overwrite: bool = False) -> "RunFolder":
        """Make the folder.

        Args:
            overwrite: begin a run that replaces the one that the folder holds.

        Returns:
            Where the new run begins: this folder; or its `successor`, if there is a run to be replaced, which stays as
            it is until `succeed` is called.

        Raises:
            OutputError: the folder holds something already that is not to be replaced or is no run, or cannot be made.
        """
        occupied = self.path.is_dir() and any(self.path.iterdir())
        if occupied and not overwrite:
            ways = " go on with it (--resume)," if self.last.exists() else ""
            ways += " replace it (--overwrite) or" if self._foreign() is None else ""
            raise OutputError(f"out: {self.path} exists and is not empty;{ways} choose another folder")
        new = self
        if occupied:
            new = self.successor
            new.discard()
            foreign = self._foreign()
            if foreign is not None:
                raise OutputError(
                    f"out: {self.path} is not the folder of a run, it holds {foreign}; only a run can be replaced "
                    "(--overwrite), choose another folder"
                )
        new._make_folders()
        return new

    def succeed(self, new: "RunFolder") -> "RunFolder":
        """Put the run in `new`, which `create` made, in the place of the one here; returns this folder.

        Raises:
            OutputError: something in the folder cannot be replaced.
        """
        if new == self:
            return self
        self.discard()
        self._make_folders()
        try:
            # A folder without config.json, which comes last, is no run yet.
            for file in reversed(new.written()):
                place = self.path / file.relative_to(new.path)
                place.parent.mkdir(exist_ok=True)
                shutil.move(file, place)
        except OSError as error:
            raise OutputError(f"out: cannot write {self.path}: {error.strerror}; choose another folder") from error
        new.discard()
        return self

    def discard(self) -> None:
        """Remove all files that a run writes, and the folders that are then empty; other files stay where they are.

        Raises:
            OutputError: something cannot be removed.
        """
        folders = (self.data / "train", self.data, self.snapshots, self.path)
        try:
            for file in self.written():
                file.unlink()
            for folder in folders:
                if folder.is_dir():
                    remove_leftovers(folder)
                    # What the user keeps in it stays, and the folder with it.
                    with contextlib.suppress(OSError):
                        folder.rmdir()
        except OSError as error:
            raise OutputError(
                f"out: cannot remove {error.filename}: {error.strerror}; remove {self.path} by hand, or choose another"
            ) from error

    def written(self) -> list[Path]:
        """The files in the folder whose names are those that a run writes."""
        encoded = self.data / "train"
        parts = [self.data / f"{part}.tsv" for part in PARTS]
        files = [
            *(self.config, self.best, self.last, self.log, self.tokenizer("source"), self.tokenizer("target")),
            *parts,
            *(links_beside(part) for part in parts),
            *(encoded / f"{name}.npy" for name in (*NAMES, *LINKS)),
            encoded / META,
            *(path for path in self.snapshots.glob("*.safetensors") if path.stem.isdigit()),
        ]
        return [path for path in files if path.is_file()]

    def _make_folders(self) -> None:
        try:
            for folder in (self.path, self.snapshots, self.data):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"out: cannot make {self.path}: {error.strerror}; choose another folder") from error

    def _foreign(self) -> Path | None:
        """Where the folder is not that of a run: a file in it that no run writes, if there is one."""
        with contextlib.suppress(LimelightError):
            self.read_config()
            return None
        written = set(self.written())
        found = (path for path in self.path.rglob("*") if not path.is_dir() and path not in written)
        return next((path for path in found if not path.name.endswith(TEMPORARY_SUFFIX)), None)

    def check(self) -> None:
        """Raise RunFolderError when the folder is not there or was not made by a training run."""
        if not self.path.is_dir():
            raise RunFolderError(
                f"run: {self.path} is not a folder; give the folder that `limelight train --out` wrote"
            )
        if not self.config.exists():
            raise RunFolderError(f"run: {self.path} has no config.json, so it is no run folder; {TRAIN_AGAIN}")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        write_sealed_json(self.config, config, format=CONFIG_FORMAT)

    def read_config(self) -> dict[str, Any]:
        """Read config.json; raises RunFolderError when missing, truncated or changed."""
        self.check()
        return read_sealed_json(self.config, format=CONFIG_FORMAT, way_out=TRAIN_AGAIN)

    def read_tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Source and target tokenizer."""
        return Tokenizer.load(self.tokenizer("source")), Tokenizer.load(self.tokenizer("target"))

    def build_model(self) -> TranslationModel:
        """A new model of the sizes that config.json names.

        Raises:
            RunFolderError: config.json is missing, damaged, or of another version of Limelight.
        """
        config = self.read_config()
        try:
            described = dict(config["model"])
            return build_model(model_config(described.pop("kind"), **described))
        except (KeyError, TypeError, ArgumentError) as error:
            raise RunFolderError(f"{self.config} does not describe a model ({error}); {TRAIN_AGAIN}") from error

    def load_model(self, weights: str = "best") -> TranslationModel:
        """Build the model of config.json and fill it with the "best" or "last" weights; in evaluation mode.

        Raises:
            RunFolderError: a file is missing, damaged, or does not belong to this configuration.
            ArgumentError: there are no such weights.
        """
        if weights not in ("best", "last"):
            raise ArgumentError(f"weights: must be 'best' or 'last', got {weights!r}")
        model = self.build_model()
        path = self.best if weights == "best" else self.last
        if weights == "best" and not path.exists() and self.last.exists():
            raise RunFolderError(
                f"{path} is missing, it is written at the first validation; go on training (--resume), take the "
                "weights 'last', or train again"
            )
        tensors, _ = read_tensors(path)
        if weights == "last":
            prefix = "model/"
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        fill_model(model, tensors, path)
        return model.eval()
