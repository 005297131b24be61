"""From text to token ids and back: characters, words, or byte-pair subwords (Sennrich et al. 2016, arXiv:1508.07909).

All three give the text back exactly, white space included, up to normalisation: Unicode NFC, single spaces, lower case
if asked for. Words and subwords carry their space with them, as "▁" in front (Kudo and Richardson 2018,
arXiv:1808.06226), and punctuation stands alone: "¿Cómo estás?" is ▁¿ Cómo ▁estás ?. Text that looks like a special
token ("</s>") is only text.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from tokenizers import Encoding, models

from limelight.data.corpus import clean
from limelight.data.vocabulary import (
    MARK,
    SPECIALS,
    UNKNOWN,
    Kind,
    learn_characters,
    learn_subwords,
    learn_words,
    make_engine,
    normaliser,
    prepare,
)
from limelight.errors import ArgumentError, DataError, RunFolderError
from limelight.files import read_sealed_json, write_sealed_json

FORMAT = "limelight-tokenizer/1"
# How a piece that is nothing but a space is shown.
VISIBLE_SPACE = "␣"
_WAY_OUT = "copy the run folder again, or train again"


@dataclass(frozen=True)
class Pieces:
    """A text and its tokens, one entry per token in each list.

    Fields: `ids`; `tokens`, the piece of the text as the user wrote it, a lone space as "␣"; `words`, the index of the
    word in `text.split()` that the token belongs to, -1 for a space that is a token of its own; `unknown`, whether the
    vocabulary lacks the piece.
    """

    ids: list[int]
    tokens: list[str]
    words: list[int]
    unknown: list[bool]

    def lost(self) -> list[str]:
        """The tokens that the vocabulary lacks, each once, in order."""
        return list(dict.fromkeys(token for token, unknown in zip(self.tokens, self.unknown, strict=True) if unknown))


class Tokenizer:
    """A fixed vocabulary and the rule that cuts text into its pieces; made by `train_tokenizer` or `load`.

    Args:
        kind: "char", "word" or "bpe".
        pieces: the vocabulary; a piece's place is its id. The first four are `SPECIALS`.
        merges: for "bpe", the pairs of pieces to join, in order of priority.
        lowercase: whether text is put into lower case first.

    Errors:
        ArgumentError for an unknown kind, or a vocabulary that is not distinct pieces beginning with `SPECIALS`.
    """

    pad: ClassVar[int] = 0
    bos: ClassVar[int] = 1
    eos: ClassVar[int] = 2
    unk: ClassVar[int] = 3

    def __init__(
        self, kind: Kind, pieces: Sequence[str], merges: Iterable[tuple[str, str]] = (), *, lowercase: bool = False
    ):
        _check_kind(kind)
        if tuple(pieces[: len(SPECIALS)]) != SPECIALS:
            raise ArgumentError(f"pieces must begin with {', '.join(SPECIALS)}, got {list(pieces[: len(SPECIALS)])}")
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        if len(vocabulary) != len(pieces):
            raise ArgumentError(f"pieces must be distinct, got {len(pieces)} of which {len(vocabulary)} are")
        self.kind: Kind = kind
        self.lowercase = lowercase
        self.pieces = tuple(pieces)
        self.merges = tuple((left, right) for left, right in merges)
        if kind == "bpe":
            model = models.BPE(vocab=vocabulary, merges=list(self.merges), unk_token=UNKNOWN)
        else:
            model = models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN)
        self._texts = [self._text_of(index) for index in range(len(self.pieces))]
        self._normaliser = normaliser(kind, lowercase)
        self._engine = make_engine(kind, model, lowercase)

    def __len__(self) -> int:
        """The size of the vocabulary, specials included."""
        return len(self.pieces)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._payload() == other._payload()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, size={len(self)}, lowercase={self.lowercase})"

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides the ids, to tell whether two tokenizers are the same."""
        return hashlib.blake2b(json.dumps(self._payload()).encode(), digest_size=8).hexdigest()

    def normalise(self, text: str) -> str:
        """The text that `decode(encode(text))` gives when all its pieces are known: NFC, single spaces, lower case."""
        return self._normaliser.normalize_str(prepare(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without specials. Blank text gives []; a piece outside the vocabulary gives `unk`."""
        return self._engine.encode(prepare(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        prepared = [prepare(text) for text in texts]
        return [encoding.ids for encoding in self._engine.encode_batch_fast(prepared, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; `pad`, `bos` and `eos` vanish, `unk` shows as "<unk>".

        Errors: ArgumentError for an id outside the vocabulary.
        """
        return clean("".join(self._strings(ids)))

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """`decode` for many sequences."""
        return [self.decode(ids) for ids in batch]

    def analyse(self, text: str) -> Pieces:
        """The tokens of a text with surface, word and whether they are known, for pictures and alignments."""
        text = prepare(text)
        return self._pieces(text, self._engine.encode(text, add_special_tokens=False))

    def analyse_batch(self, texts: Iterable[str]) -> list[Pieces]:
        """`analyse` for many texts at once, cut on all cores."""
        prepared = [prepare(text) for text in texts]
        found = self._engine.encode_batch(prepared, add_special_tokens=False)
        return [self._pieces(text, encoding) for text, encoding in zip(prepared, found, strict=True)]

    def _pieces(self, text: str, encoding: Encoding) -> Pieces:
        space = " " if self.kind == "char" else MARK
        tokens, words, ids = [], [], encoding.ids
        # Texts have single spaces: the spaces in front of a token are the words that have ended.
        ended, seen = 0, 0
        for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            ended, seen = ended + text.count(" ", seen, start), start
            # A lone mark in front of the first word covers that word's first character, not a space.
            surface = VISIBLE_SPACE if piece == space else text[start:end].strip()
            tokens.append(surface or piece.lstrip(MARK))
            words.append(-1 if piece == " " else ended + text.startswith(" ", start))
        return Pieces(ids, tokens, words, [index == self.unk for index in ids])

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text as the user wrote them, one per id of `encode`; a lone space is "␣"."""
        return self.analyse(text).tokens

    def unknown(self, text: str) -> list[str]:
        """The pieces of a text which the vocabulary lacks, each once, in order: for a warning."""
        return self.analyse(text).lost()

    def surface(self, ids: Iterable[int]) -> list[str]:
        """What to write at a picture's axis for each id of a produced sentence; specials by their names ("</s>")."""
        ids = [int(index) for index in ids]
        return [
            SPECIALS[index] if index < len(SPECIALS) else string.strip() or VISIBLE_SPACE
            for index, string in zip(ids, self._strings(ids), strict=True)
        ]

    def pieces_to_words(self, ids: Iterable[int]) -> list[int]:
        """For each id the index of its word in `decode(ids).split()`; -1 for `pad`, `bos`, `eos` and for a lone space.

        For the ids of a text prefer `analyse(text).words`, which also knows where unknown words begin.
        """
        strings = self._strings(ids)
        words: list[int] = []
        word, after_space = -1, True
        for string in strings:
            visible = string.lstrip(" ")
            after_space = after_space or visible != string
            if visible and after_space:
                word, after_space = word + 1, False
            words.append(word if visible else -1)
        if self.kind != "char":
            # A lone mark belongs to the word that it begins.
            for place in range(len(words) - 2, -1, -1):
                if strings[place] == " " and words[place + 1] >= 0 and not strings[place + 1].startswith(" "):
                    words[place] = words[place + 1]
        return words

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as one JSON file, atomically. Errors: OutputError."""
        write_sealed_json(path, self._payload(), format=FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read what `save` wrote.

        Errors: RunFolderError when the file is missing, truncated, changed, or something else.
        """
        payload = read_sealed_json(path, format=FORMAT, way_out=_WAY_OUT)
        try:
            return cls(payload["kind"], payload["pieces"], payload["merges"], lowercase=payload["lowercase"])
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise RunFolderError(f"{path} does not hold a usable tokenizer ({error}); {_WAY_OUT}") from error

    def _payload(self) -> dict[str, Any]:
        merges = [list(pair) for pair in self.merges]
        return {"kind": self.kind, "lowercase": self.lowercase, "pieces": list(self.pieces), "merges": merges}

    def _strings(self, ids: Iterable[int]) -> list[str]:
        # Each id's part of the decoded text.
        ids = list(map(int, ids))
        outside = [index for index in ids if not 0 <= index < len(self.pieces)]
        if outside:
            raise ArgumentError(f"a token id of this tokenizer is in [0, {len(self) - 1}], got {outside[0]}")
        return [self._texts[index] for index in ids]

    def _text_of(self, index: int) -> str:
        if index == self.unk:
            return f" {UNKNOWN}" if self.kind == "word" else UNKNOWN
        piece = "" if index < len(SPECIALS) else self.pieces[index]
        return piece if self.kind == "char" else piece.replace(MARK, " ")


def train_tokenizer(
    kind: Kind, lines: Iterable[str], *, vocab_size: int = 8000, lowercase: bool = False, min_frequency: int = 1
) -> Tokenizer:
    """Learn a vocabulary from text: the same lines give the same tokenizer.

    Args:
        kind: "char" keeps the most frequent characters, "word" the most frequent words and punctuation marks, "bpe" the
            most frequent characters (at most half the vocabulary) and joins the most frequent pairs until it is full.
        lines: read once, as a stream; memory grows with the number of distinct words only. For one vocabulary over both
            languages pass the lines of both.
        vocab_size: the largest size, the four specials included.
        lowercase: put all text into lower case, in training and use.
        min_frequency: what occurs fewer times is left out.

    Errors:
        ArgumentError for an unknown kind, vocab_size < 16 or min_frequency < 1; DataError when there is no text at all.
    """
    _check_kind(kind)
    if vocab_size < 16:
        raise ArgumentError(f"vocab_size must be at least 16 (4 specials and some pieces), got {vocab_size}")
    if min_frequency < 1:
        raise ArgumentError(f"min_frequency must be at least 1, got {min_frequency}")
    learn = {"char": learn_characters, "word": learn_words, "bpe": learn_subwords}[kind]
    pieces, merges = learn(lines, vocab_size, lowercase, min_frequency)
    if len(pieces) == len(SPECIALS):
        raise DataError(
            f"there is no text to learn a vocabulary from: all lines are blank, or nothing in them occurs "
            f"{min_frequency} times (min_frequency)"
        )
    return Tokenizer(kind, pieces, merges, lowercase=lowercase)


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ArgumentError(f"the kind of a tokenizer must be one of {', '.join(get_args(Kind))}, got {kind!r}")
