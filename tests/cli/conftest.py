from pathlib import Path

import pytest
from tests.support.toy_language import train_toy, write_toy


@pytest.fixture(scope="session")
def toy_tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.tsv")


@pytest.fixture(scope="session")
def toy_run(toy_tsv: Path) -> Path:
    """A run that translates the toy language; nobody may change it."""
    out = toy_tsv.parent / "run"
    train_toy(toy_tsv, out, lowercase=True)
    return out


@pytest.fixture(scope="session")
def blind_run(toy_tsv: Path) -> Path:
    """A run without attention."""
    out = toy_tsv.parent / "blind"
    train_toy(toy_tsv, out, attention="none", epochs=1)
    return out
