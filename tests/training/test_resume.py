"""A run that was killed, stopped or out of disk, and resumed, ends with the same weights as one that was not."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

from limelight import files
from limelight.errors import ArgumentError, OutputError, RunFolderError
from limelight.run_folder import RunFolder
from limelight.training import checkpoint, loop, resume, train
from limelight.training.progress import Silent
from limelight.weights import read_tensors

# Two epochs of six updates, with all that has a state: dropout, warm-up, averaging, early stopping.
SETTINGS = TINY | {
    "epochs": 2,
    "dropout": 0.3,
    "average": 2,
    "validate_every": 5,
    "patience": 50,
    "save_seconds": 0,
    "rate": 1e-2,
    "seed": 7,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_reversal(tmp_path_factory.mktemp("corpus") / "c.tsv", 89)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    _, progress = train(corpus, out=out, display=Silent(), **SETTINGS)
    assert progress.finished
    assert progress.update == 12
    return out


def assert_same_end(out, whole):
    """The same weights, optimizer and random state, bit for bit, and the same log but for the times."""
    for name in ("best.safetensors", "last.safetensors"):
        (tensors, facts), (expected, expected_facts) = read_tensors(out / name), read_tensors(whole / name)
        assert tensors.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensors[key], tensor), f"{name}: {key}"
        for one in (facts, expected_facts):
            one.get("progress", {}).pop("seconds", None)
        assert facts == expected_facts
    assert log_of(out) == log_of(whole)
    names = [sorted(path.name for path in (folder / "snapshots").iterdir()) for folder in (out, whole)]
    assert names[0] == names[1]
    assert not [path for path in out.rglob("*") if path.name.endswith(files.TEMPORARY_SUFFIX)]


def log_of(out):
    records = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        record.pop("seconds")
        record.pop("tokens_per_second", None)
    return records


def updates_done(out):
    return read_tensors(out / "last.safetensors")[1]["progress"]["update"]


def python(code, *arguments):
    source = f"import sys, json\nfrom limelight.training import train, resume\n{code}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)], env=environment, stderr=subprocess.PIPE
    )


def test_kill_9_and_resume_in_new_processes(corpus, whole, tmp_path):
    out = tmp_path / "run"
    first = python(
        """
import time
from limelight.training.progress import Silent

class Hangs(Silent):
    def update(self, report):
        if report.update == 10:
            time.sleep(1000)

