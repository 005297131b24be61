"""What training reads: the parts of the corpus, the vocabularies, and how the same data is found again."""

import shutil

import numpy as np
import pytest

from limelight.data import Corpus
from limelight.data.split import normalise_sentence
from limelight.errors import DataError, RunFolderError
from limelight.files import file_checksum
from limelight.run_folder import RunFolder
from limelight.training import DataConfig
from limelight.training.prepare import prepare, read_dev, reopen

WORDS = DataConfig(loose_ends=0, tokens="word", dev=3, test=2)
HAND = [("Hello!", "¡Hola!"), ("good day", "buen día"), ("...", "Eh."), ("Why?", "¿?"), ("Yes.", "sí")]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run").create()


def corpus_of(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return Corpus(tsv=path)


def numbered(count):
    """Each sentence comes three times, with different ends and cases, and another translation each time."""
    ends = ("{}", "{} .", "{} !")
    return [(end.format(f"Number n{i}"), f"zahl z{i} {v}") for i in range(count) for v, end in enumerate(ends)]


def prepared(run, corpus, config=WORDS, dev=None, seed=1):
    said: list[str] = []
    return prepare(run, corpus, dev, config, seed, said.append), said


def rows_of(run, part):
    lines = (run.data / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


def learned(data):
    """The encoded pairs, as text again."""
    sides = (data.corpus.source, data.source_tokenizer), (data.corpus.target, data.target_tokenizer)
    return [tuple(tokens.decode(side(i).tolist()) for side, tokens in sides) for i in range(len(data.corpus))]


def test_a_sentence_with_all_its_translations_lies_in_one_part(run, tmp_path):
    pairs = numbered(17)
    data, said = prepared(run, corpus_of(tmp_path / "c.tsv", pairs))
    parts = {part: rows_of(run, part) for part in ("train", "dev", "test")}
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 36, "dev": 9, "test": 6}
    assert sorted(row for rows in parts.values() for row in rows) == sorted(pairs)
    sentences = [{normalise_sentence(source) for source, _ in rows} for rows in parts.values()]
    assert sum(map(len, sentences)) == len(set.union(*sentences)) == 17
    assert (data.dev, learned(data)) == (parts["dev"], parts["train"])
    assert "51 pairs of 17 source sentences; 36 train, 9 dev, 6 test" in said


def test_what_is_held_out_is_not_in_the_vocabulary(run, tmp_path):
    data, _ = prepared(run, corpus_of(tmp_path / "c.tsv", numbered(17)))
    shown = [{word for row in rows_of(run, "train") for word in row[side].split()} for side in (0, 1)]
    for source, target in data.dev:
        for tokens, word, known in ((data.source_tokenizer, source.split()[1], shown[0]),
                                    (data.target_tokenizer, target.split()[1], shown[1])):  # fmt: skip
            assert word not in known
            assert tokens.unk in tokens.encode(word)


def test_the_seed_decides_the_parts(tmp_path):
    corpus = corpus_of(tmp_path / "c.tsv", numbered(17))
    runs = [RunFolder(tmp_path / name).create() for name in ("one", "same", "other")]
    dev = [prepared(run, corpus, seed=seed)[0].dev for run, seed in zip(runs, (5, 5, 6), strict=True)]
    assert dev[0] == dev[1] != dev[2]


def test_a_dev_file_leaves_the_corpus_whole(run, tmp_path):
    pairs, own = numbered(5), [("Number n1", "zahl z1"), ("quite new", "ganz neu")]
    data, said = prepared(run, corpus_of(tmp_path / "c.tsv", pairs), dev=corpus_of(tmp_path / "d.tsv", own))
    assert (rows_of(run, "train"), data.dev) == (pairs, own)
    assert not (run.data / "test.tsv").exists()
    assert "15 training pairs, 2 dev pairs" in said


def test_no_test_part_where_none_is_wanted(run, tmp_path):
    _, said = prepared(run, corpus_of(tmp_path / "c.tsv", numbered(7)), DataConfig(tokens="word", dev=3, test=0))
    assert not (run.data / "test.tsv").exists()
    assert "21 pairs of 7 source sentences; 12 train, 9 dev" in said


HAND_LONGER = ("Come in now!", "¡Pasa!")


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (0, {}),
        # "good day" has no ends to lose, "..." nothing else, and "¿?" of a pair nothing but ends.
        (2, {0: ("Hello", "Hola"), 4: ("Yes", "sí")}),
        (3, {0: ("Hello", "Hola"), 4: ("Yes", "sí"), 5: ("Come in now", "Pasa")}),
    ],
)
def test_loose_ends_by_hand(run, tmp_path, words, more):
    config = DataConfig(tokens="char", loose_ends=words)
    pairs = [*HAND, HAND_LONGER]
    corpus = corpus_of(tmp_path / "c.tsv", pairs)
    data, _ = prepared(run, corpus, config, dev=corpus)
    expected = []
    for place, pair in enumerate(pairs):
        expected += [pair, more[place]] if place in more else [pair]
    assert learned(data) == expected
    assert data.corpus.skipped == 0
    # Only what is learned from has them: the files, and what is validated on, are as they were.
    assert rows_of(run, "train") == rows_of(run, "dev") == data.dev == pairs


