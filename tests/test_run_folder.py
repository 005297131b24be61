import json
import os
import shutil

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

from limelight.errors import ArgumentError, LimelightError, OutputError, RunFolderError
from limelight.run_folder import RunFolder
from limelight.training import resume, train
from limelight.training.progress import Silent
from limelight.translator import Translator

FILES = (
    "best.safetensors",
    "config.json",
    "data/dev.tsv",
    "data/test.tsv",
    "data/train.tsv",
    "data/train/meta.json",
    "data/train/source_offsets.npy",
    "data/train/source_tokens.npy",
    "data/train/target_offsets.npy",
    "data/train/target_tokens.npy",
    "last.safetensors",
    "log.jsonl",
    "snapshots/2.safetensors",
    "snapshots/3.safetensors",
    "source.tokenizer.json",
    "target.tokenizer.json",
)
TO_TRANSLATE = ("best.safetensors", "config.json", "source.tokenizer.json", "target.tokenizer.json")
TO_RESUME = (
    "config.json",
    "data/dev.tsv",
    "data/train/meta.json",
    "data/train/source_offsets.npy",
    "data/train/source_tokens.npy",
    "data/train/target_offsets.npy",
    "data/train/target_tokens.npy",
    "last.safetensors",
    "snapshots/2.safetensors",
    "source.tokenizer.json",
    "target.tokenizer.json",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of three updates with two snapshots, which nobody may change."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = write_reversal(folder / "c.tsv", 41)
    train(corpus, out=folder / "run", display=Silent(), updates=3, validate_every=1, average=2, **TINY)
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def files_in(folder):
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def use(run, use_name):
    if use_name == "translate":
        Translator.open(run).translate(["a b"])
    else:
        resume(run, updates=4, display=Silent())


def test_what_a_run_leaves(run):
    assert files_in(run) == FILES
    assert {str(path.relative_to(run)) for path in RunFolder(run).written()} == set(FILES)
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["kind"] == "rnn"
    assert config["training"]["updates"] == 3
    assert config["data"]["tokens"] == "word"
    assert config["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("use_name", "file"), [*(("translate", f) for f in TO_TRANSLATE), *(("resume", f) for f in TO_RESUME)]
)
@pytest.mark.parametrize("harm", ["remove", "cut", "flip", "replace"])
def test_a_damaged_run_is_told_by_name_with_a_way_out(run, use_name, file, harm):
    path, size = run / file, (run / file).stat().st_size
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, size * 2 // 3)
    elif harm == "flip":
        content = bytearray(path.read_bytes())
        content[size // 2] ^= 0x10
        path.write_bytes(content)
    else:
        path.write_bytes(b"\x00 something else altogether\n" * 7)
    if use_name == "resume" and file.startswith("snapshots") and harm != "remove":
        # The oldest snapshot falls out of the average at the next validation: nobody needs to read it.
        return use(run, use_name)
    with pytest.raises(RunFolderError) as caught:
        use(run, use_name)
    message = str(caught.value)
    assert os.path.basename(file).removesuffix("meta.json") in message
    assert any(way in message for way in ("train again", "made anew", "start anew")), message
    return None


def test_a_snapshot_that_the_average_needs_is_read_with_care(run):
    with (run / "snapshots/3.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(RunFolderError, match=r"snapshots/3\.safetensors was changed after it was written.*train again"):
        use(run, "resume")


def test_the_encoded_corpus_is_made_anew_as_its_error_says(run, trained):
    (run / "data/train/meta.json").unlink()
    with pytest.raises(RunFolderError, match="delete the folder and run the same command again: it is made anew"):
        use(run, "resume")
    shutil.rmtree(run / "data/train")
    use(run, "resume")
    for name in ("source_tokens.npy", "target_offsets.npy", "meta.json"):
        assert (run / "data/train" / name).read_bytes() == (trained / "data/train" / name).read_bytes()
    shutil.rmtree(run / "data/train")
    (run / "data/train.tsv").unlink()
    with pytest.raises(RunFolderError, match=r"train\.tsv does not exist.*train again"):
        use(run, "resume")


def test_files_of_one_kind_in_the_place_of_another(run):
    shutil.copy(run / "best.safetensors", run / "last.safetensors")
    with pytest.raises(
        RunFolderError, match=r"last\.safetensors does not hold the state of a training run .*train again"
    ):
        use(run, "resume")
    with pytest.raises(RunFolderError, match=r"last\.safetensors does not fit the model"):
        Translator.open(run, weights="last")
    shutil.copy(run / "source.tokenizer.json", run / "config.json")
    with pytest.raises(RunFolderError, match=r"config\.json is not a limelight-run/1 file"):
        use(run, "translate")


def test_weights_of_another_run(run, tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 41)
    train(corpus, out=tmp_path / "other", display=Silent(), updates=1, **TINY | {"hidden": 17})
    for name, use_name in (("best", "translate"), ("last", "resume")):
        shutil.copy(tmp_path / "other" / f"{name}.safetensors", run / f"{name}.safetensors")
        with pytest.raises(RunFolderError, match=rf"{name}\.safetensors does not fit the model in config\.json"):
            use(run, use_name)


def test_settings_of_another_version(run):
    folder = RunFolder(run)
    config = folder.read_config()
    folder.write_config(config | {"training": config["training"] | {"momentum": 0.9}})
    with pytest.raises(RunFolderError, match=r"config\.json does not say how to train .*momentum"):
        use(run, "resume")
    folder.write_config(config | {"model": config["model"] | {"capsules": 3}})
    with pytest.raises(RunFolderError, match=r"config\.json does not describe a model .*capsules"):
        use(run, "translate")
    folder.write_config({name: value for name, value in config.items() if name != "model"})
    with pytest.raises(RunFolderError, match=r"config\.json does not describe a model .*'model'"):
        use(run, "translate")


def test_best_and_last_weights(run):
    best, last = Translator.open(run).model, Translator.open(run, weights="last").model
    assert not best.training
    assert [p.shape for p in best.parameters()] == [p.shape for p in last.parameters()]
    with pytest.raises(ArgumentError, match="weights: must be 'best' or 'last', got 'first'"):
        Translator.open(run, weights="first")
    (run / "best.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"best\.safetensors is missing, .* first validation; go on training"):
        Translator.open(run)


def test_folders_that_are_no_runs(tmp_path):
    for folder, message in ((tmp_path / "no", "is not a folder"), (tmp_path, r"has no config")):
        with pytest.raises(RunFolderError, match=message):
            Translator.open(folder)
        with pytest.raises(RunFolderError, match=message):
            resume(folder)


def test_a_run_is_not_replaced_by_accident(run, tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 41)
    before = {file: (run / file).stat().st_mtime_ns for file in FILES}
    with pytest.raises(
        OutputError, match=r"exists and is not empty; go on with it \(--resume\), replace it \(--overwrite"
    ):
        train(corpus, out=run, display=Silent(), **TINY)
    assert {file: (run / file).stat().st_mtime_ns for file in FILES} == before


def test_overwriting_removes_what_a_run_writes_and_nothing_else(run):
    for name in ("notes.txt", "data/mine.tsv", "snapshots/mine.safetensors", "data/train/mine.npy"):
        (run / name).write_text("precious")
    (run / ".last.safetensors.0011.limelight-tmp").write_text("left by a kill")
    RunFolder(run).discard()
    assert files_in(run) == ("data/mine.tsv", "data/train/mine.npy", "notes.txt", "snapshots/mine.safetensors")


def test_a_run_with_the_users_files_in_it_can_be_replaced(run, tmp_path):
    (run / "report.json").write_text("{}")
    corpus = write_reversal(tmp_path / "c.tsv", 41)
    train(corpus, out=run, display=Silent(), overwrite=True, updates=1, **TINY)
    assert files_in(run) == (*(file for file in FILES[:11]), *FILES[11:12], "report.json", *FILES[14:])


def test_overwriting_never_takes_a_folder_that_is_no_run(tmp_path):
    # A project with a folder data/ of its own, and --out . by mistake.
    (tmp_path / "data").mkdir()
    (tmp_path / "README").write_text("precious")
    corpus = write_reversal(tmp_path / "data" / "train.tsv", 41)
    with pytest.raises(LimelightError):
        train(corpus, out=tmp_path, display=Silent(), overwrite=True, **TINY)
    other = write_reversal(tmp_path / "other.tsv", 41)
    with pytest.raises(OutputError, match="is not the folder of a run"):
        train(other, out=tmp_path, display=Silent(), overwrite=True, **TINY)
    assert files_in(tmp_path) == ("README", "data/train.tsv", "other.tsv")


def test_the_corpus_is_not_overwritten_by_its_own_run(run):
    for arguments in (
        {"corpus": run / "data/train.tsv"},
        {"corpus": run / "data/dev.tsv", "target": run.parent / "run/data/test.tsv"},
        {"corpus": run / "data/test.tsv", "dev_file": run / "data" / ".." / "data/dev.tsv"},
    ):
        with pytest.raises(ArgumentError, match=r"corpus: .*\.tsv is part of the run in .*; copy it elsewhere"):
            train(**arguments, out=run, overwrite=True, display=Silent(), **TINY)
    assert files_in(run) == FILES


@pytest.mark.parametrize(
    ("corpus", "settings", "message"),
    [
        ("missing.tsv", {}, "missing.tsv does not exist"),
        ("empty.tsv", {}, "empty.tsv is empty"),
        ("c.tsv", {"device": "abacus"}, "device: 'abacus' cannot be used here"),
        ("c.tsv", {"hidden": 0}, "hidden: must be a whole number"),
        ("c.tsv", {"dev_file": "missing.tsv"}, "missing.tsv does not exist"),
    ],
)
def test_a_mistake_is_found_before_anything_is_removed(run, tmp_path, corpus, settings, message):
    write_reversal(tmp_path / "c.tsv", 41)
    (tmp_path / "empty.tsv").touch()
    if "dev_file" in settings:
        settings = settings | {"dev_file": tmp_path / settings["dev_file"]}
    with pytest.raises(LimelightError, match=message):
        train(tmp_path / corpus, out=run, overwrite=True, display=Silent(), **TINY | settings)
    assert files_in(run) == FILES


def test_a_failed_preparation_is_not_in_the_way_of_the_next_try(tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 41)
    with pytest.raises(LimelightError, match=r"is too small to split"):
        train(corpus, out=tmp_path / "run", display=Silent(), **TINY | {"dev": 1000})
    assert not (tmp_path / "run").exists()
    train(corpus, out=tmp_path / "run", display=Silent(), updates=1, **TINY)


def test_places_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"out: cannot make .*; choose another folder"):
            RunFolder(out).create()
