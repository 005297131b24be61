"""Each model against its formula, written out for one sentence, or against torch's own layers with the same weights."""

import pytest
import torch
from tests.support.models import TARGETS, make, source_batch
from torch import nn

from limelight.layers import TransformerDecoderLayer, TransformerEncoderLayer, sinusoidal
from limelight.masks import lengths

NEAR = {"rtol": 0.0, "atol": 1e-10}
T = 5


def sentence(model):
    """The encoder's side of one sentence, h [S, 2 · hidden] and the summary, and the embedded target [T, E]."""
    source, counts = source_batch(counts=(7,))
    h, summary = model.encoder(model.source_embedding(source), counts)
    target = torch.randint(4, TARGETS, (1, T), generator=torch.Generator().manual_seed(67))
    return source, counts, target, h[0], summary[0], model.target_embedding(target)[0]


def cell_step(cell, x, state):
    """The GRU of Cho et al. (2014), and the LSTM with its state [h; c], both written out; gates in torch's order."""
    hidden = cell.hidden_size
    i, h = cell.weight_ih @ x + cell.bias_ih, cell.weight_hh @ state[:hidden] + cell.bias_hh
    if isinstance(cell, nn.GRUCell):
        r, z = torch.sigmoid(i[:hidden] + h[:hidden]), torch.sigmoid((i + h)[hidden : 2 * hidden])
        n = torch.tanh(i[2 * hidden :] + r * h[2 * hidden :])
        return (1 - z) * n + z * state
    gate_in, forget, new, out = (i + h).chunk(4)
    c = torch.sigmoid(forget) * state[hidden:] + torch.sigmoid(gate_in) * torch.tanh(new)
    return torch.cat([torch.sigmoid(out) * torch.tanh(c), c])


def test_bahdanau_attends_with_the_state_before():
    model = make("bahdanau")
    source, counts, target, h, summary, embedded = sentence(model)
    decoder, attention = model.decoder, model.decoder.attention
    state = torch.tanh(decoder.first_state(summary))
    expected, weights = [], []
    for y in embedded:
        energy = torch.tanh(attention.query_projection(state) + attention.memory_projection(h)) @ attention.vector
        weights.append(energy.softmax(0))
        context = weights[-1] @ h
        state = cell_step(decoder.rnn.cells[0], torch.cat([y, context]), state)
        expected.append(torch.tanh(decoder.readout(torch.cat([state, y, context]))))
    found = model(source, counts, target, observe=True)
    torch.testing.assert_close(found.features[0], torch.stack(expected), **NEAR)
    torch.testing.assert_close(found.weights[0], torch.stack(weights), **NEAR)


def test_luong_attends_with_the_state_after_and_feeds_its_output_back():
    model = make("dot-lstm-fed")
    source, counts, target, h, summary, embedded = sentence(model)
    decoder = model.decoder
    state = torch.tanh(decoder.first_state(summary))
    hidden = decoder.rnn.hidden
    fed = torch.zeros(hidden, dtype=torch.float64)
    expected, weights = [], []
    for y in embedded:
        state = cell_step(decoder.rnn.cells[0], torch.cat([y, fed]), state)
        weights.append((decoder.bridge(h) @ state[:hidden]).softmax(0))
        fed = torch.tanh(decoder.combine(torch.cat([weights[-1] @ h, state[:hidden]])))
        expected.append(fed)
    found = model(source, counts, target, observe=True)
    torch.testing.assert_close(found.features[0], torch.stack(expected), **NEAR)
    torch.testing.assert_close(found.weights[0], torch.stack(weights), **NEAR)


def test_luong_general_of_two_layers_without_input_feeding():
    model = make("general-2")
    source, counts, target, h, summary, embedded = sentence(model)
    decoder = model.decoder
    states = list(torch.tanh(decoder.first_state(summary)).chunk(2))
    expected = []
    for y in embedded:
        states[0] = cell_step(decoder.rnn.cells[0], y, states[0])
        states[1] = cell_step(decoder.rnn.cells[1], states[0], states[1])
        weights = (decoder.attention.memory_projection(h) @ states[1]).softmax(0)
        expected.append(torch.tanh(decoder.combine(torch.cat([weights @ h, states[1]]))))
    torch.testing.assert_close(model(source, counts, target).features[0], torch.stack(expected), **NEAR)


