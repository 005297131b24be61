import errno
import json
import os
import re
import signal

import pytest
from tests.support.command import limelight, refused, start
from tests.support.toy_language import options, toy_pairs, write_toy

from limelight.training.loop import Trainer
from limelight.translator import Translator

QUICK = {"updates": 3, "epochs": 1}


def test_bad_lines_are_skipped_counted_and_told(tmp_path):
    good = [f"{source}\t{target}".encode() for source, target in toy_pairs(53)]
    bad = [b"no tab", b"a\tb\tc", b"\xff\xfe\tx", b"a\0b\tc", b"\tx", b"x\t  ", b"", b"w " * 5000 + b"\tx"]
    corpus = tmp_path / "bad.tsv"
    corpus.write_bytes(b"\r\n".join([*bad, *good]))
    ran = limelight("train", corpus, "--out", tmp_path / "run", *options(**QUICK, dev=5, test=7))
    assert (ran.code, ran.out) == (0, "")
    assert (
        "8 of 61 lines skipped: 1 without a tab (line 1), 1 with too many tabs (line 2), 1 with invalid UTF-8 (line 3)"
        ", 1 with a NUL byte (line 4), 1 with a blank source (line 5), 1 with a blank target (line 6), 1 blank (line 7)"
        ", 1 with more than 250 words or 2000 characters (line 8)"
    ) in ran.err
    assert "53 pairs of 53 source sentences" in ran.err


def test_the_longest_sentence_can_be_set(tmp_path, toy_tsv):
    ran = limelight("train", toy_tsv, "--out", tmp_path / "run", "--max-words", 4, *options(**QUICK))
    assert ran.code == 0
    assert re.search(r"lines skipped: \d+ with more than 4 words", ran.err)


