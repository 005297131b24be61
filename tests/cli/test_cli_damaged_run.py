import json
import shutil

import pytest
from tests.support.command import limelight, refused

READ = ("config.json", "best.safetensors", "source.tokenizer.json", "target.tokenizer.json")
RESUMED = (
    "config.json",
    "last.safetensors",
    "source.tokenizer.json",
    "target.tokenizer.json",
    "data/train/meta.json",
    "data/train/source_tokens.npy",
    "data/train/source_offsets.npy",
    "data/train/target_tokens.npy",
    "data/train/target_offsets.npy",
)


@pytest.fixture
def run(toy_run, tmp_path):
    return shutil.copytree(toy_run, tmp_path / "run")


def _remove(path):
    path.unlink()


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _empty(path):
    path.write_bytes(b"")


def _tamper(path):
    """The last word of a tokenizer, the last digit of other JSON, or a bit of the last number of another file."""
    content = path.read_bytes()
    if "tokenizer" in path.name:
        content = b"e".join(content.rsplit(b"i", 1))
    elif path.suffix == ".json":
        place = max(content.rfind(digit) for digit in b"2468")
        content = content[:place] + b"1" + content[place + 1 :]
    else:
        content = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    path.write_bytes(content)


DAMAGE = {_remove: "is missing", _truncate: "is truncated", _empty: "is truncated", _tamper: "was changed after"}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", READ)
def test_translating_with_a_damaged_file_names_it_and_the_way_out(run, name, damage):
    damage(run / name)
    said = refused("translate", run, "one")
    if (name, damage) == ("config.json", _remove):
        assert f"run: {run} has no config.json, so it is no run folder" in said
    else:
        assert f"limelight: {run / name} {DAMAGE[damage]}" in said
    assert "again" in said or "--resume" in said


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_with_a_damaged_file_names_it_and_the_way_out(run, name, damage):
    damage(run / name)
    said = refused("train", "--resume", "--out", run, "--epochs", 9)
    assert str(run if (name, damage) == ("config.json", _remove) else run / name) in said
    assert any(word in said for word in ("again", "anew", "restore"))


def test_dev_text_that_is_gone_is_told_on_resuming(run):
    (run / "data" / "dev.tsv").unlink()
    assert f"{run / 'data' / 'dev.tsv'}" in refused("train", "--resume", "--out", run, "--epochs", 9)


def test_what_translating_does_not_need_may_be_gone(run):
    shutil.rmtree(run / "data")
    shutil.rmtree(run / "snapshots")
    (run / "last.safetensors").unlink()
    (run / "log.jsonl").unlink()
    assert limelight("translate", run, "one").lines == ["eins"]
    assert "last.safetensors is missing" in refused("translate", run, "one", "--weights", "last")


def test_files_of_another_run_are_noticed(run, blind_run):
    shutil.copy(blind_run / "best.safetensors", run)
    assert f"{run / 'best.safetensors'} does not fit the model in config.json" in refused("translate", run, "one")


def test_a_tokenizer_of_another_run_is_noticed(run):
    from limelight.data.tokenization import Tokenizer

    path = run / "target.tokenizer.json"
    known = Tokenizer.load(path)
    Tokenizer("word", known.pieces[:-1], lowercase=True).save(path)
    said = refused("translate", run, "one")
    assert f"{path} has {len(known) - 1} tokens and the model {len(known)}: it belongs to another run" in said


def test_what_is_no_run_folder(tmp_path, toy_tsv):
    for command in ("translate", "evaluate", "align"):
        rest = ["one"] if command == "translate" else [toy_tsv]
        said = refused(command, tmp_path / "no", *rest)
        assert said == (
            f"limelight: run: {tmp_path / 'no'} is not a folder; give the folder that `limelight train --out` wrote\n"
        )
        assert f"run: {toy_tsv} is not a folder" in refused(command, toy_tsv, *rest)
        assert f"run: {tmp_path} has no config.json, so it is no run folder" in refused(command, tmp_path, *rest)


def test_a_config_of_a_later_version_is_no_traceback(run):
    from limelight.files import write_sealed_json
    from limelight.run_folder import CONFIG_FORMAT

    config = json.loads((run / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("format", "checksum")}
    write_sealed_json(run / "config.json", config | {"model": {"kind": "mamba"}}, format=CONFIG_FORMAT)
    assert f"{run / 'config.json'} does not describe a model" in refused("translate", run, "one")
