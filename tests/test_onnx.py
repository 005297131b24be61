"""What is exported gives in onnxruntime what torch gives, at lengths and with padding that export has not seen."""

import json
import os

import onnx
import onnxruntime
import pytest
import torch
from tests.support.models import NAMES, TARGETS, make, source_batch

from limelight import onnx as exporting
from limelight.errors import ArgumentError, ExportError, OutputError
from limelight.layers import MultiHeadAttention, onnx_recurrent

NEAR = {"rtol": 0.0, "atol": 2e-5}


def run(path, *tensors):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(one) for one in session.run(None, feed)]


ALWAYS = ("bahdanau-lstm-2", "dot", "concat-lstm-fed-2", "none-2", "transformer-pre")
MORE = tuple(name for name in NAMES if name not in ALWAYS)
ALL = bool(os.environ.get("LIMELIGHT_ALL_ONNX"))
SLOW = pytest.mark.skipif(not ALL, reason="takes minutes: set LIMELIGHT_ALL_ONNX=1")


@pytest.mark.parametrize("name", [*ALWAYS, *(pytest.param(name, marks=SLOW) for name in MORE)])
def test_models_decode_in_onnxruntime_as_in_torch(name, tmp_path):
    model = make(name).float()
    exporting.export(model, tmp_path)
    about = json.loads((tmp_path / "export.json").read_text())
    for file in ("encoder.onnx", "step.onnx"):
        assert {node.domain for node in onnx.load(tmp_path / file).graph.node} == {""}
    source, counts = source_batch()
    target = torch.randint(4, TARGETS, (3, 5), generator=torch.Generator().manual_seed(47))
    with torch.no_grad():
        features, weights = model(source, counts, target, observe=True)
        expected = model.output(features)
    names = about["files"]["encoder.onnx"]["outputs"]
    carried = dict(zip(names, run(tmp_path / "encoder.onnx", source, counts), strict=True))
    inputs, outputs = about["files"]["step.onnx"]["inputs"], about["files"]["step.onnx"]["outputs"]
    assert ("weights" in outputs) is (weights is not None)
    for t in range(5):
        carried["tokens"] = target[:, t : t + 1]
        found = dict(zip(outputs, run(tmp_path / "step.onnx", *(carried[one] for one in inputs)), strict=True))
        torch.testing.assert_close(found["logits"][:, 0], expected[:, t], **NEAR)
        if weights is not None:
            torch.testing.assert_close(found["weights"][:, 0], weights[:, t], **NEAR)
        carried |= {one.removeprefix("next_"): found[one] for one in outputs if one.startswith("next_")}
    if name == "dot":
        _a_wrong_export_is_noticed(model, tmp_path)


def _a_wrong_export_is_noticed(model, folder):
    """The check that `export` makes, of files that another model has left."""
    with torch.no_grad():
        model.output.bias[3] += 0.1
        with pytest.raises(ExportError, match="onnxruntime's logits differ from torch's by"):
            exporting._check(exporting._Encoder(model), exporting._Step(model, True), folder, True)


def test_what_torch_cannot_write_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise ArgumentError("x: no such operator.")

    monkeypatch.setattr(onnx_recurrent, "bidirectional", refuse)
    named = r"cannot write encoder.onnx of this model, Seq2SeqConfig\(.*attention='dot'.*\): x: no such operator"
    with pytest.raises(ExportError, match=named):
        exporting.export(make("dot"), tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ExportError, match=r"needs the packages no_such_package: pip install 'limelight\[onnx\]'"):
        exporting.export(make("dot"), tmp_path)


def test_an_export_is_not_overwritten(tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(OutputError, match="holds an export already; choose another, or overwrite it"):
        exporting.export(make("dot"), tmp_path)


def test_dropout_cannot_be_exported():
    layer = MultiHeadAttention(12, 3, dropout=0.1)
    x = torch.randn(5, 2, 12)
    with pytest.raises(ArgumentError, match=r"dropout must be 0 in what is exported; it is on. Call model.eval"):
        torch.export.export(layer, (x, x, x), {"need_weights": False}, strict=False)
