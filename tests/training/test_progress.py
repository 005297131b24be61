import io

import pytest
from rich.console import Console

from limelight.training import progress
from limelight.training.progress import Lines, Live, Report, Silent, Speed, default_display


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def report(update, total=1000, loss=2.5):
    return Report(update, total, 3, loss, 12_345.6, 1e-3)


def test_a_line_every_so_often_and_no_estimate_too_early(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    lines = Lines(seconds=15)
    # Reading the corpus took ten minutes: no part of the estimate.
    clock.now += 600
    lines.update(report(1))
    first = capsys.readouterr().err
    assert first == "epoch 3  update 1/1000  loss 2.500  12,346 tokens/s\n"
    clock.now += 10
    lines.update(report(10))
    assert capsys.readouterr().err == ""
    clock.now += 10
    lines.update(report(20))
    assert "left" not in capsys.readouterr().err
    clock.now += 20
    # 40 updates in 40 s since the first report: 959 more take as many seconds.
    lines.update(report(41))
    assert capsys.readouterr().err.endswith("12,346 tokens/s  about 16 min left\n")
    clock.now += 900
    lines.update(report(941))
    assert capsys.readouterr().err.endswith("tokens/s  less than a minute left\n")


def test_a_resumed_run_estimates_from_where_it_was_resumed(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    lines = Lines(seconds=0)
    lines.update(report(500))
    clock.now += 120
    lines.update(report(520))
    # 20 updates took two minutes: 480 more take 48.
    assert "about 48 min left" in capsys.readouterr().err


def test_the_speed_is_tokens_over_time():
    speed = Speed()
    assert speed.tokens_per_second == 0.0
    speed.add(300, 2.0)
    speed.add(100, 3.0)
    assert speed.tokens_per_second == 80.0


def test_the_live_bar_shows_what_is_reported():
    out = io.StringIO()
    live = Live(Console(file=out, force_terminal=True, width=120))
    live.say("[reading] the corpus")
    live.update(report(10))
    live.update(report(20, loss=float("nan")))
    live.close()
    shown = out.getvalue()
    assert "[reading] the corpus" in shown
    assert "20/1000" in shown
    assert "12,346 tokens/s" in shown
    assert "epoch 3" in shown


def test_a_bar_that_never_began_can_be_closed():
    Live(Console(file=io.StringIO())).close()


def test_silence(capsys):
    silent = Silent()
    silent.say("x")
    silent.update(report(1))
    silent.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("terminal", "kind"), [(True, Live), (False, Lines)])
def test_the_display_fits_where_it_is_shown(monkeypatch, terminal, kind):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)
    assert type(default_display()) is kind