def test_two_vocabularies_or_a_joint_one(tmp_path):
    corpus = corpus_of(tmp_path / "c.tsv", [("a b", "c b"), ("b", "d")])
    runs = RunFolder(tmp_path / "two").create(), RunFolder(tmp_path / "joint").create()
    two, _ = prepared(runs[0], corpus, DataConfig(tokens="word"), dev=corpus)
    joint, said = prepared(runs[1], corpus, DataConfig(tokens="word", joint=True), dev=corpus)

    def words(tokenizer):
        return {tokenizer.decode([index]) for index in range(4, len(tokenizer))}

    assert (words(two.source_tokenizer), words(two.target_tokenizer)) == ({"a", "b"}, {"c", "b", "d"})
    assert joint.source_tokenizer == joint.target_tokenizer
    assert words(joint.source_tokenizer) == {"a", "b", "c", "d"}
    assert "vocabularies: 8 source and 8 target word tokens" in said
    assert learned(two) == learned(joint) == rows_of(runs[0], "train")
    assert runs[1].tokenizer("source").read_bytes() == runs[1].tokenizer("target").read_bytes()


def test_lower_case_is_the_tokenizers_and_the_files_are_as_they_were(run, tmp_path):
    corpus = corpus_of(tmp_path / "c.tsv", [("Ärger A", "Über Ω"), ("ärger a", "über ω")])
    data, _ = prepared(run, corpus, DataConfig(tokens="word", lowercase=True), dev=corpus)
    assert learned(data) == [("ärger a", "über ω")] * 2
    assert len(data.source_tokenizer) == len(data.target_tokenizer) == 4 + 2
    assert data.dev == [("Ärger A", "Über Ω"), ("ärger a", "über ω")]


def test_lines_that_are_skipped_are_told(run, tmp_path):
    path, dev = tmp_path / "c.tsv", tmp_path / "d.tsv"
    path.write_text("a\tb\nno tab\nc\td\n\n\te\na b c d\tf\n", encoding="utf-8")
    dev.write_text("g\th\ni\tj\tk\n", encoding="utf-8")
    data, said = prepared(run, Corpus(tsv=path, max_words=3), DataConfig(tokens="word"), dev=Corpus(tsv=dev))
    assert rows_of(run, "train") == [("a", "b"), ("c", "d")]
    assert data.dev == [("g", "h")]
    assert said[0] == f"reading {path}"
    assert said[2:4] == [
        "4 of 6 lines skipped: 1 without a tab (line 2), 1 blank (line 4), 1 with a blank source (line 5), "
        "1 with more than 3 words or 2000 characters (line 6)",
        "1 of 2 lines skipped: 1 with too many tabs (line 2)",
    ]


