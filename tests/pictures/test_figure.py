import logging
import re
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from limelight.errors import ArgumentError, OutputError
from limelight.evaluation.quality import LengthBin
from limelight.pictures.canvas import FORMATS, fonts
from limelight.pictures.figure import save_heatmap, save_length_plot

SOURCE = ["The", "agreement", "was", "signed", ".", "</s>"]
TARGET = ["L'", "accord", "a", "été", "signé", ".", "</s>"]


def weights(rows=7, columns=6, seed=5):
    raw = np.random.default_rng(seed).gamma(0.3, size=(rows, columns))
    return raw / raw.sum(1, keepdims=True)


def bins(*scores, sentences=70):
    return [LengthBin(1 + 5 * n, 5 + 5 * n, sentences - n, score) for n, score in enumerate(scores)]


def svg_texts(path):
    """All texts with their places, in drawing order; rotated ones are placed by a transform."""
    found = []
    for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text"):
        x, y = element.get("x"), element.get("y")
        if x is None or y is None:
            x, y = re.findall(r"-?[\d.]+", element.get("transform"))[:2]
        found.append(("".join(element.itertext()), float(x), float(y)))
    return found


def pixel(path, x, y):
    """The colour at a part of the picture's width and height."""
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((round(x * image.width), round(y * image.height)))


def size(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_the_ending_gives_the_format(tmp_path, ending, magic):
    path = tmp_path / f"picture.{ending}"
    assert save_heatmap(str(path), weights(), SOURCE, TARGET) == path
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "png", ".png"])
def test_other_endings_are_refused_with_a_list(tmp_path, name):
    with pytest.raises(ArgumentError, match=r"must end in one of \.png, \.svg, \.pdf, got .*" + re.escape(name)):
        save_heatmap(tmp_path / name, weights(), SOURCE, TARGET)
    assert list(tmp_path.iterdir()) == []


def test_source_is_on_top_from_the_left_and_target_goes_down(tmp_path):
    save_heatmap(tmp_path / "p.svg", weights(), SOURCE, TARGET)
    texts = svg_texts(tmp_path / "p.svg")
    across, down = texts[: len(SOURCE)], texts[len(SOURCE) : len(SOURCE) + len(TARGET)]
    assert [text for text, _, _ in across] == SOURCE
    assert [text for text, _, _ in down] == TARGET
    assert (np.diff([x for _, x, _ in across]) > 20).all()
    assert (np.diff([y for _, _, y in down]) > 20).all()
    assert max(y for _, _, y in across) < min(y for _, _, y in down)
    assert max(x for _, x, _ in down) < min(x for _, x, _ in across)
    assert "attention weight" in [text for text, _, _ in texts]


def test_a_cell_is_square_and_dark_where_the_weight_is(tmp_path):
    one = np.zeros((7, 6))
    one[2, 4] = 1.0
    save_heatmap(tmp_path / "p.png", one, SOURCE, TARGET, dpi=100)
    with Image.open(tmp_path / "p.png") as image:
        dark = np.asarray(image.convert("RGB")).astype(int)
    # Deep ink, found left of the colour bar.
    ink = np.array([0x1D, 0x1B, 0x4E])
    at = np.argwhere((abs(dark - ink).sum(-1) < 6)[:, : round(0.85 * dark.shape[1])])
    (top, left), (bottom, right) = at.min(0), at.max(0)
    assert abs((bottom - top) - (right - left)) <= 2
    assert 25 <= bottom - top <= 40
    # Row 2 of 7 and column 4 of 6, so two cells are above it within the map and one to its right.
    cell = (bottom - top) + 1
    assert dark[top - 2 * cell + 5, left + 5].min() > 240
    assert left > 4 * cell


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_letters_that_no_font_has_are_no_warning(tmp_path, ending, caplog):
    odd = ["今日", "नमस्ते", "مرحبا", "שלום", "👩\u200d👧", "\U00010380", "\ue000"]
    with caplog.at_level(logging.WARNING):
        save_heatmap(tmp_path / f"p.{ending}", weights(7, 7), odd, odd[::-1], title="天気 𐎀")
        save_length_plot(tmp_path / f"q.{ending}", {"天気": bins(3.0)}, title="नमस्ते")
    assert caplog.records == []


def test_dollar_and_markup_are_drawn_as_they_are(tmp_path):
    odd = ["$x^2$", "$", r"\frac{", "<b>&", "100%", "_a_"]
    save_heatmap(tmp_path / "p.svg", weights(6, 6), odd, odd, title="$5 and $6")
    save_length_plot(tmp_path / "q.svg", {"$a$": bins(1.0, 2.0), "_b": bins(3.0)}, title="$x$", unit="$u$")
    texts = [text for text, _, _ in svg_texts(tmp_path / "p.svg")]
    assert texts[:12] == odd + odd
    assert "$5 and $6" in texts
    texts = [text for text, _, _ in svg_texts(tmp_path / "q.svg")]
    assert {"$a$", "_b", "$x$", "source length in $u$ (below: sentences)"} <= set(texts)


def test_control_characters_do_not_break_the_svg(tmp_path):
    save_heatmap(tmp_path / "p.svg", [[1.0]], ["a\x00b"], ["\x1b[1m"], title="line\nbreak\x07")
    texts = [text for text, _, _ in svg_texts(tmp_path / "p.svg")]
    assert texts[:2] == ["a\ufffdb", "\ufffd[1m"]


