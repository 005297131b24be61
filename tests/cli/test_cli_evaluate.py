import json

import pytest
from tests.support.command import limelight, refused
from tests.support.toy_language import write_toy

from limelight.pharaoh import parse_pharaoh

PAIRS = [("one", "eins"), ("big red", "groß rot"), ("one", "ein"), ("two three four five six", "zwei drei vier fünf")]


@pytest.fixture
def tsv(tmp_path):
    return write_toy(tmp_path / "test.tsv", PAIRS)


def test_scores_carry_their_signatures_and_references_are_grouped(toy_run, tsv):
    ran = limelight("evaluate", toy_run, tsv)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0] == "3 sentences, 4 references, beam 5"
    assert "nrefs:var|case:lc|eff:no|tok:13a|smooth:exp|version:" in ran.lines[1]
    assert "nrefs:var|case:lc|eff:yes|nc:6|nw:0|space:no|version:" in ran.lines[2]
    # Two of three translations are among their references.
    assert ran.lines[3] == "exact match   66.67 %"
    assert "AER" not in ran.out


def test_json_has_the_same_and_the_options_reach_sacrebleu(toy_run, tsv):
    ran = limelight("evaluate", toy_run, tsv, "--json", "--cased", "--tokenize", "char", "--beam", 1)
    found = json.loads(ran.out)
    assert (found["sentences"], found["references"], found["beam"]) == (3, 4, 1)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert "case:mixed|eff:no|tok:char" in found["bleu_signature"]
    assert 0 < found["bleu"] < 100
    assert [(row["low"], row["high"], row["sentences"]) for row in found["by_length"]] == [(1, 5, 3)]


def test_a_perfect_test_set_scores_a_hundred(toy_run, tmp_path):
    sources = ["one two three four", "big red five seven", "small"]
    targets = limelight("translate", toy_run, *sources).lines
    perfect = write_toy(tmp_path / "own.tsv", list(zip(sources, targets, strict=True)))
    found = json.loads(limelight("evaluate", toy_run, perfect, "--json").out)
    assert (found["bleu"], found["chrf"], found["exact_match"]) == (100, 100, 1)


def test_gold_alignments_give_the_error_rate(toy_run, tsv, tmp_path):
    lines = limelight("align", toy_run, tsv).lines
    gold = tmp_path / "gold.txt"
    gold.write_text("\n".join(lines) + "\n")
    assert json.loads(limelight("evaluate", toy_run, tsv, "--gold", gold, "--json").out)["aer"] == {
        "aer": 0,
        "precision": 1,
        "recall": 1,
    }
    # By hand: the second line has one sure link more, which is missed; in the first its one link is only possible.
    links = sum(len(parse_pharaoh(line).sure) for line in lines)
    assert lines[0] == "0-0"
    gold.write_text("\n".join(["0?0", f"{lines[1]} 0-9", *lines[2:]]) + "\n")
    found = json.loads(limelight("evaluate", toy_run, tsv, "--gold", gold, "--json").out)["aer"]
    # A & S: all but the first; A & P: all; |S|: one less, one more.
    assert found["aer"] == pytest.approx(1 - (links - 1 + links) / (links + links))
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx((links - 1) / links)
    table = limelight("evaluate", toy_run, tsv, "--gold", gold).out
    assert f"AER          {found['aer']:6.3f}   precision 1.000, recall {found['recall']:.3f}" in table


def test_gold_stands_on_the_line_of_its_pair_when_lines_are_skipped(toy_run, tmp_path):
    tsv, gold = tmp_path / "holes.tsv", tmp_path / "gold.txt"
    tsv.write_text("no tab\none\teins\n\ntwo\tzwei\n")
    gold.write_text("7-7\n0-0\n\n0-0\n")
    ran = limelight("evaluate", toy_run, tsv, "--gold", gold, "--json")
    assert json.loads(ran.out)["aer"]["aer"] == 0
    assert "2 of 4 lines skipped: 1 without a tab (line 1), 1 blank (line 3)" in ran.err
    gold.write_text("0-0\n0-0\n")
    said = refused("evaluate", toy_run, tsv, "--gold", gold)
    assert f"gold: {gold} has 2 lines and {tsv} has 4; line i of one must be the alignment of line i" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"0-0\n0-x\n0-0\n0-0\n", "gold.txt, line 2: '0-x' is not an alignment link"), (b"", "holds no alignment")],
)
def test_gold_that_cannot_be_read(toy_run, tsv, tmp_path, content, message):
    (tmp_path / "gold.txt").write_bytes(content)
    assert message in refused("evaluate", toy_run, tsv, "--gold", tmp_path / "gold.txt")