def test_sentences_of_too_many_tokens_are_left_out_and_counted(run, tmp_path):
    corpus = corpus_of(tmp_path / "c.tsv", [("abcd", "x"), ("abcde", "y"), ("z", "vwxyz"), ("a", "b")])
    data, said = prepared(run, corpus, DataConfig(tokens="char", max_tokens=4), dev=corpus)
    assert learned(data) == [("abcd", "x"), ("a", "b")]
    assert said[-1] == "2 training pairs are longer than 4 tokens and were left out"


def test_what_was_long_when_it_was_written_is_read_again(run, tmp_path):
    # The limits of the corpus were the caller's; what is kept must not be judged a second time by others.
    long = ("a " * 300).strip(), ("b " * 300).strip()
    config = DataConfig(tokens="word", max_tokens=301)
    corpus = Corpus(tsv=corpus_of(tmp_path / "c.tsv", [long]).tsv, max_words=300)
    data, _ = prepared(run, corpus, config, dev=corpus)
    assert data.dev == learned(data) == [long]
    assert reopen(run, config).dev == [long]


@pytest.mark.parametrize("encoded", ["kept", "removed"])
def test_a_resumed_run_finds_the_same_data(run, tmp_path, encoded):
    config = DataConfig(tokens="bpe", vocabulary=40, dev=3, test=2, lowercase=True, loose_ends=3, max_tokens=17)
    data, _ = prepared(run, corpus_of(tmp_path / "c.tsv", numbered(17)), config)
    assert len(data.corpus) + data.corpus.skipped > 36
    (tmp_path / "c.tsv").unlink()
    if encoded == "removed":
        shutil.rmtree(run.data / "train")
    again = reopen(run, config, file_checksum(run.data / "dev.tsv"))
    assert again.dev == data.dev
    assert (again.source_tokenizer, again.target_tokenizer) == (data.source_tokenizer, data.target_tokenizer)
    assert again.corpus.checksum == data.corpus.checksum
    for name in ("source_tokens", "source_offsets", "target_tokens", "target_offsets"):
        assert np.array_equal(getattr(again.corpus, name), getattr(data.corpus, name))


def test_a_dev_part_with_other_pairs_is_refused(run, tmp_path):
    prepared(run, corpus_of(tmp_path / "c.tsv", numbered(17)))
    dev = run.data / "dev.tsv"
    checksum = file_checksum(dev)
    assert read_dev(run, checksum) == rows_of(run, "dev")
    dev.write_text("something\telse\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"dev\.tsv was changed after it was written \(the checksum differs\); "):
        read_dev(run, checksum)
    # Without a checksum only what is no pair is noticed.
    assert read_dev(run) == [("something", "else")]
    dev.write_text("something\telse\nno tab\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"dev\.tsv was changed after it was written: 1 of 2 lines skipped"):
        read_dev(run)


def test_files_that_are_gone_or_of_other_tokenizers(run, tmp_path):
    data, _ = prepared(run, corpus_of(tmp_path / "c.tsv", numbered(17)))
    data.source_tokenizer.save(run.tokenizer("target"))
    with pytest.raises(RunFolderError, match="was made with other tokenizers"):
        reopen(run, WORDS)
    data.target_tokenizer.save(run.tokenizer("target"))
    (run.data / "dev.tsv").unlink()
    with pytest.raises(RunFolderError, match=r"dev\.tsv does not exist.*train again"):
        reopen(run, WORDS, "a checksum")


def test_a_corpus_that_is_too_small_is_told(run, tmp_path):
    with pytest.raises(DataError, match="has 5 distinct source sentences in 15 pairs, and 3 for dev"):
        prepared(run, corpus_of(tmp_path / "c.tsv", numbered(5)))
    assert not list(run.data.iterdir())
