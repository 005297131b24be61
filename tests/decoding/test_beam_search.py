from dataclasses import replace

import pytest
import torch
from tests.support.models import ATTENDING, NAMES, make, source_batch
from tests.support.toy import BOS, EOS, PAD, A, Toy, every_hypothesis, plain_beam_search, random_table, toy_weights

from limelight.decoding import SearchLimits, beam_search, greedy_search
from limelight.decoding.beam import length_penalty
from limelight.errors import ArgumentError

SOURCE = torch.tensor([[7, 5, 2], [9, 2, 0], [8, 2, 0], [6, 7, 2]])
COUNTS = torch.tensor([3, 2, 2, 3])
SENTENCES = [(7, 5, 2), (9, 2), (8, 2), (6, 7, 2)]
# A source of 3 tokens is given at most 5 tokens, one of 2 at most 4.
LIMITS = SearchLimits(BOS, EOS, banned=(PAD, BOS), ratio=1.0, extra=2)
REAL = SearchLimits(1, 2, banned=(0, 1, 3), ratio=1.0, extra=3)
ALPHAS = pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
SEEDS = pytest.mark.parametrize("seed", range(3))


def search(table, beam, alpha, n_best=None, **more):
    return beam_search(Toy(table), SOURCE, COUNTS, LIMITS, beam=beam, alpha=alpha, n_best=n_best or beam, **more)


@ALPHAS
@SEEDS
def test_a_beam_wide_enough_finds_what_enumeration_finds(alpha, seed):
    table = random_table(seed)
    for found, source, count in zip(search(table, 64, alpha), SENTENCES, COUNTS.tolist(), strict=True):
        expected = every_hypothesis(table, source, count + 2, alpha)
        assert len(expected) == 2 ** (count + 2) - 1
        assert [tuple(h.tokens) for h in found] == [tokens for _, _, tokens in expected]
        assert [h.score for h in found] == pytest.approx([score for score, _, _ in expected], abs=1e-5)
        assert [h.log_prob for h in found] == pytest.approx([total for _, total, _ in expected], abs=1e-5)


@ALPHAS
@SEEDS
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
def test_a_narrow_beam_is_the_plain_search(alpha, seed, beam):
    table = random_table(seed)
    for found, source, count in zip(search(table, beam, alpha), SENTENCES, COUNTS.tolist(), strict=True):
        expected = plain_beam_search(table, source, count + 2, beam, alpha)
        assert [tuple(h.tokens) for h in found] == [tokens for _, tokens in expected]
        assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_narrow_beams_do_miss_something():
    # Otherwise the two tests above would be one.
    missed = 0
    for seed in range(7):
        best = [every_hypothesis(random_table(seed), s, len(s) + 2, 0.0)[0][2] for s in SENTENCES]
        missed += [tuple(one[0].tokens) for one in search(random_table(seed), 1, 0.0)] != best
    assert missed > 0


@SEEDS
def test_the_n_best_are_sorted_and_distinct(seed):
    for found in search(random_table(seed), 5, 1.0, n_best=4):
        assert 1 <= len(found) <= 4
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.tokens) for h in found}) == len(found)
        for h in found:
            assert h.score == pytest.approx(h.log_prob / ((5 + len(h.tokens) + 1) / 6), abs=1e-6)
    best = [h[0].tokens for h in search(random_table(seed), 5, 1.0, n_best=1)]
    assert best == [h[0].tokens for h in search(random_table(seed), 5, 1.0, n_best=4)]


def test_the_length_penalty_by_hand():
    assert float(length_penalty(1, 1.0)) == 1.0
    assert float(length_penalty(7, 1.0)) == 2.0
    assert float(length_penalty(7, 0.5)) == pytest.approx(2**0.5)
    assert float(length_penalty(7, 0.0)) == 1.0
    assert length_penalty(torch.tensor([1, 13]), 1.0).tolist() == [1.0, 3.0]


def test_a_stronger_penalty_prefers_longer_sentences():
    # p(eos | nothing) = 0.5; a then eos: 0.4 · 0.9 = 0.36.
    def table(source, prefix):
        p = {(): [0, 0, 0.5, 0.4, 0.1], (A,): [0, 0, 0.9, 0.05, 0.05]}.get(prefix, [0, 0, 0.98, 0.01, 0.01])
        return (torch.tensor(p, dtype=torch.float64) + 1e-30).log()

    def best(alpha):
        return beam_search(Toy(table), SOURCE[:1], COUNTS[:1], LIMITS, beam=3, alpha=alpha)[0][0]

    assert best(0.0).tokens == []
    assert best(0.0).log_prob == pytest.approx(torch.tensor(0.5).log().item())
    # log 0.5 / 1 = -0.693 and log 0.36 / (7/6)^2 = -0.751; with alpha 3 it is -0.643.
    assert best(2.0).tokens == []
    assert best(3.0).tokens == [A]
    assert best(3.0).score == pytest.approx(torch.tensor(0.36).log().item() / (7 / 6) ** 3, abs=1e-5)


