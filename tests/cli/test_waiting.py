import io
import sys

import pytest

from limelight.cli import waiting as module
from limelight.cli.waiting import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_nothing_is_shown_where_nobody_watches(capsys, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    with waiting("working", 7) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_bar_appears_only_when_it_takes_a_while(terminal, monkeypatch):
    with waiting("working", 7) as advance:
        advance(3)
    assert "working" not in terminal.getvalue()
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    with waiting("working", 7) as advance:
        advance(3)
    assert "working" in terminal.getvalue()
    assert "3/7" in terminal.getvalue()


def test_results_on_the_same_terminal_need_no_bar(terminal, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with waiting("working", None, printing=True) as advance:
        advance(3)
    assert terminal.getvalue() == ""
