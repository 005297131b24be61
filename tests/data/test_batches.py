import numpy as np
import pytest
import torch

from limelight.data.batches import Batches, collate, padding_share
from limelight.data.corpus import Pair
from limelight.data.dataset import EncodedCorpus
from limelight.data.tokenization import SPECIALS, Tokenizer
from limelight.errors import ArgumentError

TOKENIZER = Tokenizer("word", [*SPECIALS, *(f"▁w{number}" for number in range(97))])


def corpus_of(folder, lengths, seed=11):
    random = np.random.default_rng(seed)

    def words(count):
        return " ".join(f"w{number}" for number in random.integers(0, 97, count))

    pairs = (Pair(words(source), words(target)) for source, target in lengths)
    return EncodedCorpus.build(folder, pairs, TOKENIZER, TOKENIZER, max_tokens=1000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    random = np.random.default_rng(3)
    source = random.integers(1, 30, 2503)
    target = np.clip(source + random.integers(-3, 4, 2503), 1, None)
    return corpus_of(tmp_path_factory.mktemp("corpus") / "enc", zip(source, target, strict=True))


def same(one, two):
    names = ("source", "source_lengths", "target", "target_lengths", "indices")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def test_a_batch_by_hand(tmp_path):
    corpus = corpus_of(tmp_path / "enc", [(3, 1), (1, 2), (2, 5)])
    a, b, x, y, z = *corpus.source(2).tolist(), *corpus.target(0).tolist(), *corpus.target(1).tolist()
    batch = Batches(corpus, seed=1).batch(np.array([2, 0]))
    assert batch.source.tolist() == [[a, b, 2, 0], [*corpus.source(0).tolist(), 2]]
    assert batch.source_lengths.tolist() == [3, 4]
    assert batch.target.tolist() == [[1, *corpus.target(2).tolist(), 2], [1, x, 2, 0, 0, 0, 0]]
    assert batch.target_lengths.tolist() == [6, 2]
    assert batch.indices.tolist() == [2, 0]
    assert (batch.source_tokens, batch.target_tokens, len(batch)) == (7, 8, 2)
    last = Batches(corpus, seed=1).batch(np.array([1]))
    assert last.target.tolist() == [[1, y, z, 2]]
    assert {tensor.dtype for tensor in (batch.source, batch.source_lengths, batch.target, batch.target_lengths)} == {
        torch.int64
    }


def test_every_pair_is_in_one_batch_and_holds_its_tokens(corpus):
    seen = []
    for batch in Batches(corpus, max_tokens=311, seed=1, pool=7).epoch(0):
        seen += batch.indices.tolist()
        for row, index in enumerate(batch.indices.tolist()):
            source, target = corpus.source(index).tolist(), corpus.target(index).tolist()
            assert batch.source[row, : batch.source_lengths[row]].tolist() == [*source, 2]
            assert batch.target[row, : batch.target_lengths[row] + 1].tolist() == [1, *target, 2]
            assert not batch.source[row, batch.source_lengths[row] :].any()
            assert not batch.target[row, batch.target_lengths[row] + 1 :].any()
    assert sorted(seen) == list(range(2503))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("pool", [1, 5, 1000])
@pytest.mark.parametrize("max_tokens", [1, 29, 311, 10**9])
def test_batches_are_full_and_not_over_full(corpus, max_tokens, pool, shuffle):
    batches = Batches(corpus, max_tokens=max_tokens, seed=1, pool=pool, shuffle=shuffle)
    plan = batches.plan(3)
    assert sorted(np.concatenate(plan).tolist()) == list(range(2503))
    widths = np.maximum(corpus.source_lengths, corpus.target_lengths) + 1
    for indices in plan:
        assert len(indices) == 1 or len(indices) * widths[indices].max() <= max_tokens
    if max_tokens == 311 and pool == 1000:
        assert np.mean([len(indices) * widths[indices].max() for indices in plan]) > 0.9 * 311
    if max_tokens == 10**9:
        assert len(plan) == 1


def test_the_limit_itself_is_allowed(tmp_path):
    # 5 words and eos: 7 rows of 6 are exactly 42.
    corpus = corpus_of(tmp_path / "enc", [(5, 5)] * 21)
    assert [len(indices) for indices in Batches(corpus, max_tokens=42, seed=1).plan(0)] == [7, 7, 7]
    assert sorted(len(indices) for indices in Batches(corpus, max_tokens=41, seed=1).plan(0)) == [3, 6, 6, 6]


def test_one_longer_sentence_is_a_batch_of_its_own(tmp_path):
    corpus = corpus_of(tmp_path / "enc", [(1, 1), (1, 700), (700, 1), (1, 1), (2, 2)])
    plan = Batches(corpus, max_tokens=13, seed=1, pool=2).plan(0)
    assert sorted(sorted(indices.tolist()) for indices in plan if 1 in indices or 2 in indices) == [[1], [2]]
    assert sorted(np.concatenate(plan).tolist()) == [0, 1, 2, 3, 4]


def test_epochs_and_seeds_differ_and_repeat(corpus):
    def plan(seed, epoch):
        return [indices.tolist() for indices in Batches(corpus, max_tokens=311, seed=seed).plan(epoch)]

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 1)
    assert plan(1, 0) != plan(2, 0)
    # [seed, epoch], not seed + epoch.
    assert plan(1, 2) != plan(2, 1)


