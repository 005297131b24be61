"""Training anew in the folder of an old run: the old run stays until the new one is ready for its first update."""

import contextlib
import errno
import os
import shutil

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

from limelight.errors import ArgumentError, DataError, LimelightError, OutputError
from limelight.run_folder import RunFolder
from limelight.training import resume, train
from limelight.training.progress import Silent
from limelight.translator import Translator
from limelight.weights import read_tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    corpus = write_reversal(folder / "c.tsv", 41)
    train(corpus, out=folder / "run", display=Silent(), updates=3, validate_every=1, average=2, **TINY)
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def anew(corpus, run, **settings):
    return train(corpus, out=run, overwrite=True, **{"display": Silent()} | TINY | {"updates": 2} | settings)


def a_full_disk(monkeypatch, after):
    real, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (3, {}, "is too small to split: it has 3 distinct"),
        (41, {"dev": 1000}, "is too small to split"),
        (41, {"tokens": "char", "max_tokens": 4, "dev_file": "long.tsv"}, r"none of 1 pairs is usable"),
    ],
)
def test_a_corpus_that_turns_out_to_be_of_no_use_leaves_the_old_run(run, tmp_path, rows, settings, message):
    before = contents(run)
    corpus = write_reversal(tmp_path / "c.tsv", rows)
    if "dev_file" in settings:
        # Its only pair can be read, but is too long to be learned from.
        corpus = tmp_path / "long.tsv"
        corpus.write_text("abcdefgh\thgfedcba\n")
        settings = settings | {"dev_file": corpus}
    with pytest.raises(DataError, match=message):
        anew(corpus, run, **settings)
    assert contents(run) == before
    Translator.open(run).translate(["a b"])


@pytest.mark.parametrize("after", range(0, 34, 3))
def test_a_disk_that_fills_up_leaves_the_old_run_or_a_new_one(run, tmp_path, monkeypatch, after):
    before = contents(run)
    corpus = write_reversal(tmp_path / "c.tsv", 41, seed=3)
    with monkeypatch.context() as patch:
        a_full_disk(patch, after)
        with contextlib.suppress(OutputError):
            anew(corpus, run, save_seconds=0)
    now = contents(run)
    if now != before:
        # From the first save on it is the new run, which can be gone on with.
        assert now["data/train.tsv"] != before["data/train.tsv"]
        assert resume(run, display=Silent())[1].finished
    assert not [name for name in contents(run) if "limelight-tmp" in name]


def test_a_disk_that_is_full_before_the_first_save_leaves_the_old_run(run, tmp_path, monkeypatch):
    before = contents(run)

    def full(*args):
        raise OutputError("cannot write last.safetensors: No space left on device")

    monkeypatch.setattr("limelight.training.loop.save_state", full)
    with pytest.raises(OutputError, match="No space left"):
        anew(write_reversal(tmp_path / "c.tsv", 41), run)
    assert contents(run) == before


def test_ctrl_c_while_the_corpus_is_read_leaves_the_old_run(run, tmp_path, monkeypatch):
    before = contents(run)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("limelight.training.prepare.train_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        anew(write_reversal(tmp_path / "c.tsv", 41), run)
    assert contents(run) == before


def test_a_run_in_the_place_of_another_is_as_one_in_a_new_folder(run, tmp_path):
    (run / "data" / "mine.tsv").write_text("precious")
    corpus = write_reversal(tmp_path / "c.tsv", 43, seed=5)
    settings = {"validate_every": 1, "average": 2, "updates": 4, "dropout": 0.3}
    anew(corpus, run, **settings)
    train(corpus, out=tmp_path / "other", display=Silent(), **TINY | settings)
    found, expected = contents(run), contents(tmp_path / "other")
    assert found.keys() == expected.keys() | {"data/mine.tsv"}
    for name in expected:
        if name.endswith((".tsv", ".npy", "tokenizer.json", "meta.json")):
            assert found[name] == expected[name], name
        elif name.endswith(".safetensors"):
            (tensors, _), (others, _) = (read_tensors(folder / name) for folder in (run, tmp_path / "other"))
            assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name


@pytest.mark.parametrize("config", ["kept", "damaged"])
def test_what_a_kill_left_of_an_earlier_try_is_in_nobodys_way(run, tmp_path, config):
    def left_behind():
        successor = RunFolder(run).successor
        successor.data.mkdir(parents=True)
        (successor.data / "train.tsv").write_text("half of")

    left_behind()
    assert resume(run, display=Silent(), updates=4)[1].finished
    assert not RunFolder(run).successor.path.exists()
    left_behind()
    if config == "damaged":
        (run / "config.json").write_text("{}")
    assert anew(write_reversal(tmp_path / "c.tsv", 43), run)[1].finished
    assert not RunFolder(run).successor.path.exists()


def test_a_move_that_is_cut_short_can_be_begun_anew(run, tmp_path, monkeypatch):
    corpus = write_reversal(tmp_path / "c.tsv", 43)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.move", stops_at(3))
        with pytest.raises(OutputError, match=r"out: cannot write .*run: Input/output error"):
            anew(corpus, run)
    # No half of the new run passes for a run.
    with pytest.raises(LimelightError, match=r"has no config\.json"):
        resume(run, display=Silent())
    assert anew(corpus, run)[1].finished


def stops_at(number):
    real, count = shutil.move, 0

    def move(*args):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    return move


def test_a_mistake_in_the_settings_leaves_the_old_run(run, tmp_path):
    before = contents(run)
    with pytest.raises(ArgumentError):
        anew(write_reversal(tmp_path / "c.tsv", 41), run, threads=100_000)
    assert contents(run) == before
