import io
import os

import pytest

from limelight.cli.reading import MOST, sentences
from limelight.errors import DataError


def read_pipe(*writes):
    """What comes out after each write to a pipe, and at its end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file:
        chunks = sentences(file)
        found = []
        for data in writes:
            os.write(writing, data)
            if data.endswith(b"\n"):
                found.append(next(chunks))
        os.close(writing)
        return found, list(chunks)


def test_each_write_of_whole_lines_is_handed_on_at_once():
    assert read_pipe(b"one\n", b"two\r\nthree\n") == ([["one"], ["two", "three"]], [])


def test_a_part_of_a_line_waits_for_its_rest():
    assert read_pipe(b"on", b"e\n", b"tw") == ([["one"]], [["tw"]])
    assert read_pipe(b"\n") == ([[""]], [])


@pytest.mark.parametrize("count", [MOST - 1, MOST, 2 * MOST + 7])
def test_a_file_is_cut_into_lists_of_limited_length(tmp_path, count):
    (tmp_path / "a").write_text("".join(f"{n}\n" for n in range(count)))
    with open(tmp_path / "a", "rb") as file:
        chunks = list(sentences(file))
    assert [text for chunk in chunks for text in chunk] == [str(n) for n in range(count)]
    assert all(0 < len(chunk) <= MOST for chunk in chunks)
    with open(tmp_path / "a", "rb") as file:
        assert chunks[0][:7] == next(sentences(io.BytesIO(file.read())))[:7]


def test_a_line_longer_than_a_block(tmp_path):
    (tmp_path / "a").write_bytes(b"w" * 200_003 + b"\nx")
    with open(tmp_path / "a", "rb") as file:
        assert list(sentences(file)) == [["w" * 200_003, "x"]]


def test_lines_that_are_not_text_are_told_and_read_as_far_as_they_can(capsys):
    text = b"\xef\xbb\xbffirst\n\xe2\x82 half\nnul\0here\n\xef\xbf\xbd real\n"
    assert list(sentences(io.BytesIO(text))) == [["first", " half", "nul here", "\ufffd real"]]
    assert capsys.readouterr().err == "limelight: line 2: invalid UTF-8; what cannot be read is left out\n"


class Folder:
    """Python opens no folder, but a shell does: `limelight translate run < .`."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def fileno(self):
        return self.descriptor


def test_a_folder_as_standard_input(tmp_path):
    folder = Folder(tmp_path)
    with pytest.raises(DataError, match="standard input cannot be read: Is a directory; give sentences"):
        list(sentences(folder))
    os.close(folder.descriptor)
