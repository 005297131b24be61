import gzip
import os
import tracemalloc

import pytest

from limelight.data.corpus import Corpus, Pair, ReadReport, read_parallel, read_tsv
from limelight.errors import ArgumentError, DataError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(pairs):
    return [(pair.source, pair.target) for pair in pairs]


def test_tsv_is_stripped_with_single_spaces_and_line_numbers(tmp_path):
    path = write(tmp_path / "a.tsv", "\ufeff Go.\tVe.\r\n\u00a0Hi  there \t ¡Hola   ahí!\nlast\túltima")
    assert list(read_tsv(path)) == [
        Pair("Go.", "Ve.", 1),
        Pair("Hi there", "¡Hola ahí!", 2),
        Pair("last", "última", 3),
    ]


def test_gzip_is_recognised_with_and_without_the_suffix(tmp_path):
    data = gzip.compress(b"a\tb\n")
    assert texts(read_tsv(write(tmp_path / "a.tsv.gz", data))) == [("a", "b")]
    assert texts(read_tsv(write(tmp_path / "a.tsv", data))) == [("a", "b")]


def test_an_attribution_is_ignored_and_any_other_third_field_is_not(tmp_path):
    path = write(
        tmp_path / "a", "Go.\tVe.\tCC-BY 2.0 (France) Attribution: tatoeba.org #1\nGo.\tVaya.\tother\na\tb\t\n"
    )
    report = ReadReport()
    assert texts(read_tsv(path, report)) == [("Go.", "Ve.")]
    assert report.counts == {"too many tabs": 2}


def test_what_cannot_be_used_is_skipped_counted_and_summed_up(tmp_path):
    lines = [
        b"one\tuno",
        b"no tab",
        b"a\tb\tc",
        b"\tblank source",
        b"blank target\t  ",
        b"   ",
        b"caf\xe9\tcaf\xc3\xa9",
        b"nul\0\tbyte",
        b" ".join([b"w"] * 251) + b"\tlong",
        b"long\t" + b"c" * 2001,
        b"big\t" + b"x" * (1 << 20),
        b" ".join([b"w"] * 250) + b"\tjust right",
        b"two\tdos",
    ]
    report = ReadReport()
    pairs = list(read_tsv(write(tmp_path / "a", b"\n".join(lines)), report))
    assert [pair.line for pair in pairs] == [1, 12, 13]
    assert report.counts == {
        "no tab": 1,
        "too many tabs": 1,
        "blank source": 1,
        "blank target": 1,
        "blank line": 1,
        "invalid UTF-8": 1,
        "NUL byte": 1,
        "too long": 2,
        "not text": 1,
    }
    assert (report.lines, report.skipped, report.kept) == (13, 10, 3)
    assert report.summary() == (
        "10 of 13 lines skipped: 1 without a tab (line 2), 1 with too many tabs (line 3), "
        "1 with a blank source (line 4), 1 with a blank target (line 5), 1 blank (line 6), "
        "1 with invalid UTF-8 (line 7), 1 with a NUL byte (line 8), "
        "2 with more than 250 words or 2000 characters (lines 9, 10), 1 of more than 1 MiB (line 11)"
    )


def test_summary_shows_the_first_five_lines_of_a_reason(tmp_path):
    report = ReadReport()
    list(read_tsv(write(tmp_path / "a", "a\tb\n" + "x\n" * 7), report))
    assert report.summary() == "7 of 8 lines skipped: 7 without a tab (lines 2, 3, 4, 5, 6, ...)"
    assert ReadReport(lines=3).summary() == "3 lines read, none skipped"


def test_limits_can_be_set(tmp_path):
    path = write(tmp_path / "a", "a b c\td\nlonger\te\nf\tg\n")
    assert texts(Corpus(tsv=path, max_words=2, max_characters=5).pairs()) == [("f", "g")]
    with pytest.raises(ArgumentError, match="max_words must be at least 1, got 0"):
        Corpus(tsv=path, max_words=0)


def test_parallel_files_are_read_side_by_side(tmp_path):
    source = write(tmp_path / "a.en", "\ufeffone\ttab\n\nthree\nfour\n\n")
    target = write(tmp_path / "a.es.gz", gzip.compress(b"uno\r\ndos\r\n\r\ncuatro\r\n\r\n"))
    report = ReadReport()
    assert list(read_parallel(source, target, report)) == [Pair("one tab", "uno", 1), Pair("four", "cuatro", 4)]
    assert report.counts == {"blank source": 1, "blank target": 1, "blank line": 1}


