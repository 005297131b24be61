import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.data.tokenization import SPECIALS, Tokenizer, train_tokenizer
from limelight.errors import ArgumentError, DataError, RunFolderError

KINDS = ("char", "word", "bpe")
LINES = [
    "¿Cómo estás? Estoy bien, gracias.",
    "How are you? I'm fine, thanks!",
    "Don't pay 1990 euros (or 23:45) - it's a_b.",
    "the cat sat on the mat; the cat sat on the hat",
    "Straße, façade, naïve, señor, ПРИВЕТ, привет",
]
ALPHABET = sorted({char for line in LINES for char in line} | {"\t", "\u00a0"})
WORDS = sorted({word for line in LINES for word in line.split()})
TRAINED = {
    (kind, low): train_tokenizer(kind, LINES, vocab_size=211, lowercase=low) for kind in KINDS for low in (False, True)
}
each = pytest.mark.parametrize("kind", KINDS)


def normalised(text, lowercase):
    text = " ".join(text.split())
    return unicodedata.normalize("NFC", text.lower() if lowercase else text)


def visible(tokenizer, text):
    return [tokenizer.pieces[index] for index in tokenizer.encode(text)]


@given(st.text(ALPHABET), st.sampled_from(["char", "bpe"]), st.booleans())
def test_round_trip_over_the_alphabet(text, kind, lowercase):
    tokenizer = TRAINED[kind, lowercase]
    assert tokenizer.decode(tokenizer.encode(text)) == normalised(text, lowercase) == tokenizer.normalise(text)


@given(st.lists(st.sampled_from(WORDS)), st.booleans())
def test_round_trip_over_words(words, lowercase):
    tokenizer = TRAINED["word", lowercase]
    text = "  ".join(words)
    assert tokenizer.decode(tokenizer.encode(text)) == normalised(text, lowercase) == tokenizer.normalise(text)


@given(st.text(st.characters()), st.sampled_from(KINDS), st.booleans())
def test_any_text_at_all_is_tokenised_consistently(text, kind, lowercase):
    tokenizer = TRAINED[kind, lowercase]
    ids = tokenizer.encode(text)
    found = tokenizer.analyse(text)
    assert tokenizer.encode_batch([text, "a", text]) == [ids, tokenizer.encode("a"), ids]
    assert tokenizer.analyse_batch([text, "a b"]) == [found, tokenizer.analyse("a b")]
    assert found.ids == ids
    assert len(found.tokens) == len(found.words) == len(found.unknown) == len(ids)
    assert all(index >= tokenizer.unk for index in ids)
    assert bool(ids) == bool(text.split())
    assert all(found.tokens)
    # Every word of the text has a token, in order.
    words = [word for word in found.words if word >= 0]
    assert words == sorted(words)
    assert set(words) == set(range(len(text.split())))
    assert tokenizer.normalise(tokenizer.normalise(text)) == tokenizer.normalise(text)


@given(st.lists(st.integers(0, 150)), st.sampled_from(KINDS))
def test_words_of_any_ids_are_those_of_the_decoded_text(ids, kind):
    tokenizer = TRAINED[kind, False]
    ids = [index % len(tokenizer) for index in ids]
    words = tokenizer.pieces_to_words(ids)
    assert len(words) == len(ids) == len(tokenizer.surface(ids))
    for number, word in enumerate(tokenizer.decode(ids).split()):
        parts = [index for index, place in zip(ids, words, strict=True) if place == number]
        assert "".join(tokenizer._strings(parts)).strip() == word
    assert max(words, default=-1) + 1 == len(tokenizer.decode(ids).split())


def test_words_carry_their_space_and_punctuation_stands_alone():
    tokenizer = TRAINED["word", False]
    assert visible(tokenizer, "¿Cómo estás?") == ["▁¿", "Cómo", "▁estás", "?"]
    assert visible(tokenizer, "I'm 1990 a_b") == ["▁I", "'", "m", "▁1990", "▁a_b"]
    assert tokenizer.tokens(" ¿Cómo   estás?") == ["¿", "Cómo", "estás", "?"]
    assert tokenizer.analyse("¿Cómo estás?").words == [0, 0, 1, 1]
    assert tokenizer.pieces_to_words([1, *tokenizer.encode("¿Cómo estás?"), 2, 0]) == [-1, 0, 0, 1, 1, -1, -1]


