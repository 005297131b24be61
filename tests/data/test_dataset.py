import tracemalloc

import numpy as np
import pytest

from limelight.data.corpus import Pair
from limelight.data.dataset import EncodedCorpus
from limelight.data.tokenization import SPECIALS, Tokenizer, train_tokenizer
from limelight.errors import ArgumentError, DataError, OutputError, RunFolderError

PAIRS = [Pair("a b c", "x y"), Pair("b", "y y y y y"), Pair("c c", "x"), Pair("a a a a a a a", "y")]
SOURCE = train_tokenizer("word", ["a b c"], vocab_size=17)
TARGET = train_tokenizer("word", ["x y"], vocab_size=17)


@pytest.fixture
def built(tmp_path):
    return EncodedCorpus.build(tmp_path / "enc", PAIRS, SOURCE, TARGET, max_tokens=5)


def test_what_was_built_can_be_read_back(built):
    for corpus in (built, EncodedCorpus.open(built.folder, tokenizers=(SOURCE, TARGET))):
        assert len(corpus) == 3
        assert corpus.skipped == 1
        assert corpus.source_lengths.tolist() == [3, 1, 2]
        assert corpus.target_lengths.tolist() == [2, 5, 1]
        for index, pair in enumerate(PAIRS[:3]):
            assert corpus.source(index).tolist() == SOURCE.encode(pair.source)
            assert corpus.target(index).tolist() == TARGET.encode(pair.target)
    assert built.source_tokens.dtype == np.uint16


def test_the_data_is_mapped_and_not_loaded(built):
    corpus = EncodedCorpus.open(built.folder)
    assert isinstance(corpus.source_tokens.base, np.memmap)
    assert not corpus.source_tokens.flags.writeable


def test_large_vocabularies_take_wider_numbers(tmp_path):
    large = Tokenizer("word", [*SPECIALS, *(f"▁{number}" for number in range(70_000))])
    corpus = EncodedCorpus.build(tmp_path / "enc", [Pair("69999 0", "x")], large, TARGET, max_tokens=5)
    assert corpus.source_tokens.dtype == np.int32
    assert corpus.source(0).tolist() == [70_003, 4]


def test_a_build_is_the_same_each_time_and_replaces_the_old_one(built, tmp_path):
    again = EncodedCorpus.build(tmp_path / "other", iter(PAIRS), SOURCE, TARGET, max_tokens=5)
    assert again.checksum == built.checksum
    other = EncodedCorpus.build(built.folder, PAIRS[1:2], SOURCE, TARGET, max_tokens=5)
    assert (len(other), len(EncodedCorpus.open(built.folder))) == (1, 1)
    assert other.checksum != again.checksum


def test_progress_counts_pairs_over_chunks(tmp_path):
    seen = []
    pairs = (Pair("a", "x") for _ in range(20_011))
    corpus = EncodedCorpus.build(tmp_path / "enc", pairs, SOURCE, TARGET, max_tokens=5, progress=seen.append)
    assert seen == [10_000, 20_000, 20_011]
    assert len(EncodedCorpus.open(tmp_path / "enc")) == len(corpus) == 20_011
    assert corpus.target(20_010).tolist() == TARGET.encode("x")


def test_nothing_usable(tmp_path):
    with pytest.raises(DataError, match=r"none of 1 pairs is usable: .* more than 2 tokens; raise max_tokens"):
        EncodedCorpus.build(tmp_path / "enc", [Pair("a", "x x x")], SOURCE, TARGET, max_tokens=2)
    with pytest.raises(DataError, match="none of 0 pairs"):
        EncodedCorpus.build(tmp_path / "enc", [], SOURCE, TARGET, max_tokens=2)
    with pytest.raises(ArgumentError, match="max_tokens must be at least 1, got 0"):
        EncodedCorpus.build(tmp_path / "enc", PAIRS, SOURCE, TARGET, max_tokens=0)
    assert list((tmp_path / "enc").iterdir()) == []


def test_a_build_that_was_broken_off_is_not_taken_for_a_corpus(built):
    def pairs():
        yield PAIRS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EncodedCorpus.build(built.folder, pairs(), SOURCE, TARGET, max_tokens=5)
    with pytest.raises(RunFolderError, match=r"meta\.json is missing; delete the folder"):
        EncodedCorpus.open(built.folder)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write into .*file"):
        EncodedCorpus.build(tmp_path / "file", PAIRS, SOURCE, TARGET, max_tokens=5)


def test_other_tokenizers(built):
    with pytest.raises(RunFolderError, match="was made with other tokenizers"):
        EncodedCorpus.open(built.folder, tokenizers=(TARGET, SOURCE))


@pytest.mark.parametrize("name", ["source_tokens", "source_offsets", "target_tokens", "target_offsets"])
def test_a_file_that_is_missing_cut_foreign_or_changed(built, name):
    path = built.folder / f"{name}.npy"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(RunFolderError, match=rf"{name}\.npy is missing; delete the folder"):
        EncodedCorpus.open(built.folder)
    for broken, message in (
        (whole[:-1], f"has {len(whole) - 1} bytes instead of {len(whole)}"),
        (b"", "has 0 bytes instead of"),
        (whole + b"\0", f"has {len(whole) + 1} bytes instead of"),
        (b"\0" * len(whole), "cannot be read"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "was changed after it was written"),
    ):
        path.write_bytes(broken)
        with pytest.raises(RunFolderError, match=message):
            EncodedCorpus.open(built.folder)


def test_pickled_or_other_arrays_of_the_same_size_are_refused(built):
    path = built.folder / "source_tokens.npy"
    size = path.stat().st_size
    np.save(path, np.zeros(6, dtype=np.int16))
    assert path.stat().st_size == size
    with pytest.raises(RunFolderError, match=r"holds int16\[6\]"):
        EncodedCorpus.open(built.folder)


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    def peak(count):
        pairs = (Pair("a b c " * 7, "x y " * 11) for _ in range(count))
        tracemalloc.start()
        try:
            corpus = EncodedCorpus.build(tmp_path / str(count), pairs, SOURCE, TARGET, max_tokens=50)
            EncodedCorpus.open(corpus.folder)
            return tracemalloc.get_traced_memory()[1], len(corpus.source_tokens) + len(corpus.target_tokens)
        finally:
            tracemalloc.stop()

    monkeypatch.setattr("limelight.data.dataset.CHUNK", 100)
    (small, _), (large, tokens) = peak(1_000), peak(11_000)
    assert tokens == 11_000 * 43
    # 10,000 more pairs: their lengths are held (8 bytes a pair, twice for a moment), their 860 kB of tokens are not.
    assert large - small < 10_000 * 24
