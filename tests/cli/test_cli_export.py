from tests.support.command import limelight


def test_export_writes_a_folder_once(toy_run, tmp_path):
    out = tmp_path / "onnx"
    ran = limelight("export", toy_run, out)
    assert ran.code == 0, ran.err
    files = {"encoder.onnx", "export.json", "source.tokenizer.json", "step.onnx", "target.tokenizer.json"}
    assert {path.name for path in out.iterdir()} == files
    assert set(ran.lines) == {str(out / name) for name in files}
    again = limelight("export", toy_run, out)
    assert again.code == 2
    assert "holds an export already; choose another, or overwrite it (--overwrite)" in again.err