def test_without_attention_only_the_summary_is_seen():
    model = make("none-lstm")
    source, counts, target, _, summary, embedded = sentence(model)
    decoder = model.decoder
    state, expected = torch.tanh(decoder.first_state(summary)), []
    for y in embedded:
        state = cell_step(decoder.rnn.cells[0], torch.cat([y, summary]), state)
        expected.append(torch.tanh(decoder.readout(torch.cat([state[: decoder.rnn.hidden], y, summary]))))
    torch.testing.assert_close(model(source, counts, target).features[0], torch.stack(expected), **NEAR)


def test_a_tied_output_reads_features_of_the_embeddings_width():
    model = make("general-lstm-tied")
    source, counts, target, *_ = sentence(model)
    features = model(source, counts, target).features
    assert features.shape[-1] == model.target_embedding.embedding_dim
    found, _, _ = model.step(target[:, :1], model.start(source, counts))
    logits = model.output(found)
    torch.testing.assert_close(logits[0, 0], model.target_embedding.weight @ features[0, 0] + model.output.bias, **NEAR)


def copy_attention(ours, torchs):
    torchs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    torchs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    torchs.out_proj.load_state_dict(ours.output.state_dict())


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_the_blocks_are_torchs_layers(norm):
    torch.manual_seed(71)
    how = {"dropout": 0.0, "norm_first": norm == "pre", "batch_first": True, "dtype": torch.float64}
    encoder = TransformerEncoderLayer(12, 3, 17, place=norm).double()
    decoder = TransformerDecoderLayer(12, 3, 17, place=norm).double()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.copy_(torch.randn_like(parameter))
    one, other = nn.TransformerEncoderLayer(12, 3, 17, **how), nn.TransformerDecoderLayer(12, 3, 17, **how)
    copy_attention(encoder.attention, one.self_attn)
    copy_attention(decoder.self_attention, other.self_attn)
    copy_attention(decoder.cross_attention, other.multihead_attn)
    for ours, torchs in ((encoder, one), (decoder, other)):
        torchs.linear1.load_state_dict(ours.feedforward.expand.state_dict())
        torchs.linear2.load_state_dict(ours.feedforward.contract.state_dict())
    for norm_layer, residual in (
        (one.norm1, encoder.attention_residual),
        (one.norm2, encoder.feedforward_residual),
        (other.norm1, decoder.self_residual),
        (other.norm2, decoder.cross_residual),
        (other.norm3, decoder.feedforward_residual),
    ):
        norm_layer.load_state_dict(residual.norm.state_dict())
    counts = torch.tensor([7, 2, 5])
    x, memory, padding = (
        torch.randn(3, T, 12).double(),
        torch.randn(3, 7, 12).double(),
        torch.arange(7) >= counts[:, None],
    )
    found = encoder(memory, lengths(counts))
    expected = one(memory, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], **NEAR)
    found, _ = decoder(x, *decoder.cross_attention.keys_values(memory), lengths(counts))
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected = other(x, memory, tgt_mask=later, memory_key_padding_mask=padding)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("name", ["transformer-pre", "transformer-post"])
def test_what_stands_around_the_blocks(name):
    model = make(name)
    source, counts = source_batch()
    target = torch.randint(4, TARGETS, (3, T), generator=torch.Generator().manual_seed(73))
    x = model.source_embedding(source) * 12**0.5 + sinusoidal(7, 12)
    for block in model.encoder:
        x = block(x, lengths(counts))
    memory = model.encoder_norm(x)
    y = model.target_embedding(target) * 12**0.5 + sinusoidal(T, 12)
    for block in model.decoder:
        y, _ = block(y, *block.cross_attention.keys_values(memory), lengths(counts))
    expected = model.decoder_norm(y)
    torch.testing.assert_close(model(source, counts, target).features, expected, **NEAR)
    assert isinstance(model.decoder_norm, nn.LayerNorm) == (name == "transformer-pre")
