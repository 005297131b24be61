"""What is exported gives in onnxruntime what torch gives, at lengths and with padding that export has not seen."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from limelight.layers import BahdanauAttention, GroupedQueryAttention, LuongAttention, MultiHeadAttention
from limelight.masks import causal, lengths

NEAR = {"rtol": 0.0, "atol": 2e-5}


def run(path, *tensors):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(one) for one in session.run(None, feed)]


class Grouped(nn.Module):
    """Masked self-attention with fewer key heads."""

    def __init__(self):
        super().__init__()
        self.layer = GroupedQueryAttention(12, 4, key_value_heads=2)

    def forward(self, x, counts):
        return self.layer(x, *self.layer.keys_values(x), causal() & lengths(counts), observe=True)


class Memory(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, state, memory, counts):
        return self.layer(state, self.layer.keys(memory), memory, lengths(counts), observe=True)


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = MultiHeadAttention(12, 3, batch_first=True)

    def forward(self, x, memory, ignored):
        return self.layer(x, memory, memory, key_padding_mask=ignored)


def inputs_of(kind, batch, rows, columns):
    state, memory = torch.randn(batch, rows, 12), torch.randn(batch, columns, 12)
    counts = torch.arange(batch) % columns + 1
    if kind == "multihead":
        return state, memory, torch.arange(columns) >= counts[:, None]
    return (state, counts % rows + 1) if kind == "grouped" else (state, memory, counts)


LAYERS = {
    "multihead": MultiHead,
    "grouped": Grouped,
    "bahdanau": lambda: Memory(BahdanauAttention(12, 12, 8)),
    "luong": lambda: Memory(LuongAttention("general", 12, 12)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_layers_need_no_help(kind, tmp_path):
    torch.manual_seed(7)
    model = LAYERS[kind]().eval()
    here, there = inputs_of(kind, 2, 4, 5), inputs_of(kind, 3, 7, 6)
    names = {2: "batch", 4: "rows", 5: "columns"}
    axes = tuple({axis: names[n] for axis, n in enumerate(x.shape) if n in names} for x in here)
    program = torch.onnx.export(model, here, dynamic_shapes=axes, dynamo=True, verbose=False)
    program.save(str(tmp_path / "layer.onnx"))
    assert {node.domain for node in onnx.load(tmp_path / "layer.onnx").graph.node} == {""}
    for inputs in (here, there, inputs_of(kind, 1, 1, 1)):
        with torch.no_grad():
            for have, want in zip(run(tmp_path / "layer.onnx", *inputs), model(*inputs), strict=True):
                torch.testing.assert_close(have, want, **NEAR)
