import json

import pytest
from tests.support.command import limelight, refused


def test_the_demo_leaves_a_run_a_report_and_a_picture(tmp_path):
    out = tmp_path / "demo"
    ran = limelight("demo", "--to", "fr", "--size", 1000, "--epochs", 2, "--out", out)
    assert ran.code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["test_phrases"] == 50
    for name in ("exact_match", "aer", "alignment_precision", "alignment_recall"):
        assert 0 <= report[name] <= 1
    for name in ("bleu", "chrf"):
        assert 0 <= report[name] <= 100
        assert "version:" in report[f"{name}_signature"]
    assert report["train_seconds"] > 0
    assert report["parameters"] > 100_000
    assert {"torch", "limelight", "python"} <= set(report["versions"])
    assert isinstance(report["command"], list)
    assert f"AER {report['aer']:.3f}   (50 held-out phrases" in ran.out
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")
    test, links = ((out / "data" / name).read_text().splitlines() for name in ("test.tsv", "test.align"))
    assert len(test) == len(links) == 50
    assert f"wrote {out / 'report.json'} and {out / 'attention.png'}" in ran.err
    # The folder is a run like any other, and the test part can be scored again.
    found = limelight(
        "evaluate", out, out / "data" / "test.tsv", "--gold", out / "data" / "test.align", "--json", "--beam", 1
    )
    found = json.loads(found.out)
    assert found["bleu"] == pytest.approx(report["bleu"], abs=1e-3)
    assert found["aer"]["aer"] == pytest.approx(report["aer"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "xx"], "--to: 'xx' is not a locale that the babel package carries"),
        (["--to", "german"], "close matches: de"),
        (["--from", "xx"], "--from: 'xx' is not a locale"),
        (["--to", "en"], "--to: must differ from --from, got 'en' for both"),
        (["--to", "de", "--from", "DE"], "--to: must differ from --from"),
    ],
)
def test_what_cannot_be_generated_is_refused(tmp_path, arguments, message):
    assert message in refused("demo", *arguments, "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_exists_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.data.phrases.generate", None)
    (tmp_path / "mine.txt").touch()
    said = refused("demo", "--out", tmp_path)
    assert said == (
        f"limelight: --out: {tmp_path} exists and is not empty; replace it (--overwrite) or choose another (--out)\n"
    )


def test_ctrl_c_says_what_to_do(tmp_path, monkeypatch):
    from limelight.training.loop import Trainer

    monkeypatch.setattr(Trainer, "train", lambda trainer: trainer.progress)
    ran = limelight("demo", "--size", 1000, "--out", tmp_path / "demo")
    assert ran.code == 130
    assert "stopped; start again with --overwrite" in ran.err
    (tmp_path / "demo" / "report.json").write_text("stale")
    again = limelight("demo", "--size", 1000, "--out", tmp_path / "demo", "--overwrite")
    assert again.code == 130
    assert not (tmp_path / "demo" / "report.json").exists()
