"""`limelight.interop.keras` against keras.layers on each of Keras' backends, which a process has one of."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "keras_cases"
ROOT = CASES.parents[2]
SENTENCES = (
    ("the dog sleeps", "el perro duerme"),
    ("the cat sleeps", "el gato duerme"),
    ("the dog eats", "el perro come"),
    ("the cat eats", "el gato come"),
    ("a dog sleeps", "un perro duerme"),
    ("a cat eats", "un gato come"),
)

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")


BACKENDS = ("torch", "tensorflow", "jax")


def environment(backend: str) -> dict[str, str]:
    chosen = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    # Of XLA, for whom compiling is most of the time.
    return os.environ | chosen | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The cases of every backend that is installed, all started at once."""
    cases = sorted(str(path) for path in CASES.glob("*_cases.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *cases]
    logs = tmp_path_factory.mktemp("keras")
    processes = {}
    for backend in filter(find_spec, BACKENDS):
        with (logs / backend).open("w") as log:
            processes[backend] = subprocess.Popen(
                command, env=environment(backend), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
    yield processes, logs
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_on_backend(backend, running):
    processes, logs = running
    if backend not in processes:
        pytest.skip(f"{backend} is not installed")
    code = processes[backend].wait(timeout=900)
    said = (logs / backend).read_text()
    assert code == 0, said[-8000:]
    assert " passed" in said


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_tutorial_learns_and_shows(tmp_path):
    corpus = tmp_path / "spa.txt"
    corpus.write_text("".join(f"{source}\t{target}\n" for source, target in SENTENCES * 20), encoding="utf-8")
    script = str(ROOT / "examples" / "keras_translation.py")
    options = ("--epochs", "12", "--units", "64", "--out", str(tmp_path))
    command = [sys.executable, script, str(corpus), *options]
    done = subprocess.run(
        command, env=environment("tensorflow"), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout
    assert float(said.split("held-out characters: ")[1].split()[0]) < 1.5  # of equally likely characters: log 18 = 2.9
    assert "should be" in said
    assert (tmp_path / "attention.png").stat().st_size > 1000
    assert (tmp_path / "model.keras").exists()
