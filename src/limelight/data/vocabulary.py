"""How text is cut into pieces, and how a vocabulary of pieces is learnt from text.

`tokenization.Tokenizer` is what users and models see; this is what it stands on.
"""

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from limelight.data.corpus import clean
from limelight.errors import OutputError

Kind = Literal["char", "word", "bpe"]
Learnt = tuple[list[str], list[tuple[str, str]]]
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
UNKNOWN = SPECIALS[3]
# Stands for the space in front of a word.
MARK = "▁"
_SURROGATES = re.compile("[\ud800-\udfff]")
# Scripts without spaces would make one "word" of a sentence, hence a word per character; BPE finds their words itself,
# and spells numbers digit by digit. Punctuation stands alone in both, hence no piece can look like a special.
_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_PATTERNS: dict[Kind, str] = {
    "char": r"[\s\S]",
    "word": rf"▁?{_SPACELESS}|▁?(?:(?!{_SPACELESS})[\p{{L}}\p{{M}}\p{{N}}_])+|▁?[^▁]",
    "bpe": r"▁?\p{N}|▁?[\p{L}\p{M}_]+|▁?[^▁]",
}


def prepare(text: str) -> str:
    """Text as the engine takes it: single spaces; half a surrogate pair (bytes that were not UTF-8) is U+FFFD."""
    return clean(text if text.isascii() else _SURROGATES.sub("\ufffd", text))


def normaliser(kind: Kind, lowercase: bool) -> normalizers.Normalizer:
    """NFC, lower case if asked for; the mark in a user's text would read as a space and becomes "_"."""
    steps: list[normalizers.Normalizer] = [] if kind == "char" else [normalizers.Replace(MARK, "_")]
    steps += [normalizers.Lowercase()] if lowercase else []
    # Lowering first: what it makes need not be composed.
    return normalizers.Sequence([*steps, normalizers.NFC()])


def make_engine(kind: Kind, model: models.Model, lowercase: bool) -> tokenizers.Tokenizer:
    """A `tokenizers` engine without added tokens: those would be found in the user's text."""
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normaliser(kind, lowercase)  # pyright: ignore[reportAttributeAccessIssue]
    cut = pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated")
    if kind != "char":
        mark = pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=True)
        cut = pre_tokenizers.Sequence([mark, cut])
    engine.pre_tokenizer = cut  # pyright: ignore[reportAttributeAccessIssue]
    return engine


def learn_characters(lines: Iterable[str], vocab_size: int, lowercase: bool, min_frequency: int) -> Learnt:
    """The most frequent characters."""
    counts = _count_characters(_chunks(lines), "char", lowercase)
    return [*SPECIALS, *_most_common(counts, vocab_size - len(SPECIALS), min_frequency)], []


def learn_words(lines: Iterable[str], vocab_size: int, lowercase: bool, min_frequency: int) -> Learnt:
    """The most frequent words and punctuation marks."""
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(SPECIALS), show_progress=False
    )
    engine = make_engine("word", models.WordLevel({}, unk_token=UNKNOWN), lowercase)
    engine.train_from_iterator(map(prepare, lines), trainer)
    return _learnt(engine)


def learn_subwords(lines: Iterable[str], vocab_size: int, lowercase: bool, min_frequency: int) -> Learnt:
    """Byte-pair encoding: the most frequent characters, and the most frequent pairs joined until there are enough.

    Errors: OutputError when the temporary file that holds the text between two passes cannot be written.
    """
    # The trainer breaks ties between equally rare characters by the order of a randomly seeded hash table. So the
    # characters are chosen here, in a first pass; the lines can be read only once, so a file keeps them for the second.
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as spool:

            def spooled() -> Iterator[str]:
                for chunk in _chunks(lines):
                    spool.write(chunk + "\n")
                    yield chunk

            counts = _count_characters(spooled(), "bpe", lowercase)
            del counts[" "]
            alphabet = [MARK, *_most_common(counts, vocab_size // 2, min_frequency)]
            if len(alphabet) == 1:
                return list(SPECIALS), []
            spool.seek(0)
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                min_frequency=min_frequency,
                special_tokens=list(SPECIALS),
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
                show_progress=False,
            )
            engine = make_engine("bpe", models.BPE(unk_token=UNKNOWN), lowercase)
            engine.train_from_iterator((line.rstrip("\n") for line in spool), trainer)
            return _learnt(engine)
    except OSError as error:
        folder = tempfile.gettempdir()
        # An error that names another file came from reading `lines`.
        if error.filename is not None and not os.fsdecode(error.filename).startswith(folder):
            raise
        raise OutputError(
            f"cannot write a temporary file in {folder}: {error.strerror or error}; free some space there, or set "
            "TMPDIR to another folder"
        ) from error


def _learnt(engine: tokenizers.Tokenizer) -> Learnt:
    model = json.loads(engine.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in model.get("merges", [])]


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    # Joined lines, so that each call into the engine does much work.
    rest = iter(lines)
    while chunk := list(islice(rest, 4096)):
        yield "\n".join(map(prepare, chunk))


def _count_characters(chunks: Iterable[str], kind: Kind, lowercase: bool) -> Counter[str]:
    normalise = normaliser(kind, lowercase)
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(normalise.normalize_str(chunk))
    # Joined the lines, and is in none of them.
    del counts["\n"]
    return counts


def _most_common(counts: Counter[str], limit: int, min_frequency: int) -> list[str]:
    frequent = [char for char, count in counts.items() if count >= min_frequency]
    return sorted(frequent, key=lambda char: (-counts[char], char))[:limit]
