import gzip
import random
import tracemalloc

import pytest
from tests.support.corpora import write_reversal

from limelight.data import Corpus
from limelight.errors import DataError, RunFolderError
from limelight.run_folder import RunFolder
from limelight.training.config import DataConfig
from limelight.training.prepare import prepare, read_dev, reopen


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def ready(run, corpus, dev=None, **settings):
    told = []
    config = DataConfig(**{"tokens": "word", "dev": 7, "test": 5} | settings)
    return prepare(run, corpus, dev, config, 1, told.append), told


def test_what_comes_out(run, tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 83)
    with corpus.open("a") as file:
        file.write("no tab\na\tb\tc\td\n")
    prepared, told = ready(run, Corpus(tsv=corpus))
    assert len(prepared.corpus) == len(lines_of(run.data / "train.tsv"))
    assert [f"{source}\t{target}" for source, target in prepared.dev] == lines_of(run.data / "dev.tsv")
    # Seven sentences to validate on, with all their translations.
    assert len({source for source, _ in prepared.dev}) == 7
    assert len({line.split("\t")[0] for line in lines_of(run.data / "test.tsv")}) == 5
    assert told[0] == f"reading {corpus}"
    assert told[1].startswith("83 pairs of ")
    assert told[2] == "2 of 85 lines skipped: 1 without a tab (line 84), 1 with too many tabs (line 85)"
    assert told[3] == "vocabularies: 15 source and 15 target word tokens"
    # The tokens are those of the training part.
    line = lines_of(run.data / "train.tsv")[0].split("\t")
    assert prepared.source_tokenizer.decode(prepared.corpus.source(0)) == line[0]
    assert prepared.target_tokenizer.decode(prepared.corpus.target(0)) == line[1]


def test_it_can_be_reopened(run, tmp_path):
    prepared, _ = ready(run, Corpus(tsv=write_reversal(tmp_path / "c.tsv", 83)))
    again = reopen(run, DataConfig(tokens="word"))
    assert again.corpus.checksum == prepared.corpus.checksum
    assert again.dev == prepared.dev
    assert (again.source_tokenizer, again.target_tokenizer) == (prepared.source_tokenizer, prepared.target_tokenizer)


def test_the_seed_and_not_the_order_of_lines_decides_the_split(tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 83)
    shuffled = lines_of(corpus)
    random.Random(1).shuffle(shuffled)
    (tmp_path / "s.tsv").write_text("\n".join(shuffled) + "\n")
    parts = []
    for name in ("c", "s"):
        folder = RunFolder(tmp_path / f"run-{name}")
        folder.create()
        ready(folder, Corpus(tsv=tmp_path / f"{name}.tsv"))
        parts.append(sorted(lines_of(folder.data / "dev.tsv")))
    assert parts[0] == parts[1]


def test_a_dev_corpus_leaves_the_training_corpus_whole(run, tmp_path):
    dev = write_reversal(tmp_path / "dev.tsv", 11, seed=2)
    with dev.open("a") as file:
        file.write("no tab\n")
    prepared, told = ready(run, Corpus(tsv=write_reversal(tmp_path / "c.tsv", 83)), Corpus(tsv=dev))
    assert (len(prepared.corpus), len(prepared.dev)) == (83, 11)
    assert told[1:3] == ["83 training pairs, 11 dev pairs", "1 of 12 lines skipped: 1 without a tab (line 12)"]
    assert not (run.data / "test.tsv").exists()


def test_one_vocabulary_for_both_sides(run, tmp_path):
    rows = [f"a{n} b{n}\tx{n} y{n}\n" for n in range(23)]
    (tmp_path / "c.tsv").write_text("".join(rows))
    prepared, _ = ready(run, Corpus(tsv=tmp_path / "c.tsv"), joint=True)
    assert prepared.source_tokenizer is prepared.target_tokenizer
    trained = len(lines_of(run.data / "train.tsv"))
    assert len(prepared.source_tokenizer) == 4 + 4 * trained
    assert reopen(run, DataConfig(joint=True)).target_tokenizer == prepared.source_tokenizer


def test_too_many_tokens_are_left_out_and_told(run, tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 83)
    prepared, told = ready(run, Corpus(tsv=corpus), max_tokens=4)
    long = sum(len(line.split("\t")[0].split()) > 4 for line in lines_of(run.data / "train.tsv"))
    assert long > 5
    assert len(prepared.corpus) == len(lines_of(run.data / "train.tsv")) - long
    assert told[-1] == f"{long} training pairs are longer than 4 tokens and were left out"