def test_subwords_join_frequent_pairs_and_spell_the_rest():
    tokenizer = TRAINED["bpe", False]
    assert visible(tokenizer, "the cat") == ["▁the", "▁cat"]
    assert "".join(visible(tokenizer, "chat?")) == "▁chat?"
    # Digits one by one, punctuation alone.
    assert all(len(piece.lstrip("▁")) <= 1 for piece in visible(tokenizer, "1990 (23:45)"))
    assert tokenizer.analyse("the chat 45").words[0] == 0
    assert tokenizer.analyse("the chat 45").words[-2:] == [2, 2]


def test_characters_and_the_space_that_belongs_to_no_word():
    tokenizer = TRAINED["char", False]
    assert visible(tokenizer, "a  b") == ["a", " ", "b"]
    assert tokenizer.tokens("a b") == ["a", "␣", "b"]
    assert tokenizer.analyse("a bc").words == [0, -1, 1, 1]
    assert tokenizer.pieces_to_words(tokenizer.encode("a bc")) == [0, -1, 1, 1]
    assert tokenizer.surface([*tokenizer.encode("a b"), 2]) == ["a", "␣", "b", "</s>"]


@pytest.mark.parametrize("lowercase", [False, True])
@each
def test_surfaces_are_what_the_user_wrote(kind, lowercase):
    tokenizer = TRAINED[kind, lowercase]
    assert "".join(tokenizer.tokens("¿CÓMO estás?")).replace("␣", "") == "¿CÓMOestás?"


def test_a_lone_mark_is_a_space_and_not_the_next_character_again():
    tokenizer = TRAINED["bpe", False]
    assert tokenizer.tokens("字a 字") == ["␣", "字", "a", "␣", "字"]
    assert tokenizer.analyse("字a 字").words == [0, 0, 0, 1, 1]


def test_lower_case():
    assert TRAINED["word", True].encode("HOW ARE YOU") == TRAINED["word", True].encode("how are you")
    assert TRAINED["word", False].encode("HOW") != TRAINED["word", False].encode("How")


@each
def test_composed_and_decomposed_text_are_the_same(kind):
    tokenizer = TRAINED[kind, False]
    assert tokenizer.encode(unicodedata.normalize("NFD", "¿Cómo estás?")) == tokenizer.encode("¿Cómo estás?")


@each
def test_specials_written_in_text_are_only_text(kind):
    lines = [*LINES, *["<s> </s> <pad> <unk> x<unk>y</s>"] * 19]
    for lowercase in (False, True):
        tokenizer = train_tokenizer(kind, lines, vocab_size=307, lowercase=lowercase)
        text = "x<unk>y</s> <pad> <s>"
        ids = tokenizer.encode(text)
        assert min(ids) > tokenizer.unk
        assert tokenizer.decode(ids) == text
        assert tokenizer.pieces[:4] == SPECIALS
        assert sum(piece in SPECIALS for piece in tokenizer.pieces) == 4


@each
def test_the_mark_in_text_is_no_space(kind):
    lines = ["a▁b a_b"] * 3
    tokenizer = train_tokenizer(kind, lines, vocab_size=31)
    assert tokenizer.decode(tokenizer.encode("a▁b")) == ("a▁b" if kind == "char" else "a_b")
    assert set(tokenizer.pieces_to_words(tokenizer.encode("a▁b"))) == {0}


@each
def test_unknown_pieces(kind):
    tokenizer = TRAINED[kind, False]
    assert tokenizer.unknown("the cat") == []
    expected = {"char": ["字", "☃", "X"], "word": ["字", "☃", "catX"], "bpe": ["字", "☃", "X"]}[kind]
    assert tokenizer.unknown("the 字☃ 字 catX") == expected
    assert tokenizer.unk in tokenizer.encode("字")
    assert "<unk>" in tokenizer.decode(tokenizer.encode("the 字"))
    assert tokenizer.encode("\ud800") == tokenizer.encode("\ufffd")


def test_unknown_words_have_their_word():
    found = TRAINED["word", False].analyse("¿Xyzzy? cat")
    assert found.words == [0, 0, 0, 1]
    assert found.unknown == [False, True, False, False]
    assert TRAINED["bpe", False].analyse("a 字b").words[-2:] == [1, 1]


def test_scripts_without_spaces_are_one_word_a_character():
    tokenizer = train_tokenizer("word", ["私は学生です hello"], vocab_size=31)
    assert visible(tokenizer, "私は hello") == ["▁私", "は", "▁hello"]


@each
def test_blank_text(kind):
    tokenizer = TRAINED[kind, False]
    assert tokenizer.encode(" \t") == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.analyse("").tokens == []
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.decode_batch([[1, 2, 0], []]) == ["", ""]