def test_size_follows_the_tokens_and_is_capped(tmp_path):
    sizes = {}
    for number in (1, 7, 31, 100, 401):
        save_heatmap(tmp_path / "p.png", np.eye(3, number), ["word"] * number, ["word"] * 3, dpi=40)
        sizes[number] = max(size(tmp_path / "p.png")) / 40
    assert sizes[1] < sizes[7] < sizes[31] < sizes[100] < sizes[401] < 27
    # 100 cells of 0.13 inches, and room for labels and the bar.
    assert 13 < sizes[100] < 16


def test_long_labels_get_their_room(tmp_path):
    for name, word in (("short", "ab"), ("long", "x" * 23)):
        save_heatmap(tmp_path / f"{name}.png", weights(3, 5), [word] * 5, [word] * 3, dpi=50)
    (short_width, short_height), (width, height) = size(tmp_path / "short.png"), size(tmp_path / "long.png")
    assert width > short_width + 50
    assert height > short_height + 50


def test_a_hundred_labels_are_all_there_and_of_readable_size(tmp_path):
    tokens = [f"w{n}" for n in range(100)]
    save_heatmap(tmp_path / "p.svg", np.eye(100), tokens, tokens)
    texts = [text for text, _, _ in svg_texts(tmp_path / "p.svg")]
    assert texts[:200] == tokens * 2
    sizes = [float(s) for s in re.findall(r"font-size: ([\d.]+)px", (tmp_path / "p.svg").read_text())]
    assert min(sizes) >= 5


def test_thousands_of_labels_are_thinned_out_evenly(tmp_path):
    tokens = [f"w{n}" for n in range(997)]
    save_heatmap(tmp_path / "p.svg", np.eye(997, 3), ["a", "b", "c"], tokens, dpi=30)
    shown = [int(text[1:]) for text, _, _ in svg_texts(tmp_path / "p.svg") if re.fullmatch(r"w\d+", text)]
    steps = set(np.diff(shown))
    assert len(steps) == 1
    assert 2 <= steps.pop() <= 5


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    for ending in FORMATS:
        first = save_heatmap(tmp_path / f"a{ending}", weights(), SOURCE, TARGET).read_bytes()
        assert save_heatmap(tmp_path / f"b{ending}", weights(), SOURCE, TARGET).read_bytes() == first


def test_settings_of_the_user_are_neither_changed_nor_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    before = dict(matplotlib.rcParams)
    save_heatmap(tmp_path / "p.svg", weights(), SOURCE, TARGET)
    save_length_plot(tmp_path / "q.svg", {"a": bins(1.0)})
    assert dict(matplotlib.rcParams) == before
    assert "accord" in (tmp_path / "p.svg").read_text()


def test_drawing_does_not_import_pyplot(tmp_path, monkeypatch):
    # None makes an import fail.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    save_heatmap(tmp_path / "p.png", weights(), SOURCE, TARGET)
    save_length_plot(tmp_path / "q.png", {"a": bins(1.0)})


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    with pytest.raises(OutputError, match=r"nowhere"):
        save_heatmap(tmp_path / "nowhere" / "p.png", weights(), SOURCE, TARGET)
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    with pytest.raises(ArgumentError, match="target_tokens"):
        save_heatmap(path, weights(), SOURCE, SOURCE)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dpi", [0, 19, 301])
def test_dpi_out_of_range(tmp_path, dpi):
    with pytest.raises(ArgumentError, match=rf"dpi: must lie in \[20, 300\], got {dpi}"):
        save_heatmap(tmp_path / "p.png", weights(), SOURCE, TARGET, dpi=dpi)


def test_one_cell_and_one_row(tmp_path):
    save_heatmap(tmp_path / "one.png", [[0.5]], ["a"], ["b"])
    save_heatmap(tmp_path / "row.png", [[0.2, 0.8]], ["a", "b"], ["c"])
    assert pixel(tmp_path / "one.png", 0.98, 0.98) == (255, 255, 255)


def test_length_plot_names_models_intervals_and_counts(tmp_path):
    series = {"Bahdanau": bins(40.0, 38.5, 37.0), "none": bins(39.0, 25.0, 11.0)}
    save_length_plot(tmp_path / "q.svg", series, title="Spanish")
    texts = [text for text, _, _ in svg_texts(tmp_path / "q.svg")]
    assert {"Bahdanau", "none", "Spanish", "BLEU", "1–5", "6–10", "11–15", "70", "69", "68"} <= set(texts)
    assert "source length in words (below: sentences)" in texts


def test_length_plot_of_models_with_other_intervals_and_counts(tmp_path):
    series = {"a": bins(40.0, 38.5), "b": [LengthBin(6, 10, 7, 30.0), LengthBin(11, 11, 3, 20.0)]}
    save_length_plot(tmp_path / "q.svg", series)
    texts = [text for text, _, _ in svg_texts(tmp_path / "q.svg")]
    assert {"1–5", "6–10", "11", "69 / 7", "3"} <= set(texts)


def test_length_plot_errors(tmp_path):
    with pytest.raises(ArgumentError, match="series: needs at least one model, got none"):
        save_length_plot(tmp_path / "q.png", {})
    with pytest.raises(ArgumentError, match="at least one interval, 'b' has none"):
        save_length_plot(tmp_path / "q.png", {"a": bins(1.0), "b": []})
    with pytest.raises(ArgumentError, match=r"must end in one of \.png, \.svg, \.pdf"):
        save_length_plot(tmp_path / "q.gif", {"a": bins(1.0)})


def test_fonts_are_added_only_for_letters_that_need_them():
    assert fonts("Grüße, мир, ελ") == ["DejaVu Sans"]
    assert fonts("今日")[0] == "DejaVu Sans"
