import errno
import json
import os
import resource

import pytest

from limelight.errors import DataError, OutputError, RunFolderError
from limelight.files import atomic_path, atomic_write, read_sealed_json, remove_leftovers, write_sealed_json


def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("né\n")
        assert path.read_text() == "old"
    assert path.read_bytes() == "né\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("x"), OSError(errno.ENOSPC, "No space left")])
def test_any_failure_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    expected = OutputError if isinstance(failure, OSError) else type(failure)

    def write():
        with atomic_write(path) as file:
            file.write(b"new")
            raise failure

    with pytest.raises(expected):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_disk_full_names_the_file_and_the_way_out(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: No space left.*free some space"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_real_limit_of_the_system_is_an_output_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.bin: File too large; a size limit"):  # noqa: SIM117
            with atomic_write(tmp_path / "a.bin") as file:
                file.write(b"x" * 100_003)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_folder_missing_and_folder_in_the_way(tmp_path):
    with pytest.raises(OutputError, match="does not exist: create it first"), atomic_write(tmp_path / "no" / "a"):
        pass
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "folder", "", ".", ".."):
        with pytest.raises(OutputError, match="it is a folder"), atomic_write(name):
            pass


def test_errors_about_other_files_are_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    with pytest.raises(DataError), atomic_write(tmp_path / "a"):
        raise DataError("the corpus")


def test_atomic_path_for_libraries_that_want_a_name(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"1")
        assert temporary.parent == tmp_path
    assert (tmp_path / "a").read_bytes() == b"1"


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.0011.limelight-tmp").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"1")
    assert remove_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == ["a"]


def read(path):
    return read_sealed_json(path, format="thing/1", way_out="make it again")


def test_sealed_json_comes_back(tmp_path):
    payload = {"a": [1, 2.5, None, "é▁"], "b": {"c": True}}
    write_sealed_json(tmp_path / "x.json", payload, format="thing/1")
    assert read(tmp_path / "x.json") == payload


def test_sealed_json_that_is_missing_cut_foreign_or_changed(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(RunFolderError, match=r"x\.json is missing; make it again"):
        read(path)
    write_sealed_json(path, {"size": 17}, format="thing/1")
    whole = path.read_text()
    for broken, message in (
        (whole[:-7], "is truncated or is not JSON"),
        ("", "is truncated or is not JSON"),
        ("[" * 100_000, "is truncated or is not JSON"),
        (json.dumps({"size": 17}), "is not a thing/1 file"),
        ("[17]", "is not a thing/1 file"),
        (whole.replace("17", "18"), "was changed after it was written"),
    ):
        path.write_text(broken)
        with pytest.raises(RunFolderError, match=message):
            read(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(RunFolderError, match="is truncated or is not JSON"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match="cannot be read"):
        read(path)