train(sys.argv[1], out=sys.argv[2], display=Hangs(), **json.loads(sys.argv[3]))
""",
        *(corpus, out, json.dumps(SETTINGS)),
    )
    deadline = time.monotonic() + 300
    # The tenth update, in the middle of the second epoch, is made but not saved.
    while not (out / "last.safetensors").exists() or updates_done(out) < 9:
        assert first.poll() is None, first.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert updates_done(out) == 9
    second = python("resume(sys.argv[1])", out)
    _, told = second.communicate(timeout=300)
    assert second.returncode == 0, told.decode()
    assert f"resuming {out} at update 9 of 12" in told.decode()
    assert_same_end(out, whole)


class Killed(BaseException):
    """Stands for kill -9: nothing that is waiting to be done after it is done, on disk at least."""


def kill_at(monkeypatch, point, number):
    """Raise `Killed` instead of the number-th change of that kind to the files of training, and of all that follow it.

    "replace" puts a new file in its place, "unlink" removes a snapshot, "append" writes a line of the log.
    """
    count, dead = 0, False

    def guard(owner, attribute, kind, path_of):
        real = getattr(owner, attribute)

        def called(*args, **kwargs):
            nonlocal count, dead
            path = Path(path_of(args))
            if path.name.endswith(files.TEMPORARY_SUFFIX):
                # Removed after an exception, which a killed process leaves undone.
                return None if dead else real(*args, **kwargs)
            if path.suffix == ".safetensors" or kind == "append":
                count += kind == point
                dead = dead or (kind == point and count == number)
            if dead:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, called)

    guard(files.os, "replace", "replace", lambda args: args[1])
    guard(Path, "unlink", "unlink", lambda args: args[0])
    guard(loop, "append_line", "append", lambda args: args[0])


@pytest.mark.parametrize(
    ("point", "number"),
    # The states after updates 0 to 4 are replaces 1 to 5; 6 to 8 are best, snapshot and state of the first validation.
    # The last ones are the snapshot and state of the last validation, and the finished state.
    [("replace", n) for n in (2, 6, 7, 8, 9, 17, 18, 19)] + [("unlink", 1)] + [("append", n) for n in (1, 3, 4)],
)
def test_killed_at_any_moment(corpus, whole, tmp_path, monkeypatch, point, number):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, point, number)
        with pytest.raises(Killed):
            train(corpus, out=out, display=Silent(), **SETTINGS)
    _, progress = resume(out, display=Silent())
    assert progress.finished
    assert_same_end(out, whole)


def test_killed_over_and_over(corpus, whole, tmp_path, monkeypatch):
    out, kills = tmp_path / "run", 0
    train(corpus, out=out, display=StopsAt(signal.SIGINT, 1), **SETTINGS)
    finished = False
    while not finished:
        with monkeypatch.context() as patch:
            kill_at(patch, "replace", 5)
            try:
                finished = resume(out, display=Silent())[1].finished
            except Killed:
                kills += 1
                assert kills < 10
    assert kills > 2
    assert_same_end(out, whole)


class StopsAt(Silent):
    """Sends this process a signal when an update is reported."""

    def __init__(self, number, *updates):
        self.number, self.updates, self.lines = number, updates, []

    def update(self, report):
        if report.update in self.updates:
            os.kill(os.getpid(), self.number)

    def say(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_and_is_resumed(corpus, whole, tmp_path, number):
    before = signal.getsignal(number)
    display = StopsAt(number, 10)
    _, progress = train(corpus, out=tmp_path / "run", display=display, **SETTINGS | {"save_seconds": 1000})
    assert (progress.finished, progress.update) == (False, 10)
    assert updates_done(tmp_path / "run") == 10
    assert "stopping after this update; once more stops at once, without saving" in display.lines
    assert signal.getsignal(number) is before
    _, progress = resume(tmp_path / "run", display=Silent(), save_seconds=0)
    assert progress.finished
    assert_same_end(tmp_path / "run", whole)


def test_a_second_signal_stops_at_once(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_REPORT_EVERY", 1)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop.Trainer, "_validate", lambda self: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(corpus, out=tmp_path / "run", display=StopsAt(signal.SIGINT, 5), **SETTINGS | {"save_seconds": 1000})
    assert signal.getsignal(signal.SIGINT) is before
    assert updates_done(tmp_path / "run") == 0
    monkeypatch.undo()
    resume(tmp_path / "run", display=Silent(), save_seconds=0)
    assert_same_end(tmp_path / "run", whole)


def test_a_stop_that_comes_with_the_last_update_is_no_stop(corpus, tmp_path):
    _, progress = train(corpus, out=tmp_path / "run", display=StopsAt(signal.SIGINT, 10), **TINY, updates=10)
    assert progress.finished


def test_a_full_disk_ends_training_and_nothing_that_was_saved_is_lost(corpus, whole, tmp_path, monkeypatch):
    out, real, count = tmp_path / "run", os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count > 44:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OutputError, match=r"cannot write .*\.safetensors: No space left on device; free some space"
        ):
            train(corpus, out=out, display=Silent(), **SETTINGS)
    # Somewhere in the middle; how many files a save syncs is not this test's business.
    assert 0 < updates_done(out) < 12
    RunFolder(out).load_model("last")
    resume(out, display=Silent())
    assert_same_end(out, whole)


def test_a_log_that_cannot_be_written(corpus, tmp_path, monkeypatch):
    real = Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.name == "log.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        OutputError, match=r"cannot write .*log\.jsonl: No space left on device; free some space, then --res"
    ):
        train(corpus, out=tmp_path / "run", display=Silent(), **SETTINGS)


def test_a_disk_that_is_full_from_the_beginning(corpus, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*\.tsv: No space left on device; free some space"):
        train(corpus, out=tmp_path / "run", display=Silent(), **SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stopped(corpus, tmp_path):
    out = tmp_path / "run"
    train(corpus, out=out, display=StopsAt(signal.SIGINT, 10), **SETTINGS)
    assert updates_done(out) == 10
    return out


@pytest.mark.parametrize("harm", [b"", b'{"event": "dev", "upd', b"\xff\xfe\n{}\n", b'[1]\nnull\n{"update": "x"}\n'])
def test_a_log_that_was_cut_or_tampered_with_is_no_obstacle(stopped, harm):
    log = stopped / "log.jsonl"
    good = log.read_bytes()
    log.write_bytes(good + harm)
    resume(stopped, display=Silent(), updates=12)
    assert log.read_bytes().startswith(good)
    updates = [record["update"] for record in log_of(stopped)]
    assert updates == sorted(updates)


def test_a_missing_log_is_no_obstacle(stopped):
    (stopped / "log.jsonl").unlink()
    resume(stopped, display=Silent(), updates=12)
    assert {record["update"] for record in log_of(stopped)} == {12}


def test_a_snapshot_that_is_missing_is_told_at_once(stopped):
    assert sorted(path.name for path in (stopped / "snapshots").iterdir()) == ["10.safetensors", "5.safetensors"]
    (stopped / "snapshots/5.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"5\.safetensors is missing, which the average needs; restore it"):
        resume(stopped, display=Silent())


def test_files_of_the_user_among_the_snapshots_are_left_alone(stopped):
    (stopped / "snapshots" / "mine.safetensors").write_text("precious")
    (stopped / "snapshots" / "999.safetensors").write_text("of a state that was not saved")
    resume(stopped, display=Silent(), updates=12)
    assert sorted(path.name for path in (stopped / "snapshots").iterdir()) == [
        "10.safetensors", "12.safetensors", "mine.safetensors",
    ]  # fmt: skip


def test_what_may_change_and_what_may_not(stopped):
    with pytest.raises(
        ArgumentError, match="rate: cannot change when a run is resumed, only epochs, updates, minutes, pa"
    ):
        resume(stopped, display=Silent(), rate=1e-4)
    with pytest.raises(ArgumentError, match="epochs: must be at least 1, got 0"):
        resume(stopped, display=Silent(), epochs=0)
    for mistake in ({"model": "transformer"}, {"hidden": 17}, {"betas": (0.9, 0.99)}, {"dev": 8}, {"epoch": 3}):
        (name,) = mistake
        with pytest.raises(ArgumentError, match=f"{name}: cannot change when a run is resumed"):
            resume(stopped, display=Silent(), **SETTINGS | mistake)
    before = (stopped / "config.json").read_bytes()
    resume(stopped, display=Silent())
    assert (stopped / "config.json").read_bytes() == before
    _, progress = resume(stopped, display=Silent(), updates=14)
    assert (progress.update, progress.finished) == (14, True)
    assert RunFolder(stopped).read_config()["training"]["updates"] == 14


def test_settings_that_stay_as_they_were_may_be_repeated(stopped, whole):
    before = (stopped / "config.json").read_bytes()
    _, progress = resume(stopped, display=Silent(), model="rnn", betas=(0.9, 0.98), lowercase=False, **SETTINGS)
    assert progress.finished
    assert (stopped / "config.json").read_bytes() == before
    assert_same_end(stopped, whole)


def test_a_dev_part_that_was_changed_is_told(stopped):
    dev = stopped / "data/dev.tsv"
    dev.write_bytes(dev.read_bytes().replace(b"a", b"b"))
    with pytest.raises(RunFolderError, match=r"dev\.tsv was changed after it was written \(the checksum differs\)"):
        resume(stopped, display=Silent())
    # A run begun before checksums of it were kept can still be resumed.
    run = RunFolder(stopped)
    run.write_config({name: value for name, value in run.read_config().items() if name != "dev_checksum"})
    resume(stopped, display=Silent(), updates=11)


def test_a_finished_run_is_finished_and_can_be_made_longer(stopped):
    resume(stopped, display=Silent(), updates=12)
    before, log = read_tensors(stopped / "last.safetensors")[0], (stopped / "log.jsonl").read_bytes()
    _, progress = resume(stopped, display=Silent())
    assert progress.finished
    assert (stopped / "log.jsonl").read_bytes() == log
    after = read_tensors(stopped / "last.safetensors")[0]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    _, progress = resume(stopped, display=Silent(), updates=13)
    assert (progress.update, progress.finished) == (13, True)
    assert [r["update"] for r in log_of(stopped) if r["event"] == "average"] == [12, 13]


def test_the_last_state_is_missing(stopped):
    (stopped / "last.safetensors").unlink()
    with pytest.raises(
        RunFolderError, match=r"last\.safetensors is missing, so there is no state to resume from; start anew"
    ):
        resume(stopped, display=Silent())


def test_another_number_of_threads_is_told(stopped):
    run, display = RunFolder(stopped), StopsAt(signal.SIGINT)
    run.write_config(run.read_config() | {"threads": 7})
    resume(stopped, display=display, updates=11)
    assert any("this run used 7 threads, now there are 1: the weights will differ" in line for line in display.lines)


def test_leftovers_of_a_kill_are_swept_up(stopped):
    for name in (".last.safetensors.0011.limelight-tmp", "snapshots/.4.safetensors.0011.limelight-tmp"):
        (stopped / name).write_text("half")
    resume(stopped, display=Silent(), updates=11)
    assert not [path for path in stopped.rglob("*") if path.name.endswith(files.TEMPORARY_SUFFIX)]


def test_optimizer_entries_go_to_the_weight_of_exactly_that_name(tmp_path):
    # "weight" is also the end of "inner.weight", and "x/weight" of nothing that is a weight.
    def model():
        made = torch.nn.Linear(3, 5)
        made.inner = torch.nn.Linear(3, 7, bias=False)
        return made, torch.optim.Adam(made.parameters())

    run = RunFolder(tmp_path)
    run.create()
    one, optimizer = model()
    (one(torch.randn(2, 3)).sum() + one.inner(torch.randn(2, 3)).pow(2).sum()).backward()
    optimizer.step()
    checkpoint.save_state(run, one, optimizer, checkpoint.Progress(update=1))
    two, again = model()
    assert checkpoint.load_state(run, two, again) == checkpoint.Progress(update=1)
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert optimizer.state[p].keys() == again.state[q].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(tensor, again.state[q][key]), (name, key)


def test_states_of_a_run_and_its_resumption_do_not_share_memory(tmp_path):
    # What is loaded must not be the mapped file: saving replaces that file.
    run, model = RunFolder(tmp_path), torch.nn.Linear(3, 5)
    run.create()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    checkpoint.save_state(run, model, optimizer, checkpoint.Progress(update=1))
    checkpoint.load_state(run, model, optimizer)
    before = optimizer.state[model.weight]["exp_avg"].clone()
    content = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(b"\0" * len(content))
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], before)


def test_signals_in_another_thread_are_not_caught(corpus, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append(train(corpus, out=tmp_path / "run", display=Silent(), updates=1, **TINY))
    )
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert seen[0][1].finished