def test_two_files_and_one_word_sentences(tmp_path):
    for side, name in enumerate(("a.en", "a.de")):
        (tmp_path / name).write_text("".join(f"{pair[side].split()[0]} {n}\n" for n, pair in enumerate(toy_pairs(53))))
    arguments = ("--source", tmp_path / "a.en", "--target", tmp_path / "a.de", "--out", tmp_path / "run")
    ran = limelight("train", *arguments, *options(**QUICK, dev=5, test=7))
    assert ran.code == 0
    assert "53 pairs" in ran.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.tsv is empty; expected UTF-8 text"),
        (b"no tab at all\n", "bad.tsv has no usable pair: 1 of 1 lines skipped: 1 without a tab (line 1)"),
        ("a\tb\n".encode("utf-16"), "bad.tsv is UTF-16, not UTF-8; convert it: iconv"),
        (b"one\teins\ntwo\tzwei\n", "bad.tsv is too small to split: it has 2 distinct source sentences in 2 pairs, and "
         "31 for dev + 41 for test + at least 1 for training are needed; ask for smaller parts (--dev N --test N)"),
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_be_used_leaves_nothing_behind(tmp_path, content, message):
    corpus = tmp_path / "bad.tsv"
    corpus.write_bytes(content)
    assert message in refused("train", corpus, "--out", tmp_path / "run", *options(**QUICK))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_files_that_are_not_there_and_sides_of_different_length(tmp_path, toy_tsv):
    def said(*arguments):
        err = refused("train", *arguments, "--out", tmp_path / "run", *options(**QUICK))
        assert not (tmp_path / "run").exists()
        return err

    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    assert f"{tmp_path / 'no.tsv'} does not exist; check the name" in said(tmp_path / "no.tsv")
    assert f"{tmp_path} is a folder; name a file in it" in said(tmp_path)
    assert f"{tmp_path / 'no.tsv'} does not exist" in said(toy_tsv, "--dev-file", tmp_path / "no.tsv")
    different = said("--source", tmp_path / "a", "--target", tmp_path / "b", "--dev", 1, "--test", 0)
    assert f"{tmp_path / 'a'} has 2 lines and {tmp_path / 'b'} has 1; line i of one must be" in different


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "corpus: give either one TSV file, or both --source FILE and --target FILE"),
        (["TSV", "--source", "a"], "corpus: give either one TSV file"),
        (["--source", "a"], "corpus: --source and --target belong together; give both"),
        (["TSV", "--attention", "foo"], "--attention: must be one of bahdanau, coverage, dot, general, concat, loc"),
        (["TSV", "--window", "0"], "--window: must be a whole number of at least 1, got 0"),
        (["TSV", "--model", "foo"], "--model: must be one of rnn, transformer, got 'foo'"),
        (["TSV", "--model", "transformer", "--hidden", "7"], "--hidden: is no setting of a transformer model"),
        (["TSV", "--device", "cuda:99"], "--device: 'cuda:99' cannot be used here"),
        (["TSV", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["TSV", "--label-smoothing", "1"], "--label-smoothing: must be in [0, 1), got 1.0"),
        (["TSV", "--hidden", "0"], "--hidden: must be a whole number of at least 1, got 0"),
        (["TSV", "--shared-embeddings"], "--shared-embeddings: needs one vocabulary for both sides; set joint too"),
        (["TSV", "--resume", "--overwrite"], "--resume: does not go with --overwrite; choose one"),
        (["--resume"], "is not a folder; give the folder that `limelight train --out` wrote"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_made(tmp_path, toy_tsv, arguments, message):
    named = [str(toy_tsv) if part == "TSV" else part for part in arguments]
    assert message in refused("train", *named, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_exists_is_kept_unless_told_otherwise(tmp_path, toy_tsv):
    out = tmp_path / "run"
    arguments = ("train", toy_tsv, "--out", out, *options(**QUICK))
    assert limelight(*arguments).code == 0
    before = (out / "best.safetensors").read_bytes()
    said = refused(*arguments)
    assert (
        f"{out} exists and is not empty; go on with it (--resume), replace it (--overwrite) or choose another" in said
    )
    assert (out / "best.safetensors").read_bytes() == before
    assert limelight(*arguments, "--overwrite", "--seed", 2).code == 0
    assert (out / "best.safetensors").read_bytes() != before


def test_a_folder_of_something_else_is_never_replaced(tmp_path, toy_tsv):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    assert "is not the folder of a run" in refused(
        "train", toy_tsv, "--out", tmp_path, "--overwrite", *options(**QUICK)
    )
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"


def test_the_end_says_how_to_go_on(tmp_path, toy_tsv):
    out = tmp_path / "a run"
    ran = limelight("train", toy_tsv, "--out", out, *options(**QUICK))
    assert re.search(r"done: best dev BLEU \d+\.\d\d after \d+ s of training", ran.err)
    assert f"limelight evaluate '{out}' '{out}/data/test.tsv'" in ran.err


def test_resume_takes_the_same_command_again_but_no_other(tmp_path, toy_tsv):
    out = tmp_path / "run"
    arguments = ["train", toy_tsv, "--out", out, *options(**QUICK)]
    assert limelight(*arguments).code == 0
    again = limelight(*arguments, "--resume", "--updates", 5)
    assert again.code == 0
    assert f"resuming {out} at update 3 of 5" in again.err
    assert json.loads((out / "config.json").read_text())["training"]["updates"] == 5
    base = ("train", "--resume", "--out", out)
    assert "--hidden: cannot change when a run is resumed" in refused(*base, "--hidden", 37)
    said = refused(*base, "--model", "transformer")
    assert "--model: cannot change when a run is resumed" in said
    assert "it is 'rnn', got 'transformer'" in said
    other = write_toy(tmp_path / "other.tsv")
    assert f"was begun with {toy_tsv}; leave it out" in refused("train", other, "--resume", "--out", out)
    assert "--dev-file: the run in" in refused(*base, "--dev-file", other)


def test_resume_takes_the_same_file_to_validate_on_again_but_no_other(tmp_path, toy_tsv):
    out, dev = tmp_path / "run", write_toy(tmp_path / "dev.tsv")
    arguments = ["train", toy_tsv, "--dev-file", dev, "--out", out, *options(**QUICK)]
    assert limelight(*arguments).code == 0
    assert limelight(*arguments, "--resume").code == 0
    said = refused("train", "--resume", "--out", out, "--dev-file", toy_tsv)
    assert f"was begun with {dev}; leave it out" in said


def test_ctrl_c_saves_and_resume_ends_what_was_begun(tmp_path, toy_tsv):
    out = tmp_path / "run"
    with start("train", toy_tsv, "--out", out, *options(epochs=12)) as process:
        said = b""
        while b"dev BLEU" not in said:
            said += process.stderr.readline()
        process.send_signal(signal.SIGINT)
        printed, rest = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, b"")
    err = (said + rest).decode()
    assert "Traceback" not in err
    stopped = re.search(r"stopped at update (\d+), saved; go on with: limelight train --resume --out (.+)\n", err)
    assert stopped[2] == str(out)
    assert Translator.open(out).translate(["one"])
    ran = limelight("train", "--resume", "--out", out)
    assert ran.code == 0
    assert f"at update {stopped[1]} of " in ran.err
    assert "done: best dev BLEU" in ran.err


def test_ctrl_c_while_text_is_read_leaves_nothing_behind(tmp_path, toy_tsv, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("limelight.training.prepare.train_tokenizer", interrupted)
    ran = limelight("train", toy_tsv, "--out", tmp_path / "run", *options(**QUICK))
    assert ran.code == 130
    assert "stopped before training began; nothing is saved; start the same command again" in ran.err
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_names_the_last_save(tmp_path, toy_tsv, monkeypatch):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", interrupted)
    ran = limelight("train", toy_tsv, "--out", tmp_path / "run", *options(**QUICK))
    assert ran.code == 130
    go_on = f"the last save is whole; go on with: limelight train --resume --out {tmp_path / 'run'}"
    assert go_on in ran.err
    assert go_on in limelight("train", "--resume", "--out", tmp_path / "run").err
    monkeypatch.undo()
    assert limelight("train", "--resume", "--out", tmp_path / "run").code == 0


@pytest.mark.parametrize("name", ["train.tsv", "source.tokenizer.json", "last.safetensors"])
def test_a_disk_that_is_full_before_training_leaves_nothing_behind(tmp_path, toy_tsv, monkeypatch, name):
    monkeypatch.setattr(os, "replace", _full_disk(name, after=0))
    said = refused("train", toy_tsv, "--out", tmp_path / "run", *options(**QUICK))
    assert f"{name}: No space left on device; free some space or choose another disk" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_a_disk_that_fills_up_in_training_keeps_the_last_save(tmp_path, toy_tsv, monkeypatch, name):
    out = tmp_path / "run"
    monkeypatch.setattr(os, "replace", _full_disk(name, after=1))
    said = refused("train", toy_tsv, "--out", out, *options(epochs=3))
    assert f"{name}: No space left on device" in said
    assert f"the last save is whole; then go on with: limelight train --resume --out {out}" in said
    monkeypatch.undo()
    assert limelight("train", "--resume", "--out", out).code == 0


def _full_disk(name, *, after):
    """`os.replace` which fails for the file of that name, when it has worked `after` times."""
    replace, seen = os.replace, []

    def full(source, target):
        if os.path.basename(target) == name:
            seen.append(target)
            if len(seen) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    return full