def certain(source, prefix):
    return torch.tensor([9.0, 9.0, -100.0, 1.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_sentence_that_never_ends_is_cut_at_its_limit(beam):
    endless = replace(LIMITS, banned=(PAD, BOS, EOS))
    beams = beam_search(Toy(certain), SOURCE, COUNTS, endless, beam=beam, alpha=1.0, n_best=beam)
    for found, count in zip(beams, COUNTS.tolist(), strict=True):
        assert found[0].tokens == [A] * (count + 2)
        each = torch.tensor([1.0, 0.0]).log_softmax(0)[0].item()
        assert found[0].log_prob == pytest.approx((count + 2) * each, abs=1e-5)
        assert found[0].score == pytest.approx(found[0].log_prob / ((5 + count + 2) / 6), abs=1e-5)
    for found, count in zip(greedy_search(Toy(certain), SOURCE, COUNTS, endless), COUNTS.tolist(), strict=True):
        assert found.tokens == [A] * (count + 2)


@SEEDS
def test_greedy_is_a_beam_of_one(seed):
    greedy = greedy_search(Toy(random_table(seed)), SOURCE, COUNTS, LIMITS, observe=True)
    for one, (other,) in zip(greedy, search(random_table(seed), 1, 0.0, observe=True), strict=True):
        assert one.tokens == other.tokens
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)
        assert one.score == one.log_prob
        assert torch.equal(one.weights, other.weights)


@SEEDS
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_the_neighbours_in_the_batch_do_not_matter(seed, beam):
    together = search(random_table(seed), beam, 1.0, observe=True)
    for b, count in enumerate(COUNTS.tolist()):
        (alone,) = beam_search(
            Toy(random_table(seed)),
            SOURCE[b : b + 1, :count],
            COUNTS[b : b + 1],
            LIMITS,
            beam=beam,
            n_best=beam,
            observe=True,
        )
        assert [h.tokens for h in alone] == [h.tokens for h in together[b]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[b]], abs=1e-6)
        assert all(torch.equal(x.weights, y.weights) for x, y in zip(alone, together[b], strict=True))


@SEEDS
@pytest.mark.parametrize("beam", [2, 5])
def test_weights_are_those_of_the_tokens_they_come_with(seed, beam):
    found = search(random_table(seed), beam, 1.0, observe=True)
    for source, hypotheses in zip(SENTENCES, found, strict=True):
        for h in hypotheses:
            expected = [toy_weights(source, tuple(h.tokens[:t])) for t in range(len(h.tokens))]
            assert h.weights.shape == (len(h.tokens), len(source))
            assert torch.equal(h.weights, torch.stack(expected) if expected else torch.empty(0, len(source)))


def test_an_empty_translation_has_no_rows_of_weights():
    def table(source, prefix):
        return torch.tensor([0.0, 0.0, 50.0, 1.0, 0.0], dtype=torch.float64)

    (beam, *_), *_ = search(table, 3, 1.0, observe=True)
    greedy = greedy_search(Toy(table), SOURCE, COUNTS, LIMITS, observe=True)[0]
    for found in (beam, greedy):
        assert found.tokens == []
        assert found.weights.shape == (0, 3)


def test_without_looking_there_are_no_weights():
    assert all(h.weights is None for found in search(random_table(1), 3, 1.0) for h in found)


def test_sentences_that_are_done_leave_the_batch():
    def table(source, prefix):
        # The second and third sentence end at once, the others go on as long as they may.
        return certain(source, prefix) if len(source) == 3 else torch.tensor([0.0, 0.0, 50.0, 1.0, 0.0]).double()

    model = Toy(table)
    beam_search(model, SOURCE, COUNTS, LIMITS, beam=1)
    assert model.steps == [(4, 1)] + [(2, 1)] * 4
    model = Toy(table)
    greedy_search(model, SOURCE, COUNTS, LIMITS)
    assert model.steps == [(4, 1)] + [(2, 1)] * 4