@each
def test_save_and_load(kind, tmp_path):
    tokenizer = TRAINED[kind, True]
    tokenizer.save(tmp_path / "t.json")
    loaded = Tokenizer.load(tmp_path / "t.json")
    assert loaded == tokenizer
    assert (loaded.kind, loaded.lowercase, len(loaded)) == (kind, True, len(tokenizer))
    assert hash(loaded) == hash(tokenizer)
    assert repr(loaded) == f"Tokenizer(kind='{kind}', size={len(tokenizer)}, lowercase=True)"
    assert loaded.fingerprint == tokenizer.fingerprint != TRAINED[kind, False].fingerprint
    for line in LINES:
        assert loaded.encode(line) == tokenizer.encode(line)


def test_files_that_are_no_tokenizer(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(RunFolderError, match=r"t\.json is missing; copy the run folder again"):
        Tokenizer.load(path)
    TRAINED["bpe", False].save(path)
    whole = path.read_text()
    for broken, message in (
        (whole[: len(whole) // 2], "truncated"),
        ('{"version": "1.0", "model": {"type": "BPE"}}', "is not a limelight-tokenizer/1 file"),
        (whole.replace('"▁the"', '"▁teh"', 1), "was changed after it was written"),
    ):
        path.write_text(broken)
        with pytest.raises(RunFolderError, match=message):
            Tokenizer.load(path)


def test_a_sealed_file_with_a_useless_vocabulary(tmp_path):
    from limelight.files import write_sealed_json

    payload = {"kind": "bpe", "lowercase": False, "pieces": [*SPECIALS, "a"], "merges": [["a", "q"]]}
    for change in ({}, {"pieces": ["a"]}, {"kind": "bytes"}, {"merges": 7}, {"pieces": None}):
        write_sealed_json(tmp_path / "t.json", payload | change, format="limelight-tokenizer/1")
        with pytest.raises(RunFolderError, match="does not hold a usable tokenizer"):
            Tokenizer.load(tmp_path / "t.json")


@each
def test_vocabulary_size_is_a_bound_and_rare_pieces_are_left_out(kind):
    assert len(train_tokenizer(kind, LINES, vocab_size=23)) == 23
    rare = train_tokenizer(kind, [*LINES, "q"], vocab_size=211)
    frequent = train_tokenizer(kind, [*LINES, "q"], vocab_size=211, min_frequency=2)
    assert len(frequent) < len(rare)
    assert (rare.unknown("q"), frequent.unknown("q")) == ([], ["q"])


def test_lines_are_read_once_as_a_stream():
    for kind in KINDS:
        tokenizer = train_tokenizer(kind, iter(LINES), vocab_size=211)
        assert tokenizer == TRAINED[kind, False]


SCRIPT = """
from limelight.data.tokenization import train_tokenizer
# 300 equally rare characters for 64 places, and many equally frequent pairs.
lines = [chr(0x4E00 + i) + " " + chr(0x4E00 + i * 7 % 300) + chr(0x100 + i % 50) for i in range(300)]
print([train_tokenizer(kind, lines, vocab_size=128).fingerprint for kind in ("char", "word", "bpe")])
"""


def test_the_same_text_gives_the_same_tokenizer_in_another_process():
    scope: dict = {}
    exec(SCRIPT.replace("print(", "found = str("), scope)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == scope["found"]


def test_mistakes_in_arguments():
    with pytest.raises(ArgumentError, match="must be one of char, word, bpe, got 'sentence'"):
        train_tokenizer("sentence", LINES)
    with pytest.raises(ArgumentError, match=r"vocab_size must be at least 16 .*, got 4"):
        train_tokenizer("bpe", LINES, vocab_size=4)
    with pytest.raises(ArgumentError, match="min_frequency must be at least 1, got 0"):
        train_tokenizer("bpe", LINES, min_frequency=0)
    with pytest.raises(ArgumentError, match=r"a token id of this tokenizer is in \[0, \d+\], got -1"):
        TRAINED["bpe", False].decode([-1])
    with pytest.raises(ArgumentError, match="pieces must be distinct, got 6 of which 5 are"):
        Tokenizer("char", [*SPECIALS, "a", "a"])


@each
def test_no_text_to_learn_from(kind):
    for lines in ([], ["", "  "]):
        with pytest.raises(DataError, match="there is no text to learn a vocabulary from"):
            train_tokenizer(kind, lines)
    with pytest.raises(DataError, match="100 times"):
        train_tokenizer(kind, LINES, min_frequency=100)


def test_an_unusable_temporary_folder(monkeypatch):
    from limelight.errors import OutputError

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match=r"cannot write a temporary file in .*No space left.*TMPDIR"):
        train_tokenizer("bpe", LINES)
