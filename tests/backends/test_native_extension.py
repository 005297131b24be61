"""The compiled extension: that it is there where it can be, what it chooses, and what is said where it is not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command import limelight

from limelight.backends import extension

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)


def in_a_process(code: str, **surroundings: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "LIMELIGHT_ISA"}
    command = [sys.executable, "-W", "error", "-c", code]
    environment = inherited | {"OMP_NUM_THREADS": "1"} | surroundings
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def module():
    found = extension.native()
    if found is None:
        pytest.skip(str(extension.reason()))
    return found


@pytest.fixture
def loaded_afresh():
    """What the extension said is asked again, and again after the test."""
    extension._load.cache_clear()
    yield
    extension._load.cache_clear()


@pytest.fixture
def absent(monkeypatch, loaded_afresh):
    monkeypatch.delenv("LIMELIGHT_NATIVE", raising=False)
    monkeypatch.setitem(sys.modules, extension.NAME, None)


def suitable_compiler() -> bool:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not sys.platform.startswith("linux"):
        return False
    command = [compiler, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    version = re.search(r"__GNUC__ (\d+)", macros)
    return version is not None and int(version[1]) >= 11 and "__clang__" not in macros


@pytest.mark.skipif(not suitable_compiler(), reason="no compiler that could have built the extension")
def test_it_is_there_where_a_compiler_is():
    assert extension.reason() is None


def test_the_instruction_set_in_use_is_one_that_can_run_here(module):
    assert module.isa() in module.available()
    assert set(module.available()) <= set(module.compiled())
    assert len(set(module.compiled())) == len(module.compiled()) > 0


def test_the_fastest_is_taken_when_none_is_named(module):
    done = in_a_process("from limelight.backends.extension import native; print(native().isa())")
    assert (done.stdout.strip(), done.stderr) == (module.available()[0], "")


def test_every_available_instruction_set_can_be_forced(module):
    for name in module.available():
        done = in_a_process(
            "from limelight.backends.extension import native; print(native().isa())", LIMELIGHT_ISA=name
        )
        assert (done.stdout.strip(), done.stderr) == (name, "")


def test_an_unknown_instruction_set_is_refused_on_first_use_only(module):
    code = (
        "import limelight; from limelight.backends.extension import native, reason, refusal\n"
        "assert reason() is None; print(refusal()); native().isa()"
    )
    done = in_a_process(code, LIMELIGHT_ISA="nonsense")
    assert "RuntimeError: the environment variable LIMELIGHT_ISA must name" in done.stderr
    assert "it is 'nonsense'" in done.stdout
    assert f"that this machine has ({', '.join(module.available())})" in done.stdout


def test_info_shows_why_the_instruction_set_is_refused(module):
    code = "import sys; sys.argv = ['limelight', 'info', '--json']; from limelight.cli import main; main()"
    done = in_a_process(code, LIMELIGHT_ISA="nonsense")
    said = json.loads(done.stdout)["native kernels"]
    assert "it is 'nonsense'" in said["state"]
    assert said["compiled in"] == ", ".join(module.compiled())
    assert "in use" not in said


def test_info_names_the_instruction_sets(module):
    if extension.refusal() is not None:
        pytest.skip(str(extension.refusal()))
    said = json.loads(limelight("info", "--json").out)["native kernels"]
    assert said == {
        "state": "ready",
        "compiled in": ", ".join(module.compiled()),
        "can run here": ", ".join(module.available()),
        "in use": module.isa(),
    }


def test_without_it_the_reason_says_how_to_get_it(absent):
    assert extension.native() is None
    assert "install" in str(extension.reason())
    assert "GCC 11 or newer" in str(extension.reason())
    assert extension.refusal() == extension.reason()
    assert json.loads(limelight("info", "--json").out)["native kernels"] == {"state": extension.reason()}
    assert "GCC 11 or newer" in limelight("info").out


def test_a_folder_without_a_build_is_named(monkeypatch, loaded_afresh, tmp_path):
    monkeypatch.setenv("LIMELIGHT_NATIVE", str(tmp_path))
    assert extension.native() is None
    assert str(tmp_path) in str(extension.reason())


def test_a_build_that_cannot_be_loaded_is_no_obstacle(monkeypatch, loaded_afresh, tmp_path):
    (tmp_path / "_native.py").write_text("raise ImportError('undefined symbol: GOMP_parallel')\n", encoding="utf-8")
    monkeypatch.setenv("LIMELIGHT_NATIVE", str(tmp_path))
    assert extension.native() is None
    assert "cannot be loaded: undefined symbol: GOMP_parallel" in str(extension.reason())


OBJECTS = sorted(BUILD.glob("CMakeFiles/kernels_*.dir/csrc/kernels.cpp.o"))


@pytest.mark.skipif(not OBJECTS or shutil.which("nm") is None, reason="no objects of a build here, or no nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.parents[1].stem)
def test_no_object_has_functions_that_another_instruction_set_could_get(path):
    """An inline function outside the namespace of its instruction set is kept once by the linker: for all, from any."""
    isa = path.parents[1].stem.removeprefix("kernels_")
    symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    assert f" T limelight::{isa}::kernels()" in symbols
    shared = re.findall(r"^[0-9a-f]+ W (.*)$", symbols, re.MULTILINE)
    assert [name for name in shared if f"limelight::{isa}::" not in name] == []
