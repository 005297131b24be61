import json

import pytest
import torch
from tests.support.models import NAMES, make

from limelight.errors import ArgumentError
from limelight.models import (
    Seq2Seq,
    Seq2SeqConfig,
    Transformer,
    TransformerConfig,
    build_model,
    describe_model,
    model_config,
)

V = {"source_vocabulary": 19, "target_vocabulary": 23}


@pytest.mark.parametrize("name", NAMES)
def test_a_description_makes_the_same_model_again(name):
    config = make(name).config
    described = json.loads(json.dumps(describe_model(config)))
    again = model_config(described.pop("kind"), **described)
    assert again == config
    assert {n: p.shape for n, p in build_model(again).named_parameters()} == {
        n: p.shape for n, p in make(name).named_parameters()
    }


def test_kinds():
    assert isinstance(build_model(Seq2SeqConfig(**V, hidden=7)), Seq2Seq)
    assert isinstance(build_model(TransformerConfig(**V, width=12, heads=3)), Transformer)
    assert describe_model(Seq2SeqConfig(**V))["kind"] == "rnn"
    assert describe_model(TransformerConfig(**V))["kind"] == "transformer"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("rnn", {"hidden": 0}, "hidden: must be a whole number of at least 1, got 0"),
        ("rnn", {"embedding": 2.5}, "embedding: must be a whole number of at least 1, got 2.5"),
        ("rnn", {"layers": True}, "layers: must be a whole number of at least 1, got True"),
        ("rnn", {"source_vocabulary": -3}, "source_vocabulary: must be a whole number of at least 1, got -3"),
        ("rnn", {"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0; take 0 for none"),
        ("rnn", {"dropout": "much"}, r"dropout: must be in \[0, 1\), got 'much'"),
        ("rnn", {"pad": 19}, "pad: must be a token of both vocabularies, got 19"),
        ("rnn", {"cell": "rnn"}, "cell: must be 'gru' or 'lstm', got 'rnn'"),
        ("rnn", {"attention": "luong"}, "attention: must be one of bahdanau, coverage, dot, .*, got 'luong'"),
        ("rnn", {"window": 0}, "window: must be a whole number of at least 1, got 0"),
        ("rnn", {"input_feeding": True, "attention": "coverage"}, "belongs to Luong attention"),
        ("rnn", {"input_feeding": True}, "belongs to Luong attention, got attention='bahdanau'; take 'dot'"),
        ("rnn", {"input_feeding": True, "attention": "none"}, "belongs to Luong attention, got attention='none'"),
        ("rnn", {"shared_embeddings": True}, "needs one vocabulary for both sides, got 19 and 23 tokens"),
        ("rnn", {"heads": 3}, "a configuration of kind 'rnn' does not take these fields: .*heads"),
        ("transformer", {"heads": 0}, "heads: must be a whole number of at least 1, got 0"),
        ("transformer", {"decoder_layers": 0}, "decoder_layers: must be a whole number of at least 1, got 0"),
        (
            "transformer",
            {"width": 15, "heads": 3},
            "width: must be even and a multiple of heads, got 15 and 3 heads; take width=18",
        ),
        (
            "transformer",
            {"width": 32, "heads": 3},
            "width: must be even and a multiple of heads, got 32 and 3 heads; take width=36",
        ),
        ("transformer", {"norm": "none"}, "norm: must be 'pre' or 'post', got 'none'"),
        ("transformer", {"alignment_layer": 3}, r"must name one of the 3 decoder layers, in \[-3, 2\], got 3"),
        ("transformer", {"alignment_layer": -4}, r"must name one of the 3 decoder layers, in \[-3, 2\], got -4"),
        ("transformer", {"shared_embeddings": True}, "needs one vocabulary for both sides, got 19 and 23 tokens"),
        ("transformer", {"dropout": -0.1}, r"dropout: must be in \[0, 1\), got -0.1"),
        ("gpt", {}, "model: must be one of rnn, transformer, got 'gpt'"),
    ],
)
def test_mistakes_in_a_configuration(kind, fields, message):
    with pytest.raises(ArgumentError, match=message):
        model_config(kind, **V | fields)


def test_what_is_tied_is_one_tensor():
    rnn = build_model(Seq2SeqConfig(**V, embedding=5, hidden=7, tied_output=True))
    assert rnn.output.weight is rnn.target_embedding.weight
    assert rnn.to_output.weight.shape == (5, 7)
    shared = build_model(TransformerConfig(23, 23, width=12, heads=3, shared_embeddings=True))
    assert shared.output.weight is shared.target_embedding.weight is shared.source_embedding.weight
    apart = build_model(TransformerConfig(23, 23, width=12, heads=3, tied_output=False))
    assert (
        len({id(w) for w in (apart.output.weight, apart.target_embedding.weight, apart.source_embedding.weight)}) == 3
    )


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
def test_padding_has_no_embedding(kind):
    sizes = {"embedding": 5, "hidden": 7} if kind == "rnn" else {"width": 12, "heads": 3}
    model = build_model(model_config(kind, **V, pad=3, **sizes))
    for table in (model.source_embedding, model.target_embedding):
        assert not table.weight[3].any()
        assert table.weight[2].any()


def test_the_alignment_layer_is_the_one_named():
    def weights(layer):
        torch.manual_seed(53)
        model = build_model(TransformerConfig(**V, width=12, heads=3, decoder_layers=3, alignment_layer=layer)).eval()
        return model(torch.tensor([[4, 5, 2]]), torch.tensor([3]), torch.tensor([[1, 7]]), observe=True).weights

    assert torch.equal(weights(-1), weights(2))
    assert torch.equal(weights(-3), weights(0))
    assert not torch.allclose(weights(0), weights(2))