def test_parallel_lines_that_are_broken_on_one_side_are_skipped(tmp_path):
    source = write(tmp_path / "a.en", b"one\ntw\0o\nthree\nfour\n")
    target = write(tmp_path / "a.es", b"uno\ndos\ntr\xe9s\n" + b"x" * (3 << 20) + b"\n")
    report = ReadReport()
    assert texts(read_parallel(source, target, report)) == [("one", "uno")]
    assert report.counts == {"NUL byte": 1, "invalid UTF-8": 1, "not text": 1}
    assert report.lines == 4


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    source = write(tmp_path / "a.en", "one\u2028still one\x85\x0bone\ntwo\n")
    target = write(tmp_path / "a.es", "uno\ndos\n")
    assert texts(read_parallel(source, target)) == [("one still one one", "uno"), ("two", "dos")]


@pytest.mark.parametrize("swap", [False, True])
def test_files_of_different_length_name_both_and_their_lengths(tmp_path, swap):
    source = write(tmp_path / "a.en", "x\n" * 3)
    target = write(tmp_path / "a.es", "y\n" * 7)
    message = r"a\.es has 7 lines and .*a\.en has 3" if swap else r"a\.en has 3 lines and .*a\.es has 7; line i"
    with pytest.raises(DataError, match=message):
        list(read_parallel(target, source) if swap else read_parallel(source, target))


def test_a_file_that_is_no_corpus_says_what_to_do(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "plain.gz", "a\tb\n")
    write(tmp_path / "empty", "")
    write(tmp_path / "empty.gz", gzip.compress(b""))
    write(tmp_path / "utf16", "a\tb\n".encode("utf-16"))
    write(tmp_path / "x.zip", b"PK\x03\x04....")
    write(tmp_path / "notabs", "a\nb\nc\n")
    for name, message in (
        ("missing", "missing does not exist; check the name"),
        ("folder", "folder is a folder; name a file in it"),
        ("pipe", "pipe is not a regular file"),
        ("plain.gz", "ends in .gz but is not gzip; rename it"),
        ("empty", "empty is empty; expected UTF-8 text"),
        ("empty.gz", "has no usable pair: 0 lines read"),
        ("utf16", "is UTF-16, not UTF-8; convert it: iconv"),
        ("x.zip", "is a zip archive; unpack it"),
        ("notabs", r"has no usable pair: 3 of 3 lines skipped: 3 without a tab \(lines 1, 2, 3\); expected"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_tsv(tmp_path / name))


def test_damaged_gzip_is_an_error_and_not_a_shorter_corpus(tmp_path):
    data = gzip.compress("".join(f"{i * 7919}\tb\n" for i in range(5000)).encode())
    for broken in (data[:-5000], data[:300] + bytes(200) + data[500:], data[:-8] + b"\1" * 8):
        with pytest.raises(DataError, match=r"a\.gz, after line \d+: the gzip data is damaged"):
            list(read_tsv(write(tmp_path / "a.gz", broken)))


def test_no_permission(tmp_path, monkeypatch):
    path = write(tmp_path / "a", "a\tb\n")

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied", str(path))

    # Root may read everything, so that taking the permission away would not do.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"a, after line 0: cannot be read: Permission denied"):
        list(read_tsv(path))


def test_a_corpus_is_given_in_one_way(tmp_path):
    for paths in ({}, {"tsv": "a", "source": "b", "target": "c"}, {"source": "b"}, {"tsv": "a", "target": "c"}):
        with pytest.raises(ArgumentError, match="either one tsv file or a source and a target file"):
            Corpus(**paths)
    assert str(Corpus(source="a.en", target="a.es")) == "a.en and a.es"


def test_a_corpus_can_be_read_again(tmp_path):
    corpus = Corpus(tsv=write(tmp_path / "a", "a\tb\n"))
    assert texts(corpus.pairs()) == texts(corpus.pairs()) == [("a", "b")]


def test_reading_holds_lines_and_not_the_corpus(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as file:
        for number in range(20_000):
            file.write(b"%d " % number + b"word " * 20 + b"\t" + b"wort " * 20 + b"\n")
        # One line of 40 MB.
        for _ in range(40):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_tsv(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
