"""What holds for every model: stepping is teacher forcing, padding changes nothing, weights are weights."""

import pytest
import torch
from tests.support.models import ATTENDING, NAMES, TARGETS, make, source_batch

from limelight.errors import ArgumentError
from limelight.models import DecodingState

T = 11
NEAR = {"rtol": 0.0, "atol": 1e-10}
EVERY = pytest.mark.parametrize("name", NAMES)
LOOKING = pytest.mark.parametrize("name", ATTENDING)


def target_tokens(rows=3):
    target = torch.randint(4, TARGETS, (rows, T), generator=torch.Generator().manual_seed(47))
    target[:, 0] = 1
    return target


@EVERY
def test_stepping_token_by_token_is_teacher_forcing(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    with torch.inference_mode():
        features, weights = model(source, counts, target, observe=True)
        expected = model.output(features)
        state = model.start(source, counts)
        assert state.position == 0
        for t in range(T):
            found, now, state = model.step(target[:, t : t + 1], state, observe=True)
            logits = model.output(found)
            assert logits.shape == (3, 1, TARGETS)
            torch.testing.assert_close(logits[:, 0], expected[:, t], **NEAR)
            if weights is not None:
                torch.testing.assert_close(now[:, 0], weights[:, t], **NEAR)
            assert state.position == t + 1
    assert (weights is None) == name.startswith("none")


@EVERY
def test_looking_changes_nothing(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    features, weights = model(source, counts, target)
    assert weights is None
    torch.testing.assert_close(features, model(source, counts, target, observe=True).features, **NEAR)
    state = model.start(source, counts)
    features, weights, _ = model.step(target[:, :1], state)
    assert weights is None
    torch.testing.assert_close(features, model.step(target[:, :1], state, observe=True)[0], **NEAR)


@EVERY
def test_a_sentence_does_not_see_its_neighbours_nor_its_padding(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    features, _ = model(source, counts, target)
    noisy = source.clone()
    noisy[source == 0] = 17
    torch.testing.assert_close(model(noisy, counts, target).features, features, **NEAR)
    for b, count in enumerate(counts.tolist()):
        alone, _ = model(source[b : b + 1, :count], counts[b : b + 1], target[b : b + 1])
        torch.testing.assert_close(alone[0], features[b], **NEAR)


@EVERY
def test_no_position_sees_a_later_target_token(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    changed = target.clone()
    changed[:, 7:] = 4 + (target[:, 7:] - 3) % (TARGETS - 4)
    before, after = model(source, counts, target).features, model(source, counts, changed).features
    torch.testing.assert_close(before[:, :7], after[:, :7], **NEAR)
    assert ((before[:, 7:] - after[:, 7:]).abs().amax(-1) > 1e-6).all()


@LOOKING
def test_weights_sum_to_one_and_are_zero_on_padding(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    weights = model(source, counts, target, observe=True).weights
    assert weights.shape == (3, T, 7)
    if name.startswith("local-p"):  # the Gaussian comes after the softmax
        assert 0 < weights.min() + weights.sum(-1).min() <= weights.sum(-1).max() < 1
    else:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, T, dtype=weights.dtype), **NEAR)
    assert not weights[:, :, :][(torch.arange(7) >= counts[:, None])[:, None].expand(3, T, 7)].any()
    # They are the weights of this sentence, not the same everywhere.
    assert weights[0].std() > 1e-3


@EVERY
def test_gradients_reach_every_weight(name):
    model, (source, counts), target = make(name).train(), source_batch(), target_tokens()
    (model.output(model(source, counts, target).features) ** 2).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@EVERY
def test_dropout_is_drawn_in_training_only(name):
    model, (source, counts), target = make(name, dropout=0.5), source_batch(), target_tokens()
    first, second = (model(source, counts, target).features for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(source, counts, target).features for _ in range(2))
    assert not torch.equal(first, second)


def advance(model, state, tokens):
    features, weights, state = model.step(torch.tensor(tokens), state, observe=True)
    return model.output(features), weights, state


@EVERY
def test_hypotheses_of_a_sentence_are_independent_and_can_be_reordered(name):
    model, (source, counts) = make(name), source_batch()
    with torch.inference_mode():
        state = advance(model, model.start(source, counts), [[1], [1], [1]])[2]
        # Two hypotheses a sentence, each going its own way; then they change places in the second sentence.
        state = state.reorder(torch.zeros(3, 2, dtype=torch.int64))
        _, _, state = advance(model, state, [[5, 6], [7, 8], [9, 10]])
        state = state.reorder(torch.tensor([[0, 1], [1, 0], [1, 1]]))
        logits, weights, state = advance(model, state, [[11, 12], [13, 14], [15, 16]])
    assert state.position == 3
    for b, k, tokens in ((0, 0, [1, 5, 11]), (0, 1, [1, 6, 12]), (1, 0, [1, 8, 13]), (1, 1, [1, 7, 14])):
        forced = model(source[b : b + 1], counts[b : b + 1], torch.tensor([tokens]), observe=True)
        torch.testing.assert_close(logits[b, k], model.output(forced.features)[0, -1], **NEAR)
        if weights is not None:
            torch.testing.assert_close(weights[b, k], forced.weights[0, -1], **NEAR)
    for k, tokens in ((0, [1, 10, 15]), (1, [1, 10, 16])):
        forced = model(source[2:], counts[2:], torch.tensor([tokens]))
        torch.testing.assert_close(logits[2, k], model.output(forced.features)[0, -1], **NEAR)


@EVERY
def test_sentences_that_stay_in_the_batch_go_on_as_before(name):
    model, (source, counts) = make(name), source_batch()
    with torch.inference_mode():
        _, _, state = advance(model, model.start(source, counts), [[1], [1], [1]])
        logits, _, _ = advance(model, state, [[5], [7], [9]])
        kept, _, after = advance(model, state.keep(torch.tensor([2, 0])), [[9], [5]])
    torch.testing.assert_close(kept, logits[[2, 0]], **NEAR)
    assert all(len(part) == 2 for part in (*after.memory, *after.beams))


def test_a_state_by_hand():
    state = DecodingState((torch.tensor([3, 5]),), (torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),), position=7)
    moved = state.reorder(torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert moved.beams[0].tolist() == [[[3, 4], [3, 4], [1, 2]], [[5, 6], [7, 8], [7, 8]]]
    kept = moved.keep(torch.tensor([1]))
    assert kept.memory[0].tolist() == [5]
    assert kept.beams[0].tolist() == [[[5, 6], [7, 8], [7, 8]]]
    assert (moved.position, kept.position) == (7, 7)
    assert state.beams[0].shape == (2, 2, 2)


@pytest.mark.parametrize("name", ["bahdanau", "general-fed-2", "transformer-pre"])
def test_weights_are_drawn_from_the_seed(name):
    one, same, other = make(name, seed=1), make(name, seed=1), make(name, seed=2)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


GUIDED = [name for name in NAMES if not name.startswith(("none", "location", "local", "coverage"))]
LINKS = torch.tensor([(0, 0, 6), (0, 0, 1), (1, 9, 1), (2, 3, 4), (2, 3, 4), (0, 10, 0)])


@pytest.mark.parametrize("name", GUIDED)
def test_log_weights_of_links_are_those_of_the_weights_with_their_gradients(name):
    model, (source, counts), target = make(name), source_batch(), target_tokens()
    features, weights = model(source, counts, target, observe=True)
    expected = weights[tuple(LINKS.T)].log()
    guided = model.guided(source, counts, target, LINKS)
    torch.testing.assert_close(guided.features, features, **NEAR)
    torch.testing.assert_close(guided.log_weights, expected, **NEAR)
    parameters = [one for one in model.parameters() if one.requires_grad]
    factors = torch.linspace(0.3, 1.7, len(LINKS), dtype=torch.float64)
    wanted = torch.autograd.grad((factors * expected).sum(), parameters, allow_unused=True)
    found = torch.autograd.grad((factors * guided.log_weights).sum(), parameters, allow_unused=True)
    assert any(one is not None and bool(one.any()) for one in wanted)
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if one is None else one.sum(), zero if other is None else other.sum(), **NEAR, check_dtype=False
        )
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, **NEAR)


def test_one_head_is_the_attention_where_the_configuration_says_so():
    model, (source, counts), target = make("transformer-one-head"), source_batch(), target_tokens()
    alone = model(source, counts, target, observe=True).weights
    mean = make("transformer-pre")
    mean.load_state_dict(model.state_dict())
    assert not torch.allclose(alone, mean(source, counts, target, observe=True).weights, atol=1e-3)


def test_without_attention_there_is_nothing_to_guide():
    model, (source, counts), target = make("none-2"), source_batch(), target_tokens()
    with pytest.raises(
        ArgumentError,
        match="links: can guide the attentions bahdanau, dot, general, concat, got a model with attention='none'",
    ):
        model.guided(source, counts, target, LINKS)
