import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.data.corpus import Corpus, Pair, ReadReport, read_tsv
from limelight.data.split import group_by_source, normalise_sentence, split_corpus, write_split, write_tsv
from limelight.errors import ArgumentError, DataError, OutputError


def corpus_of(path, sentences, translations=3):
    with open(path, "w", encoding="utf-8") as file:
        for number in range(sentences):
            for variant in range(translations):
                end = ("", ".", " !")[variant]
                file.write(f"Sentence number {number}{end}\tsatz {number} {variant}\n")
    return Corpus(tsv=path)


def parts_of(corpus, split):
    parts = {"train": [], "dev": [], "test": []}
    for pair in corpus.pairs():
        parts[split.part(pair)].append(pair)
    return parts


def test_exact_counts_and_no_leak(tmp_path):
    corpus = corpus_of(tmp_path / "a", 101)
    split = split_corpus(corpus, dev=7, test=13, seed=5)
    assert (split.unique, split.pairs) == (101, 303)
    sentences = {
        part: {normalise_sentence(pair.source) for pair in pairs} for part, pairs in parts_of(corpus, split).items()
    }
    assert {part: len(found) for part, found in sentences.items()} == {"train": 81, "dev": 7, "test": 13}
    assert not sentences["train"] & sentences["dev"]
    assert not sentences["train"] & sentences["test"]
    assert not sentences["dev"] & sentences["test"]


def test_nothing_is_lost(tmp_path):
    corpus = corpus_of(tmp_path / "a", 31)
    split = split_corpus(corpus, dev=3, test=5, seed=1)
    assert {part: len(pairs) for part, pairs in parts_of(corpus, split).items()} == {"train": 69, "dev": 9, "test": 15}


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_lines(tmp_path):
    corpus = corpus_of(tmp_path / "a", 101)
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    (tmp_path / "b").write_text("".join(lines))
    first = split_corpus(corpus, dev=7, test=13, seed=5)
    assert first == split_corpus(Corpus(tsv=tmp_path / "b"), dev=7, test=13, seed=5)
    assert first.test != split_corpus(corpus, dev=7, test=13, seed=6).test


@pytest.mark.parametrize(
    "variant",
    [
        "hello world",
        "Hello World",
        "Hello  world!",
        "¡Hello world!",
        "Ｈｅｌｌｏ world …",
        '"Hello world."',
        "hello world?!",
    ],
)
def test_near_identical_sentences_are_one(variant):
    assert normalise_sentence(variant) == "hello world"


def test_different_sentences_stay_different():
    assert len({normalise_sentence(text) for text in ("?", "!", "a", "b", "it's", "its", "3.5", "35")}) == 8


@given(st.text())
def test_normalising_is_idempotent_and_never_blank_for_text(text):
    once = normalise_sentence(text)
    assert normalise_sentence(once) == once
    assert bool(once) == bool(text.split())


def test_too_small_names_counts_and_the_way_out(tmp_path):
    corpus = corpus_of(tmp_path / "a.tsv", 20)
    message = (
        r"a\.tsv is too small to split: it has 20 distinct source sentences in 60 pairs, and 7 for dev \+ 13 for test "
        r"\+ at least 1 .*--dev N --test N.*--dev-file"
    )
    with pytest.raises(DataError, match=message):
        split_corpus(corpus, dev=7, test=13, seed=1)
    assert len(split_corpus(corpus, dev=6, test=13, seed=1).test) == 13


def test_negative_numbers_are_refused(tmp_path):
    for arguments in (
        {"dev": -1, "test": 2, "seed": 1},
        {"dev": 1, "test": -2, "seed": 1},
        {"dev": 1, "test": 2, "seed": -1},
    ):
        with pytest.raises(ArgumentError, match=r"must be 0 or more, got -"):
            split_corpus(corpus_of(tmp_path / "a", 11), **arguments)


def test_the_report_counts_what_was_skipped(tmp_path):
    corpus_of(tmp_path / "a", 11)
    with open(tmp_path / "a", "a") as file:
        file.write("no tab\n")
    report = ReadReport()
    split_corpus(Corpus(tsv=tmp_path / "a"), dev=1, test=1, seed=1, report=report)
    assert report.counts == {"no tab": 1}


def test_written_parts_hold_every_pair_once(tmp_path):
    corpus = corpus_of(tmp_path / "a", 31)
    split = split_corpus(corpus, dev=0, test=5, seed=1)
    (tmp_path / "out").mkdir()
    assert write_split(corpus, split, tmp_path / "out") == {"train": 78, "dev": 0, "test": 15}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.tsv", "train.tsv"]
    written = [
        (pair.source, pair.target) for part in ("train", "test") for pair in read_tsv(tmp_path / "out" / f"{part}.tsv")
    ]
    assert sorted(written) == sorted((pair.source, pair.target) for pair in corpus.pairs())


def test_a_failure_while_writing_parts_leaves_no_file(tmp_path):
    corpus = corpus_of(tmp_path / "a", 31)
    split = split_corpus(corpus, dev=2, test=5, seed=1)
    with open(tmp_path / "b.gz", "wb") as file:
        file.write(gzip.compress((tmp_path / "a").read_bytes())[:-9])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="damaged"):
        write_split(Corpus(tsv=tmp_path / "b.gz"), split, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_write_tsv_comes_back_plain_and_gzip(tmp_path):
    pairs = [Pair("a  b\tc", "d\ne"), Pair("é", "ñ")]
    for name in ("x.tsv", "x.tsv.gz"):
        assert write_tsv(tmp_path / name, pairs) == 2
        found = [(pair.source, pair.target) for pair in read_tsv(tmp_path / name)]
        assert found == [("a b c", "d e"), ("é", "ñ")]
    again = (tmp_path / "x.tsv.gz").read_bytes()
    write_tsv(tmp_path / "x.tsv.gz", pairs)
    assert (tmp_path / "x.tsv.gz").read_bytes() == again
    with pytest.raises(OutputError, match="does not exist"):
        write_tsv(tmp_path / "no" / "x.tsv", pairs)


def test_translations_are_grouped_by_source():
    pairs = [Pair("a", "1"), Pair("b", "2"), Pair("a", "3"), Pair("a", "1")]
    assert group_by_source(pairs) == {"a": ["1", "3"], "b": ["2"]}
