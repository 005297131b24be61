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


def run(backend: str, *command: str, **options):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of XLA, for whom compiling is most of the time
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("backend", ["torch", "tensorflow", "jax"])
def test_layers_on_backend(backend):
    cases = sorted(str(path) for path in CASES.glob("*_cases.py"))
    assert " passed" in run(backend, "-m", "pytest", "-p", "no:cacheprovider", *cases, cwd=ROOT)


def test_tutorial_learns_and_shows(tmp_path):
    corpus = tmp_path / "spa.txt"
    corpus.write_text("".join(f"{source}\t{target}\n" for source, target in SENTENCES * 20), encoding="utf-8")
    script = str(ROOT / "examples" / "keras_translation.py")
    options = ("--epochs", "12", "--units", "64", "--out", str(tmp_path))
    said = run("tensorflow", script, str(corpus), *options, cwd=tmp_path)
    assert float(said.split("held-out characters: ")[1].split()[0]) < 1.5  # of equally likely characters: log 18 = 2.9
    assert "should be" in said
    assert (tmp_path / "attention.png").stat().st_size > 1000
    assert (tmp_path / "model.keras").exists()
