import re
import subprocess
import sys
from dataclasses import asdict, fields
from inspect import signature

import pytest
import typer
from tests.support.command import limelight

from limelight import __version__
from limelight.cli import train as train_module
from limelight.models import Seq2SeqConfig, TransformerConfig
from limelight.training import sort_settings

COMMANDS = ("train", "translate", "evaluate", "align", "export", "demo", "info")
# What the command line leaves to the Python API, and what only the vocabularies decide.
NOT_OPTIONS = {"betas", "alignment_layer", "alignment_head", "source_vocabulary", "target_vocabulary", "pad"}


def test_help_does_no_work():
    code = (
        "import sys; from limelight.cli import main\n"
        "try: main()\n"
        "finally: sys.exit(' '.join({'torch', 'numpy', 'tokenizers', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code, "train", "--help"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Learn to translate" in ran.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    ran = limelight(command, "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert f"Usage: limelight {command} " in ran.out


def test_no_command_shows_all_of_them_and_is_a_mistake():
    ran = limelight()
    assert ran.code == 2
    assert all(command in ran.out + ran.err for command in COMMANDS)


def test_version():
    assert limelight("--version").out == f"limelight {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "No such command 'tarin'"),
        (["train", "--atention", "none"], "No such option: --atention"),
        (["translate"], "Missing argument"),
        (["translate", "run", "--beam", "0"], "Invalid value for '--beam'"),
        (["translate", "run", "--beam", "x"], "Invalid value for '--beam'"),
        (["translate", "run", "--n-best", "0"], "Invalid value for '--n-best'"),
        (["translate", "run", "--alpha", "-1"], "Invalid value for '--alpha'"),
        (["translate", "run", "--threads", "100000"], "Invalid value for '--threads'"),
        (["train", "a.tsv", "--threads", "100000"], "Invalid value for '--threads'"),
        (["demo", "--size", "999"], "Invalid value for '--size'"),
    ],
)
def test_a_wrong_option_is_told_with_the_way_to_help(arguments, message):
    ran = limelight(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "-h' for help" in ran.err


def _shown_defaults() -> dict[str, str]:
    """What the help of `train` says, by option."""
    parameters = signature(train_module.train).parameters
    shown = {}
    for name, parameter in parameters.items():
        for option in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(option, type(typer.Option())):
                found = re.search(r"\[default: (.*)\]\[/dim\]", option.help or "")
                shown[name] = found[1] if found else ""
    return shown


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_defaults_in_the_help_of_train_are_those_of_the_settings():
    shown = _shown_defaults()
    unset = {"updates": "", "minutes": "", "validate_every": "an epoch's", "threads": "all cores"}
    expected: dict[str, dict[str, str]] = {}
    for kind, sizes in (("rnn", Seq2SeqConfig), ("transformer", TransformerConfig)):
        data, training, own = sort_settings(kind, {})
        values = asdict(data) | asdict(training) | {field.name: field.default for field in fields(sizes)} | own
        for name in values.keys() - NOT_OPTIONS:
            expected.setdefault(name, {})[kind] = unset.get(name) or _written(values[name])
    assert len(expected) > 40
    for name, by_kind in expected.items():
        values = set(by_kind.values())
        text = values.pop() if len(values) == 1 else ", ".join(f"{value} {kind}" for kind, value in by_kind.items())
        assert shown[name] == ("" if text == "None" else text), name
    rest = {"source", "target", "out", "overwrite", "resume", "dev_file", "guided_alignment", "model"}
    assert set(shown) == set(expected) | rest


def test_defaults_reach_the_screen():
    assert "[default: bahdanau]" in limelight("train", "--help").out