def test_the_plan_does_not_depend_on_what_was_asked_before(corpus):
    fresh, used = Batches(corpus, max_tokens=311, seed=1), Batches(corpus, max_tokens=311, seed=1)
    used.plan(0)
    used.plan(5)
    for one, two in zip(fresh.plan(2), used.plan(2), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("start", [0, 1, 17, -1])
def test_resuming_gives_the_rest_of_the_epoch(corpus, start):
    batches = Batches(corpus, max_tokens=311, seed=1)
    start = batches.count(4) if start < 0 else start
    whole = list(batches.epoch(4))
    rest = list(Batches(corpus, max_tokens=311, seed=1).epoch(4, start=start))
    assert len(whole) == batches.count(4)
    assert len(rest) == len(whole) - start
    assert all(same(one, two) for one, two in zip(whole[start:], rest, strict=True))


def test_batches_come_in_random_order_and_mix_their_pairs(corpus):
    plan = Batches(corpus, max_tokens=311, seed=1, pool=50).plan(0)
    lengths = np.array([corpus.target_lengths[indices].mean() for indices in plan])
    assert abs(np.corrcoef(lengths, np.arange(len(plan)))[0, 1]) < 0.4
    assert max(np.abs(np.diff(np.sort(indices))).max() for indices in plan) > 100


def test_without_shuffling_every_epoch_is_the_same_and_sorted(corpus):
    batches = Batches(corpus, max_tokens=311, seed=1, shuffle=False, pool=1000)
    first, second = batches.plan(0), batches.plan(9)
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    lengths = corpus.target_lengths[np.concatenate(first)]
    assert (np.diff(lengths) >= 0).all()


def test_buckets_leave_little_padding(corpus):
    batches = Batches(corpus, max_tokens=311, seed=1)
    source, target = padding_share(batches, 0)
    real = sum(batch.target_tokens for batch in batches.epoch(0))
    padded = sum(batch.target[:, 1:].numel() for batch in batches.epoch(0))
    assert target == pytest.approx(1 - real / padded)
    assert 0 < target < 0.02
    assert target < source < 0.2
    assert padding_share(Batches(corpus, max_tokens=311, seed=1, pool=1), 0)[1] > 0.15


def test_sentences_given_as_lists():
    batch = collate([[5, 6, 7], [], [8]], [[9], [10, 11], []])
    assert batch.source.tolist() == [[5, 6, 7, 2], [2, 0, 0, 0], [8, 2, 0, 0]]
    assert batch.target.tolist() == [[1, 9, 2, 0], [1, 10, 11, 2], [1, 2, 0, 0]]
    assert batch.target_lengths.tolist() == [2, 3, 1]
    assert batch.indices.tolist() == [0, 1, 2]
    assert collate([[]], [[]]).target.tolist() == [[1, 2]]


def test_sentences_without_targets():
    batch = collate([[5, 6], [7]])
    assert batch.source.tolist() == [[5, 6, 2], [7, 2, 0]]
    assert batch.target.tolist() == [[1], [1]]
    assert (batch.target_lengths.tolist(), batch.target_tokens) == ([0, 0], 0)


def test_collate_is_the_same_as_the_corpus_gives(corpus):
    indices = np.array([7, 2502, 0, 1009])
    expected = Batches(corpus, seed=1).batch(indices)
    found = collate([corpus.source(i).tolist() for i in indices], [corpus.target(i).tolist() for i in indices])
    assert torch.equal(found.source, expected.source)
    assert torch.equal(found.target, expected.target)


def test_moving_to_a_device():
    batch = collate([[5]], [[6]])
    moved = batch.to("meta")
    assert moved.source.device.type == moved.indices.device.type == "meta"
    assert (moved.target_tokens, moved.source_tokens) == (2, 2)
    assert batch.source.device.type == "cpu"


def test_a_batch_does_not_share_memory_with_the_plan(corpus):
    batches = Batches(corpus, max_tokens=311, seed=1)
    before = batches.plan(0)[0].copy()
    next(batches.epoch(0)).indices.zero_()
    assert np.array_equal(batches.plan(0)[0], before)


def test_mistakes_in_arguments(corpus):
    for arguments, message in (
        ({"max_tokens": 0, "seed": 1}, "max_tokens must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1, "pool": 0}, "pool must be at least 1, got 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Batches(corpus, **arguments)
    batches = Batches(corpus, seed=1)
    with pytest.raises(ArgumentError, match="epoch must be 0 or more, got -1"):
        batches.plan(-1)
    count = batches.count(0)
    for start in (-1, count + 1):
        with pytest.raises(ArgumentError, match=rf"start must be in \[0, {count}\] for epoch 0, got {start}"):
            batches.epoch(0, start=start)
    with pytest.raises(ArgumentError, match="at least one sentence and as many targets, got 0 sources, no target"):
        collate([])
    with pytest.raises(ArgumentError, match="got 2 sources, 1 targets"):
        collate([[1], [2]], [[3]])
