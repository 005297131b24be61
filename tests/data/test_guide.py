"""Word links that attention learns from: in step with their pairs, whatever is skipped, split or cut into tokens."""

import gzip

import numpy as np
import pytest

from limelight.data import Batches, Corpus, EncodedCorpus, Tokenizer, split_corpus, write_split
from limelight.data.guide import spread
from limelight.data.tokenization import SPECIALS
from limelight.errors import DataError
from limelight.evaluation.alignment import word_weights

PAIRS = [("a b c", "x y z"), ("b a", "y x"), ("c", "z"), ("c a b", "z x y"), ("a", "x")]
LINKS = ["0-0 1-1 2-2", "0-0 1-1", "0-0", "2-2 0-0", ""]
CHARS = Tokenizer("char", [*SPECIALS, " ", *"abcxyz"])


def write(folder, pairs=PAIRS, links=LINKS, name="links"):
    tsv = folder / "c.tsv"
    tsv.write_text("".join(f"{s}\t{t}\n" for s, t in pairs), encoding="utf-8")
    path = folder / name
    data = "".join(f"{line}\n" for line in links).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return Corpus(tsv=tsv, links=path)


def test_shares_by_hand():
    # Target token 0 belongs to a word without links, tokens 1 and 2 to one with two.
    shares = spread([(2, 1), (0, 1)], [0, 0, 1, 2], [0, 1, 1, -1])
    assert shares == [(s, t, share) for t in (1, 2) for s, share in ((0, 0.25), (1, 0.25), (3, 0.5))]
    matrix = np.zeros((4, 4))
    for source, target, share in shares:
        matrix[target, source] = share
    assert word_weights(matrix, [0, 0, 1, 2], [0, 1, 1, -1]).tolist() == [[0, 0, 0], [0.5, 0, 0.5]]
    # A word that has no token cannot be attended to: the other has it all.
    assert spread([(0, 0), (1, 0)], [1], [0]) == [(0, 0, 1.0)]


@pytest.mark.parametrize("name", ["links", "links.gz"])
def test_links_stay_with_their_pairs_when_lines_are_skipped(tmp_path, name):
    pairs = [PAIRS[0], ("only one side", ""), PAIRS[1], ("a " * 300, "x"), PAIRS[2]]
    corpus = write(tmp_path, pairs, [LINKS[0], "9-9", LINKS[1], "0-0 299-0", LINKS[2]], name)
    found = {pair.line: pair.links for pair in corpus.pairs()}
    assert found == {1: {(0, 0), (1, 1), (2, 2)}, 3: {(0, 0), (1, 1)}, 5: {(0, 0)}}


def test_possible_links_are_not_learned(tmp_path):
    assert [pair.links for pair in write(tmp_path, PAIRS[:1], ["0-0 1?1 2p2"]).pairs()] == [{(0, 0)}]


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (
            [*LINKS[:3], "2-3", ""],
            r"links, line 4: the link 2-3 names target word 3, but that sentence has 3 words, num",
        ),
        ([*LINKS[:3], "3-0", ""], r"links, line 4: the link 3-0 names source word 3, .* from 0 to 2; words are what"),
        ([*LINKS[:3], "2-", ""], r"links, line 4: '2-' is not an alignment link; write numbers i-j"),
        (LINKS[:4], r"links has 4 lines of links and .*c.tsv has 5 lines; line i of one must belong to line i"),
        ([*LINKS, "", "0-0"], r"links has 7 lines of links and .*c.tsv has 5 lines"),
        (LINKS[:1], r"links has 1 lines of links and .*c.tsv has 5 lines"),
        ([], r"links is empty; expected a line of links for each pair"),
    ],
)
def test_links_that_cannot_be_right_are_told(tmp_path, links, message):
    with pytest.raises(DataError, match=message):
        list(write(tmp_path, links=links).pairs())


def test_files_of_links_that_are_none_are_told(tmp_path):
    corpus = write(tmp_path)
    assert corpus.links is not None
    corpus.links.write_bytes(b"0-0\n\xff\n")
    with pytest.raises(DataError, match="links, line 2: is not text"):
        list(corpus.pairs())
    corpus.links.unlink()
    with pytest.raises(DataError, match="links does not exist; check the name"):
        list(corpus.pairs())


def test_each_part_of_a_split_has_its_links(tmp_path):
    corpus = write(tmp_path)
    write_split(corpus, split_corpus(corpus, dev=1, test=1, seed=3), tmp_path)
    expected = {(pair.source, pair.target): pair.links for pair in corpus.pairs()}
    found = {}
    for part in ("train", "dev", "test"):
        written = Corpus(tsv=tmp_path / f"{part}.tsv", links=tmp_path / f"{part}.links")
        found |= {(pair.source, pair.target): pair.links for pair in written.pairs()}
    assert found == expected


def test_batches_have_the_links_of_their_rows(tmp_path):
    pairs = [("ab c", "x yz"), ("c", "z"), ("a bc", "xyz")]
    corpus = write(tmp_path, pairs, ["0-0 1-1", "", "1-0"])
    encoded = EncodedCorpus.build(tmp_path / "enc", corpus.pairs(), CHARS, CHARS, max_tokens=9, guided=True)
    batch = Batches(encoded, seed=1).batch(np.array([2, 1, 0]))
    assert batch.links is not None
    assert batch.shares is not None
    found = [(*link, share) for link, share in zip(batch.links.tolist(), batch.shares.tolist(), strict=True)]
    # a, space, b, c and x, y, z; a, b, space, c and x, space, y, z.
    first = [(0, t, s, 0.5) for t in range(3) for s in (2, 3)]
    last = [(2, 0, 0, 0.5), (2, 0, 1, 0.5), (2, 2, 3, 1.0), (2, 3, 3, 1.0)]
    assert found == first + last
    assert Batches(encoded, seed=1).batch(np.array([1])).links is None
    moved = batch.to("cpu")
    assert moved.links is not None
    assert moved.links.tolist() == batch.links.tolist()


def test_a_pair_that_is_too_long_takes_its_links_along(tmp_path):
    corpus = write(tmp_path, [("a b", "x"), ("abc", "x"), ("c", "z")], ["1-0", "0-0", "0-0"])
    encoded = EncodedCorpus.build(tmp_path / "enc", corpus.pairs(), CHARS, CHARS, max_tokens=2, guided=True)
    assert (len(encoded), encoded.skipped) == (1, 2)
    assert encoded.links is not None
    assert encoded.links.offsets.tolist() == [0, 1]
    plain = EncodedCorpus.build(tmp_path / "plain", corpus.pairs(), CHARS, CHARS, max_tokens=2)
    assert plain.links is None
    assert encoded.checksum.startswith(plain.checksum)
    assert encoded.checksum != plain.checksum