def test_the_figure_of_the_paper(toy_run, tsv, tmp_path):
    ran = limelight("evaluate", toy_run, tsv, "--picture", tmp_path / "length.png")
    assert (ran.code, ran.err) == (0, f"wrote {tmp_path / 'length.png'}\n")
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenize", "foo"], "--tokenize: must be one of 13a, intl, zh, char, none, got 'foo'"),
        (["--picture", "a.bmp"], "--picture: must end in .png, .svg, .pdf, got a.bmp"),
        (["--picture", "."], "--picture: must end in"),
        (["--source", "a"], "corpus: give either one TSV file"),
        (["--gold", "missing"], "missing: cannot read the alignments: No such file or directory"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_work(toy_run, tsv, arguments, message, monkeypatch):
    monkeypatch.delattr("limelight.translator.Translator.translate_n_best")
    assert message in refused("evaluate", toy_run, tsv, *arguments)


def test_a_picture_over_a_folder(toy_run, tsv, tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "a.png: it is a folder" in refused("evaluate", toy_run, tsv, "--picture", tmp_path / "a.png")


@pytest.mark.parametrize("command", ["evaluate", "align"])
def test_a_corpus_that_is_not_there(toy_run, tmp_path, command):
    assert "no.tsv does not exist; check the name" in refused(command, toy_run, tmp_path / "no.tsv")
    assert f"{tmp_path} is a folder; name a file in it" in refused(command, toy_run, tmp_path)
    assert "corpus: give either one TSV file, or both" in refused(command, toy_run)
    (tmp_path / "empty.tsv").touch()
    assert "empty.tsv is empty" in refused(command, toy_run, tmp_path / "empty.tsv")


def test_a_model_without_attention_can_be_scored_but_aligns_nothing(blind_run, tsv, tmp_path):
    assert limelight("evaluate", blind_run, tsv).code == 0
    message = "run: this model was trained without attention, so it aligns nothing; train one that has attention"
    assert message in refused("align", blind_run, tsv)
    (tmp_path / "gold.txt").write_text("0-0\n" * len(PAIRS))
    assert message in refused("evaluate", blind_run, tsv, "--gold", tmp_path / "gold.txt")


def test_align_prints_a_line_for_every_line(toy_run, tmp_path):
    holes = tmp_path / "holes.tsv"
    holes.write_bytes(b"no tab\none\teins\n\n\xff\tx\nbig red\tgro\xc3\x9f rot\r\n" + b"w " * 251 + b"\tx\na\tb\tc\n")
    ran = limelight("align", toy_run, holes)
    assert ran.code == 0
    assert [bool(line) for line in ran.lines] == [False, True, False, False, True, False, False]
    assert ran.lines[1] == "0-0"
    assert {link.split("-")[1] for link in ran.lines[4].split()} == {"0", "1"}
    assert "5 of 7 lines skipped" in ran.err
    assert "their alignments are empty lines" in ran.err


def test_align_takes_two_files_and_many_lines(toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.cli.align._CHUNK", 3)
    (tmp_path / "a").write_text("one\ntwo\n\nbig\n" * 5)
    (tmp_path / "b").write_text("eins\nzwei\nrot\ngroß\n" * 5)
    ran = limelight("align", toy_run, "--source", tmp_path / "a", "--target", tmp_path / "b")
    assert ran.lines == ["0-0", "0-0", "", "0-0"] * 5


def test_align_tells_what_it_left_out(tmp_path, toy_run, monkeypatch):
    monkeypatch.setattr("limelight.translator.Translator.__init__.__kwdefaults__", {**_keywords(), "longest": 3})
    ran = limelight("align", toy_run, write_toy(tmp_path / "long.tsv", PAIRS))
    assert len(ran.lines) == 4
    assert "limelight: line 4: 3 tokens at its end were left out, it is too long" in ran.err


def _keywords():
    from limelight.translator import Translator

    return Translator.__init__.__kwdefaults__