def test_long_dev_sentences_that_were_allowed_stay(run, tmp_path):
    dev = tmp_path / "dev.tsv"
    dev.write_text("\t".join([" ".join(["a"] * 503)] * 2) + "\na\tb\n")
    corpus = Corpus(tsv=write_reversal(tmp_path / "c.tsv", 83))
    prepared, _ = ready(run, corpus, Corpus(tsv=dev, max_words=600))
    assert len(prepared.dev) == 2
    assert len(reopen(run, DataConfig()).dev) == 2


def test_loose_ends_by_hand(run, tmp_path):
    rows = ["Hello!\t¡Hola!", "Why?\t¿Por qué?", "!\t!", "Yes\tSí", "No.\tNo"]
    (tmp_path / "c.tsv").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    corpus = Corpus(tsv=tmp_path / "c.tsv")
    prepared, _ = ready(run, corpus, corpus, loose_ends=1.0)
    tokenizers = prepared.source_tokenizer, prepared.target_tokenizer
    pairs = [
        (tokenizers[0].decode(prepared.corpus.source(i)), tokenizers[1].decode(prepared.corpus.target(i)))
        for i in range(len(prepared.corpus))
    ]
    assert pairs == [
        ("Hello!", "¡Hola!"), ("Hello", "Hola"), ("Why?", "¿Por qué?"), ("Why", "Por qué"), ("!", "!"), ("Yes", "Sí"),
        ("No.", "No"), ("No", "No"),
    ]  # fmt: skip


def test_a_share_of_loose_ends(run, tmp_path):
    (tmp_path / "c.tsv").write_text("".join(f"a{n}!\tb{n}!\n" for n in range(1009)))
    corpus = Corpus(tsv=tmp_path / "c.tsv")
    prepared, _ = ready(run, corpus, corpus, loose_ends=0.3)
    # Five standard deviations of a binomial count.
    assert abs(len(prepared.corpus) - 1009 * 1.3) < 5 * (1009 * 0.3 * 0.7) ** 0.5


def test_a_damaged_dev_part(run, tmp_path):
    ready(run, Corpus(tsv=write_reversal(tmp_path / "c.tsv", 83)))
    with (run.data / "dev.tsv").open("a") as file:
        file.write("no tab\n")
    with pytest.raises(RunFolderError, match=r"dev\.tsv was changed after it was written: 1 of .* train again"):
        read_dev(run)
    (run.data / "dev.tsv").unlink()
    with pytest.raises(RunFolderError, match=r"dev\.tsv does not exist.*train again"):
        read_dev(run)


def test_nothing_that_can_be_used(run, tmp_path):
    (tmp_path / "c.tsv").write_text("no tab\n" * 7)
    with pytest.raises(DataError, match=r"c\.tsv has no usable pair: 7 of 7 lines skipped"):
        ready(run, Corpus(tsv=tmp_path / "c.tsv"))


@pytest.mark.parametrize("tokens", ["char", "word", "bpe"])
def test_a_corpus_larger_than_memory_is_streamed(run, tmp_path, tokens):
    # 30,000 pairs of 260 bytes and 400 words: what grows with the pairs is 8 bytes each, and blocks of 10,000 are held.
    words = [f"word{n}" for n in range(400)]
    chosen, size = random.Random(3), 0
    with gzip.open(tmp_path / "c.tsv.gz", "wb", compresslevel=1) as file:
        for number in range(30_000):
            row = f"{number} {' '.join(chosen.choices(words, k=17))}\t{' '.join(chosen.choices(words, k=17))}\n"
            size += len(row)
            file.write(row.encode())
    corpus = Corpus(tsv=tmp_path / "c.tsv.gz")
    peaks = []
    for part in ("half", "whole"):
        folder = RunFolder(tmp_path / part)
        folder.create()
        tracemalloc.start()
        if part == "half":
            source = tmp_path / "half.tsv"
            with gzip.open(tmp_path / "c.tsv.gz", "rb") as whole, source.open("wb") as file:
                for _, line in zip(range(15_000), whole, strict=False):
                    file.write(line)
            ready(folder, Corpus(tsv=source), tokens=tokens, vocabulary=500)
        else:
            ready(folder, corpus, tokens=tokens, vocabulary=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert size > 7_000_000
    assert peaks[1] - peaks[0] < size / 4
