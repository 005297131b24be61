import json
import signal
import threading

import pytest
from tests.support.command import limelight, refused, start


def test_one_line_out_for_each_sentence(toy_run):
    ran = limelight("translate", toy_run, "one", "big red seven", "FIVE small")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == ["eins", "groß rot sieben", "fünf klein"]


def test_standard_input_keeps_its_lines_whatever_is_in_them(toy_run):
    text = b"\xef\xbb\xbfone\r\n\r\n  \ntwo\xff big\nthree\0four\n\nred"
    ran = limelight("translate", toy_run, stdin=text)
    assert ran.code == 0
    assert ran.lines == ["eins", "", "", "zwei groß", "drei vier", "", "rot"]
    assert ran.err == "limelight: line 4: invalid UTF-8; what cannot be read is left out\n"


def test_nothing_in_gives_nothing_out(toy_run):
    assert limelight("translate", toy_run) == limelight("translate", toy_run, stdin=b"")
    ran = limelight("translate", toy_run)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert limelight("translate", toy_run, "").lines == [""]


def test_unknown_words_are_named_and_the_rest_is_translated(toy_run):
    ran = limelight("translate", toy_run, "one", "漢 one zyzzyva", "two")
    assert ran.code == 0
    assert (ran.lines[0], ran.lines[2]) == ("eins", "zwei")
    assert "eins" in ran.lines[1]
    assert ran.err == "limelight: sentence 2: the model has never seen '漢', 'zyzzyva'\n"
    many = limelight("translate", toy_run, " ".join(f"x{n}" for n in range(13))).err
    assert "'x9' and 3 more" in many


def test_five_thousand_words_are_cut_and_told(toy_run):
    ran = limelight("translate", toy_run, "--beam", 1, "one", "two " * 5000)
    assert ran.code == 0
    assert len(ran.lines) == 2
    assert ran.lines[0] == "eins"
    assert "sentence 2: 4488 tokens at its end were left out, it is too long; give one sentence a line" in ran.err


def test_n_best_gives_scores_best_first(toy_run):
    ran = limelight("translate", toy_run, "big red seven", "", "--n-best", 3, "--beam", 3)
    columns = [line.split("\t") for line in ran.lines]
    assert [text for _, text in columns[::3]] == ["groß rot sieben", ""]
    scores = [float(score) for score, _ in columns]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert len({text for _, text in columns[:3]}) == 3
    assert scores[3] == 0


def test_json_says_all_there_is(toy_run):
    ran = limelight("translate", toy_run, "big red nine", "", "--json", "--n-best", 2)
    first, second, blank = (json.loads(line) for line in ran.lines)
    assert first["score"] > second["score"]
    assert first["source"] == "big red nine"
    assert first["source_tokens"] == ["big", "red", "nine", "</s>"]
    assert first["translation"].split() == first["target_tokens"]
    assert [len(row) for row in first["weights"]] == [4] * len(first["target_tokens"])
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in first["weights"])
    assert first["unknown"] == ["nine"]
    assert first["alignment"].split()[0].endswith("-0")
    assert (blank["translation"], blank["weights"], blank["alignment"]) == ("", None, "")


