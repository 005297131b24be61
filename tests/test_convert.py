import copy

import pytest
import torch
from tests.support.tolerance import assert_near
from torch import nn
from torch.nn.utils import parametrize

from limelight import convert, watch
from limelight.errors import ArgumentError
from limelight.layers import MultiHeadAttention

TERMS = 2000  # a few layers with layer norms between
OPTIONS = {"batch_first": True, "dropout": 0.0, "dtype": torch.float64}


def encoder(**options):
    layer = nn.TransformerEncoderLayer(16, 4, 32, **{**OPTIONS, **options})
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=options.get("batch_first", True))


def both(model):
    return model, convert(copy.deepcopy(model), say=None)


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_computes_the_same(training, norm_first, batch_first):
    theirs, ours = both(encoder(norm_first=norm_first, batch_first=batch_first).train(training))
    x = numbers(2, 7, 16) if batch_first else numbers(7, 2, 16)
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    kept = ~padding if batch_first else ~padding.T
    for arguments in ({}, {"src_key_padding_mask": padding}, {"mask": causal}, {"mask": causal, "is_causal": True}):
        # Without a graph evaluation takes torch's fast paths, with nested tensors for padding.
        for tracked in (True, False):
            with torch.set_grad_enabled(tracked):
                assert_near(ours(x, **arguments)[kept], theirs(x, **arguments)[kept], torch.float64, TERMS)


def test_a_whole_transformer_computes_the_same_and_learns_the_same():
    theirs, ours = both(nn.Transformer(16, 4, 2, 2, 32, **OPTIONS))
    source, target = numbers(2, 7, 16), numbers(2, 5, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    padding = torch.zeros(2, 7, dtype=torch.float64)
    padding[1, 4:] = -torch.inf
    arguments = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": padding}
    arguments["src_key_padding_mask"] = padding
    outputs = [model(source, target, **arguments) for model in (theirs, ours)]
    assert_near(outputs[1], outputs[0], torch.float64, TERMS)
    for output in outputs:
        output.sin().sum().backward()
    for (name, one), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert_near(other.grad, one.grad, torch.float64, 20 * TERMS, name)


def test_the_fast_path_does_not_go_past_us():
    model = convert(encoder().eval(), say=None)
    x = numbers(2, 7, 16)
    with torch.no_grad(), watch(model) as seen:
        model(x, src_key_padding_mask=torch.tensor([[False] * 7, [False] * 5 + [True] * 2]))
    assert set(seen) == {"layers.0.self_attn", "layers.1.self_attn"}
    called = []
    for layer in model.layers:
        layer.self_attn._project = lambda *x, own=layer.self_attn._project: called.append(1) or own(*x)
    with torch.no_grad():
        model(x)
    assert len(called) == 2


def test_layers_stay_what_they_are():
    layer = nn.MultiheadAttention(16, 4, dtype=torch.bfloat16)
    model = nn.ModuleDict({"one": layer, "again": layer, "other": nn.MultiheadAttention(16, 4)}).eval()
    model["other"].in_proj_weight = layer.in_proj_weight
    heard = []
    layer.register_forward_hook(lambda *_: heard.append(1))
    before = dict(model.named_parameters(remove_duplicate=False))
    assert convert(model, say=None) is model
    assert model["one"] is model["again"] is layer
    assert isinstance(layer, MultiHeadAttention)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is one for name, one in before.items())
    assert after["one.in_proj_weight"] is after["other.in_proj_weight"]
    assert not layer.training
    x = torch.randn(5, 2, 16, dtype=torch.bfloat16)
    layer(x, x, x)
    assert heard == [1]


def test_a_single_layer_is_a_model():
    layer = convert(nn.MultiheadAttention(16, 4), say=None)
    assert type(layer) is MultiHeadAttention


class Named(nn.MultiheadAttention):
    def own(self):
        return "own"


class Other(nn.MultiheadAttention):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options)


def test_subclasses():
    lines = []
    model = nn.ModuleList([Named(16, 4), Other(16, 4), nn.MultiheadAttention(16, 4)])
    convert(model, say=lines.append)
    assert isinstance(model[0], MultiHeadAttention)
    assert isinstance(model[0], Named)
    assert model[0].own() == "own"
    assert type(model[1]) is Other
    assert lines == [
        "limelight.convert: 2 layers now attend with limelight: 0, 2; "
        "left alone, as their forward is their own: 1 (Other)"
    ]


def test_a_parametrized_layer():
    layer = nn.MultiheadAttention(16, 4, dtype=torch.float64)
    parametrize.register_parametrization(layer, "in_proj_weight", nn.Tanh())
    x = numbers(5, 2, 16)
    expected = layer(x, x, x)[0]
    assert_near(convert(layer, say=None)(x, x, x)[0], expected, torch.float64, TERMS)


def test_it_says_what_it_did(capsys):
    model = nn.Transformer(16, 4, 2, 2, 32, batch_first=True)
    convert(model)
    assert capsys.readouterr().out == (
        "limelight.convert: 6 layers now attend with limelight: encoder.layers.0.self_attn, "
        "encoder.layers.1.self_attn, decoder.layers.0.self_attn, decoder.layers.0.multihead_attn and 2 more\n"
    )
    convert(model)
    assert capsys.readouterr().out == ("limelight.convert: 0 layers now attend with limelight; 6 layers did already\n")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear has none that can be swapped. What calls"),
        (
            nn.Sequential(Other(16, 4)),
            "has none that can be swapped; left alone, as their forward is their own: 0 .Other",
        ),
        (3, "model must be a torch.nn.Module; it is int"),
    ],
)
def test_nothing_to_convert_is_an_error(model, message):
    with pytest.raises(ArgumentError, match=message):
        convert(model)