@pytest.mark.parametrize("name", NAMES)
def test_real_models_translate_alone_as_in_a_batch(name):
    model, (source, counts) = make(name), source_batch()
    greedy = greedy_search(model, source, counts, REAL)
    beams = beam_search(model, source, counts, REAL, beam=3, n_best=3)
    for b, count in enumerate(counts.tolist()):
        (alone,) = greedy_search(model, source[b : b + 1, :count], counts[b : b + 1], REAL)
        assert alone.tokens == greedy[b].tokens
        assert alone.log_prob == pytest.approx(greedy[b].log_prob, abs=1e-5)
        (alone,) = beam_search(model, source[b : b + 1, :count], counts[b : b + 1], REAL, beam=3, n_best=3)
        assert [h.tokens for h in alone] == [h.tokens for h in beams[b]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in beams[b]], abs=1e-5)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("beam", [1, 3])
def test_weights_are_those_of_forced_decoding(name, beam):
    model, (source, counts) = make(name), source_batch()
    if beam == 1:
        found = [[h] for h in greedy_search(model, source, counts, REAL, observe=True)]
    else:
        found = beam_search(model, source, counts, REAL, beam=beam, n_best=beam, observe=True)
    for b, hypotheses in enumerate(found):
        for h in hypotheses:
            read = torch.tensor([[1, *h.tokens]])
            features, weights = model(source[b : b + 1], counts[b : b + 1], read, observe=True)
            count = len(h.tokens)
            assert h.weights.dtype is torch.float32
            torch.testing.assert_close(h.weights.double(), weights[0, :count, : counts[b]], rtol=0, atol=1e-6)
            logits = model.output(features)[0].index_fill(-1, torch.tensor([0, 1, 3]), -torch.inf)
            ended = [*h.tokens, 2] if count < REAL.most(counts)[b] else h.tokens
            total = logits.log_softmax(-1)[range(len(ended)), ended].sum().item()
            assert h.log_prob == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("name", ["bahdanau", "none-2", "transformer-pre"])
def test_banned_tokens_never_come(name):
    model, (source, counts) = make(name), source_batch()
    with torch.no_grad():
        model.output.bias[[0, 1, 3, 7]] = 100.0
    limits = SearchLimits(1, 2, banned=(0, 1, 3, 7))
    found = greedy_search(model, source, counts, limits)
    found += [h for one in beam_search(model, source, counts, limits, beam=3, n_best=3) for h in one]
    for h in found:
        assert not {0, 1, 2, 3, 7} & set(h.tokens)
        assert h.tokens


def test_a_model_without_attention_has_no_weights():
    model, (source, counts) = make("none-2"), source_batch()
    assert greedy_search(model, source, counts, REAL, observe=True)[0].weights is None
    assert beam_search(model, source, counts, REAL, observe=True)[0][0].weights is None


def test_broken_weights_of_a_model_do_not_hang_the_search():
    model, (source, counts) = make("bahdanau"), source_batch()
    with torch.no_grad():
        model.output.weight.fill_(torch.nan)
    assert len(greedy_search(model, source, counts, REAL)) == 3
    assert all(found for found in beam_search(model, source, counts, REAL, beam=3))


def test_the_limits_by_hand():
    limits = SearchLimits(1, 2, ratio=1.5, extra=3)
    assert limits.most(torch.tensor([1, 2, 7])).tolist() == [4, 6, 13]
    for arguments in ({"ratio": -0.1}, {"extra": 0}):
        with pytest.raises(ArgumentError, match="a translation needs room for a token"):
            SearchLimits(1, 2, **arguments)


def test_mistakes_in_arguments():
    for arguments, message in (
        ({"beam": 0}, "beam: must be at least 1, got 0"),
        ({"beam": 3, "n_best": 4}, r"n_best: must be in \[1, beam = 3\], got 4; widen the beam"),
        ({"n_best": 0}, r"n_best: must be in \[1, beam = 5\], got 0"),
        ({"alpha": -0.5}, r"alpha: must be at least 0 \(no length penalty\), got -0.5"),
    ):
        with pytest.raises(ArgumentError, match=message):
            beam_search(Toy(random_table(0)), SOURCE, COUNTS, LIMITS, **arguments)


def test_an_empty_batch():
    nothing = torch.empty(0, 3, dtype=torch.int64)
    assert greedy_search(Toy(certain), nothing, COUNTS[:0], LIMITS) == []
    assert beam_search(Toy(certain), nothing, COUNTS[:0], LIMITS) == []