def test_the_alignment_of_a_translation_is_that_of_forced_decoding(toy_run, tmp_path):
    sentences = ["one", "big red seven", "five small small two", "green"]
    ran = limelight("translate", toy_run, *sentences, "--align", "--beam", 1)
    translations, links = zip(*(line.split("\t") for line in ran.lines), strict=True)
    assert links[0] == "0-0"
    assert all(links)
    pairs = zip(sentences, translations, strict=True)
    (tmp_path / "own.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    assert limelight("align", toy_run, tmp_path / "own.tsv").lines == list(links)


def test_show_prints_the_picture_below_its_translation(toy_run):
    ran = limelight("translate", toy_run, "big red seven", "one", "", "--show")
    assert ran.code == 0
    head, *picture = ran.lines[: ran.lines.index("eins")]
    assert head == "groß rot sieben"
    assert [row.split()[0] for row in picture[1:4]] == ["groß", "rot", "sieben"]
    assert "big" in picture[0]
    assert ran.err == "limelight: sentence 3: no picture, since nothing was produced\n"


def test_show_stays_out_of_json(toy_run):
    ran = limelight("translate", toy_run, "one two", "--show", "--json")
    assert json.loads(ran.out)["translation"] == "eins zwei"
    assert "eins" in ran.err


def test_pictures_are_numbered_when_there_may_be_several(toy_run, tmp_path):
    one = limelight("translate", toy_run, "one two", "--picture", tmp_path / "a.png")
    assert one.err == f"wrote {tmp_path / 'a.png'}\n"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    ran = limelight("translate", toy_run, "--picture", tmp_path / "b.svg", stdin=b"one\n\ntwo\n")
    assert ran.lines == ["eins", "", "zwei"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b-1.svg", "b-3.svg"]
    assert "<svg" in (tmp_path / "b-3.svg").read_text()
    assert "b-2.svg is not written: nothing was produced" in ran.err


@pytest.mark.parametrize("option", [["--show"], ["--align"], ["--picture", "a.png"]])
def test_a_model_without_attention_has_nothing_to_show(blind_run, option):
    said = refused("translate", blind_run, "one", *option)
    assert said == (
        f"limelight: {option[0]}: this model was trained without attention (train --attention none), so there is "
        f"nothing to show; leave {option[0]} out, or train a model that has attention\n"
    )


def test_a_model_without_attention_translates(blind_run):
    ran = limelight("translate", blind_run, "one", "--json")
    assert json.loads(ran.out)["weights"] is None
    assert limelight("translate", blind_run, "one").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-best", "6"], "--n-best: must be in [1, beam = 5], got 6; widen the beam with --beam"),
        (["--device", "cuda:99"], "--device: 'cuda:99' cannot be used here"),
        (["--device", "foo"], "--device: 'foo' cannot be used here"),
        (["--weights", "foo"], "--weights: must be 'best' or 'last', got 'foo'"),
        (["--picture", "a.bmp"], "--picture: must end in .png, .svg, .pdf, got a.bmp"),
        (["--picture", "no/a.png"], "--picture: cannot write no/a.png: the folder no does not exist; create it first"),
    ],
)
def test_options_that_cannot_be_are_refused(toy_run, arguments, message):
    assert message in refused("translate", toy_run, "one", *arguments)


def test_the_last_weights_can_be_asked_for(toy_run):
    assert limelight("translate", toy_run, "one", "--weights", "last").lines == ["eins"]


def test_a_closed_standard_input_is_told(toy_run, monkeypatch):
    from limelight.cli import translate

    monkeypatch.setattr(translate.sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed; give sentences after the run folder"):
        list(translate._chunks(None))


def test_a_live_writer_is_answered_at_once_and_ctrl_c_ends_it(toy_run):
    with start("translate", toy_run) as process:
        stuck = threading.Timer(60, process.kill)
        stuck.start()
        for sentence, translation in (("five", "fünf"), ("big one", "groß eins")):
            process.stdin.write(f"{sentence}\n".encode())
            process.stdin.flush()
            # UTF-8 whatever the environment says, which here is ASCII.
            assert process.stdout.readline().decode() == f"{translation}\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        stuck.cancel()
    assert (process.returncode, out, err) == (130, b"", b"limelight: stopped\n")


def test_a_reader_that_goes_is_no_error_to_speak_of(toy_run, tmp_path):
    (tmp_path / "many").write_bytes(b"big red seven\n" * 20_000)
    with open(tmp_path / "many", "rb") as many, start("translate", toy_run, "--beam", 1, stdin=many) as process:
        assert process.stdout.readline() == "groß rot sieben\n".encode()
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_a_full_disk_under_the_output_is_told(toy_run):
    with open("/dev/full", "wb") as full, start("translate", toy_run, "one", stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    said = (
        b"limelight: cannot write the output: No space left on device; free some space, then run the same command again"
    )
    assert err.strip() == said
