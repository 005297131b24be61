import io
import re

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel

from limelight.errors import ArgumentError
from limelight.pictures.colours import PAPER, STAGE, STAGE_256, mix
from limelight.pictures.terminal import heatmap

SENTENCE = (
    "It should be noted that the marine environment is the least known of environments , and that the parliamentary "
    "committee responsible for internationalisation has nevertheless decided to postpone its decision"
)
LONG = SENTENCE.split()


def console(width=80, system=None, **options):
    return Console(file=io.StringIO(), width=width, color_system=system, force_terminal=system is not None, **options)


def printed(picture, width=80, system=None, **options):
    out = console(width, system, **options)
    out.print(picture)
    return out.file.getvalue()


def diagonal(rows, columns):
    weights = np.full((rows, columns), 0.0)
    for row in range(rows):
        weights[row, row * columns // rows] = 1.0
    return weights


def lightness(red, green, blue):
    """CIE L*, the lightness that an eye sees."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def test_whole_picture_without_colour():
    weights = [[0.9, 0.1, 0.0], [0.04, 0.3, 0.66]]
    assert str(heatmap(weights, ["good", "a", "</s>"], ["hola", "y"], title="T", caption="C")) == (
        "T\n"
        "     good  a </s> \n"
        "hola █90█ ░░  ·   \n"
        "   y  ·   ▒▒ ▓66▓ \n"
        "\n"
        "     weight  · 0–.05  ░ .05–.25  ▒ .25–.5  ▓ .5–.75  █ .75–1\n"
        "     number: the row's largest, in %\n"
        "C\n"
    )


def test_shades_change_at_the_ends_that_the_scale_names():
    weights = [[0.0499, 0.05, 0.2499, 0.25, 0.4999, 0.5, 0.7499, 0.75, 1.0]]
    line = str(heatmap(weights, list("abcdefghi"), ["t"])).splitlines()[1]
    assert line.split() == ["t", "·", "░░", "░░", "▒▒", "▒▒", "▓▓", "▓▓", "██", "100"]


def test_only_the_largest_of_a_row_is_numbered_and_an_empty_row_is_not():
    text = str(heatmap([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.004, 0.0]], ["aa", "bb", "cc"], ["r1", "r2", "r3"]))
    rows = text.splitlines()[1:4]
    assert rows[0].count("50") == 1
    assert re.findall(r"\d+", rows[1]) == ["2"]
    assert re.findall(r"\d+", rows[2]) == ["3"]


def test_source_labels_stand_above_their_columns():
    source = ["good", "morning", ",", "how", "are", "you", "?"]
    header, *rows = str(heatmap(np.eye(7), source, list("abcdefg"))).splitlines()[:8]
    for word, row in zip(source, rows, strict=True):
        assert header.index(word) <= row.index("100") + 1
        assert row.index("100") < header.index(word) + len(word) + 2


@pytest.mark.parametrize("system", [None, "256", "truecolor"])
@pytest.mark.parametrize("width", [20, 37, 80, 200])
def test_no_line_is_wider_than_the_console_and_rows_line_up(width, system):
    source = [*LONG[:5], "今日は", "e\u0301te\u0301", "नमस्ते", "مرحبا", "👩\u200d👧", "ok"]
    target = ["the", "weather", "天気", "cafe\u0301", "שלום", "हिन्दी", "end"]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(heatmap(diagonal(7, 11), source, target), width, system))
    assert max(cell_len(line) for line in plain.splitlines()) <= width
    margin = min(7, width // 3) + 1
    panels = re.split(r"(?m)^source .*$", plain)
    for panel in panels[1:] or panels:
        rows = [line for line in panel.splitlines() if "┌" not in line and "│" not in line]
        rows = [line for line in rows if cell_len(line.rstrip()) > 0 and not line.startswith(" " * margin)]
        assert len(rows) == 7, panel
        assert len({cell_len(row) for row in rows}) == 1, panel


def test_each_word_of_the_stairs_leads_down_to_its_column():
    source, target = LONG[:16], [f"t{n}" for n in range(16)]
    lines = str(heatmap(np.eye(16), source, target)).splitlines()
    for number, word in enumerate(source):
        level, line = next((n, line) for n, line in enumerate(lines) if f"┌ {word}" in line and n >= number)
        column = line.index(f"┌ {word}")
        below = next(n for n, other in enumerate(lines) if other.lstrip().startswith("t0"))
        assert {lines[n][column] for n in range(level + 1, below)} <= {"│"}
        assert lines[below + number][column : column + 2] in ("99", "10")


def test_characters_need_no_stairs_and_wrap_as_text():
    text = str(
        heatmap(diagonal(5, 61), list("the quick brown fox jumps over a lazy dog and then it sleeps."), list("vwxyz"))
    )
    assert "┌" not in text
    assert "t h e ␣ q u i c k" in text
    assert re.findall(r"source (\d+) to (\d+) of 61", text) == [("1", "31"), ("32", "61")]


def test_a_long_source_wraps_into_even_panels_and_loses_nothing():
    weights = np.zeros((5, 61))
    weights[:, 60] = 1.0
    source = [f"w{n}" for n in range(61)]
    text = str(heatmap(weights, source, ["one", "two", "three", "four", "five"]))
    assert re.findall(r"source (\d+) to (\d+) of 61", text) == [("1", "31"), ("32", "61")]
    assert set(re.findall(r"w\d+", text)) == set(source)
    assert text.count("three") == 2
    assert text.count("99") == 5
    assert text.count("weight  ·") == 1


def test_one_panel_has_no_line_about_panels():
    assert "source 1 to" not in str(heatmap([[1.0]], ["a"], ["b"]))


def test_truecolor_shows_weight_as_ground_and_has_a_bar_from_end_to_end():
    text = printed(heatmap([[1.0, 0.0]], ["yes", "no"], ["t"]), system="truecolor")
    for weight in (0.0, 1.0):
        red, green, blue = mix(STAGE, weight)
        # Once in the map and once in the bar.
        assert text.count(f"48;2;{red};{green};{blue}m") == 2
    assert "weight 0" in text
    assert "█" not in text


def test_256_colours_come_from_the_made_scale_only():
    text = printed(heatmap([[0.1, 0.2, 0.7]], ["a", "b", "c"], ["t"]), system="256")
    grounds = {int(number) for number in re.findall(r"48;5;(\d+)", text)}
    assert grounds == set(STAGE_256)


@pytest.mark.parametrize(("system", "options"), [(None, {}), ("standard", {}), ("truecolor", {"no_color": True})])
def test_blocks_where_colours_are_missing_or_unwanted(system, options):
    text = printed(heatmap([[0.1, 0.9]], ["aa", "bb"], ["t"]), system=system, **options)
    assert "░░" in text
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", text)


def test_pale_words_are_never_on_pale_ground():
    for system in ("truecolor", "256"):
        text = printed(
            heatmap([[n / 64] for n in range(1, 65)], ["aaaaa"], [f"r{n}" for n in range(64)]), system=system
        )
        cells = re.findall(r"\x1b\[1;38;2;(\d+);\d+;\d+;48;2;(\d+);(\d+);(\d+)m", text)
        for ink, *ground in cells:
            assert abs(lightness(int(ink), int(ink), int(ink)) - lightness(*map(int, ground))) > 40
    assert text


def test_ascii_consoles_get_ascii_blocks():
    out = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80, color_system=None)
    lines = out.render_lines(heatmap([[0.0, 0.3, 0.7]], ["a", "b", "c"], ["t"]), out.options, pad=False)
    row = "".join(segment.text for segment in lines[1])
    assert row.split() == ["t", ".", "++", "70"]


def test_tokens_cannot_control_the_terminal_or_be_taken_for_markup():
    text = str(heatmap([[1.0, 0.0, 0.0]], ["\x1b[31mred", "[bold]b[/]", "\u202eevil"], ["a\nb"], title="x\x1b[2J"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]b[/]" in text
    assert "a↵b" in text


def test_space_and_empty_tokens_are_visible():
    text = str(heatmap(np.eye(3), [" ", "", "\t"], ["x y", "\u3000", "z"]))
    assert text.splitlines()[0].split() == ["␣", "∅", "⇥"]
    assert "x␣y" in text


def test_right_to_left_words_are_fenced():
    assert "\u200eمرحبا\u200e" in str(heatmap([[1.0]], ["مرحبا"], ["hi"]))


def test_a_word_longer_than_its_room_is_marked_as_cut():
    text = str(heatmap(np.eye(2), ["x" * 90, "b"], ["y" * 90, "c"], width=40))
    assert "xxx…" in text
    assert "yyy…" in text
    assert max(map(len, text.splitlines())) <= 40


def test_fits_into_a_panel_of_rich():
    text = printed(Panel(heatmap(np.eye(3), ["aa", "bb", "cc"], ["x", "y", "z"]), expand=False), width=60)
    assert {cell_len(line) for line in text.splitlines()} == {60}


def test_takes_tensors_of_any_dtype():
    weights = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    assert str(heatmap(weights, list("abc"), list("xyz"))) == str(heatmap(np.eye(3), list("abc"), list("xyz")))


def test_errors():
    with pytest.raises(ArgumentError, match=r"2 axes \[target, source\], got shape \[3, 2, 5\]"):
        heatmap(torch.zeros(3, 2, 5), ["a"] * 5, ["b"] * 2)
    with pytest.raises(ArgumentError, match=r"source_tokens: needs one token for each of the 3 columns .*, got 2"):
        heatmap(np.zeros((2, 3)), ["a"] * 2, ["b"] * 2)
    with pytest.raises(ArgumentError, match=r"target_tokens: needs one token for each of the 2 rows .*, got 3"):
        heatmap(np.zeros((2, 3)), ["a"] * 3, ["b"] * 3)
    with pytest.raises(ArgumentError, match="source_tokens: must be a list of tokens, got the string 'ab'; split it"):
        heatmap(np.zeros((1, 2)), "ab", ["b"])
    with pytest.raises(ArgumentError, match="width: must be 20 columns or more, got 19"):
        heatmap(np.zeros((1, 1)), ["a"], ["b"], width=19)


@pytest.mark.parametrize(("scale", "sign"), [(STAGE, 1), (PAPER, -1)])
def test_lightness_moves_in_equal_steps(scale, sign):
    steps = np.diff([lightness(*mix(scale, n / 16)) for n in range(17)]) * sign
    assert steps.min() > 0.4 * steps.mean()
    assert steps.max() < 1.6 * steps.mean()
    assert mix(scale, 0.0) == tuple(int(scale[0][n : n + 2], 16) for n in (1, 3, 5))
    assert mix(scale, 1.0) == tuple(int(scale[-1][n : n + 2], 16) for n in (1, 3, 5))


def test_lightness_of_the_256_colours_rises():
    def rgb(number):
        if number >= 232:
            return (8 + 10 * (number - 232),) * 3
        levels = (0, 95, 135, 175, 215, 255)
        return tuple(levels[(number - 16) // step % 6] for step in (36, 6, 1))

    assert (np.diff([lightness(*rgb(number)) for number in STAGE_256]) > 3).all()
