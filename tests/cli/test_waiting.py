import contextlib
import io
import sys

from limelight.cli import waiting as module
from limelight.cli.waiting import waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, *, patience, total=7, broken=False, **options):
    """What a terminal shows of a wait in which 3 were done."""
    # Not in a fixture: between the phases of a test pytest puts its own stream in place.
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "_PATIENCE", patience)
    with contextlib.suppress(ValueError), waiting("working", total, **options) as advance:
        advance(3)
        if broken:
            raise ValueError("broken")
    return screen.getvalue()


def test_nothing_is_shown_where_nobody_watches(capsys, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    with waiting("working", 7) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_bar_appears_only_when_it_takes_a_while(monkeypatch):
    assert "working" not in shown(monkeypatch, patience=60.0)
    bar = shown(monkeypatch, patience=-1.0)
    assert "working" in bar
    assert "3/7" in bar


def test_the_bar_goes_at_the_end_and_when_something_fails(monkeypatch):
    for broken in (False, True):
        # The last that a transient bar does is to erase its line.
        assert shown(monkeypatch, patience=-1.0, broken=broken).endswith("\x1b[2K")


def test_results_on_the_same_terminal_need_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert shown(monkeypatch, patience=-1.0, total=None, printing=True) == ""
