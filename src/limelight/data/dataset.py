"""A tokenised corpus on disk: larger than memory is fine, because the system maps the files and loads what is touched.

A folder holds four .npy files, `{source,target}_tokens.npy` (uint16, or int32 for vocabularies over 65,536) and
`{source,target}_offsets.npy` (int64, N + 1 numbers: sentence i is tokens[offsets[i]:offsets[i + 1]]), and `meta.json`
with their sizes and checksums, which is written last: a folder without it was never finished. Where the pairs have word
links to learn from, four more hold them, spread over the tokens (`guide.spread`): `link_offsets` (int64, N + 1
numbers), and for each link `link_sources` and `link_targets` (uint16 or int32, places in the sentences) and
`link_shares` (float32).
"""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from limelight.data.corpus import Pair
from limelight.data.guide import Shares, spread
from limelight.data.tokenization import Tokenizer
from limelight.errors import ArgumentError, DataError, OutputError, RunFolderError
from limelight.files import atomic_write, read_sealed_json, write_sealed_json

FORMAT = "limelight-encoded-corpus/1"
META = "meta.json"
NAMES = ("source_tokens", "source_offsets", "target_tokens", "target_offsets")
LINKS = ("link_sources", "link_targets", "link_shares", "link_offsets")
CHUNK = 10_000
_CHECK_BLOCK = 1 << 22
_WAY_OUT = "delete the folder and run the same command again: it is made anew"


@dataclass(frozen=True)
class TokenLinks:
    """The links between tokens that attention is to learn: of pair i, those in [offsets[i], offsets[i + 1]).

    Fields: `sources` and `targets`, places in the pair's sentences; `shares`, see `guide.spread`; `offsets`.
    """

    sources: NDArray[Any]
    targets: NDArray[Any]
    shares: NDArray[np.float32]
    offsets: NDArray[np.int64]


class EncodedCorpus:
    """Token ids of N sentence pairs, memory-mapped; made by `build`, opened by `open`.

    Attributes:
        folder: where it lies.
        source_tokens, target_tokens: all ids of a side in one row, without specials.
        source_offsets, target_offsets: int64, N + 1.
        source_lengths, target_lengths: int32 [N], tokens per sentence; these are held in memory, 8 bytes a pair.
        skipped: how many pairs were left out in `build` because a side had more than `max_tokens` tokens.
        links: the links between their tokens, or None where the corpus has none.
        checksum: changes when any token or link does; for telling whether a resumed run sees the same data.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]):
        self.folder = folder
        self.skipped: int = meta["skipped"]
        self.max_tokens: int = meta["max_tokens"]
        self.checksum = "-".join(f"{meta['files'][name]['crc32']:08x}" for name in (*NAMES, *LINKS) if name in arrays)
        self.links = TokenLinks(*(arrays[name] for name in LINKS)) if LINKS[0] in arrays else None
        self.source_tokens, self.source_offsets = arrays["source_tokens"], arrays["source_offsets"]
        self.target_tokens, self.target_offsets = arrays["target_tokens"], arrays["target_offsets"]
        self.source_lengths = _lengths(self.source_offsets)
        self.target_lengths = _lengths(self.target_offsets)

    def __len__(self) -> int:
        """The number of pairs, N."""
        return len(self.source_offsets) - 1

    def source(self, index: int) -> NDArray[Any]:
        """The source ids of pair `index`, without specials: a view of the mapped file."""
        return self.source_tokens[self.source_offsets[index] : self.source_offsets[index + 1]]

    def target(self, index: int) -> NDArray[Any]:
        """The target ids of pair `index`, without specials: a view of the mapped file."""
        return self.target_tokens[self.target_offsets[index] : self.target_offsets[index + 1]]

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        pairs: Iterable[Pair],
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        max_tokens: int,
        guided: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> "EncodedCorpus":
        """Tokenise a stream of pairs into `folder` and open the result; memory use does not grow with the corpus.

        Args:
            folder: made if missing; an encoded corpus in it is replaced.
            pairs: read once, 10,000 at a time.
            source_tokenizer: makes the source ids.
            target_tokenizer: makes the target ids; may be the same object.
            max_tokens: a pair with more tokens than this on a side (specials not counted) is left out and counted.
            guided: keep the pairs' links too.
            progress: called with the number of pairs read so far, once per 10,000.

        Errors:
            ArgumentError for max_tokens < 1; DataError when no pair is left; OutputError when writing fails. After a
            failure the folder holds no half-made corpus that `open` would accept.
        """
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens must be at least 1, got {max_tokens}")
        folder = _make(Path(folder))
        sizes = len(source_tokenizer), len(target_tokenizer)
        dtype = np.dtype(np.uint16 if max(sizes) <= 1 << 16 else np.int32)
        types = dict.fromkeys(NAMES, np.dtype(np.int64)) | {"source_tokens": dtype, "target_tokens": dtype}
        if guided:
            place = np.dtype(np.uint16 if max_tokens <= 1 << 16 else np.int32)
            types |= dict(zip(LINKS, (place, place, np.dtype(np.float32), np.dtype(np.int64)), strict=True))
        with contextlib.ExitStack() as stack:
            writers = {
                name: stack.enter_context(_array_file(folder / f"{name}.npy", type_)) for name, type_ in types.items()
            }
            tokens = [writers[name] for name in NAMES]
            sides = _Side(source_tokenizer, *tokens[:2]), _Side(target_tokenizer, *tokens[2:])
            links = _LinkFiles(*(writers[name] for name in LINKS)) if guided else None
            read, kept = _encode(pairs, sides, links, max_tokens, progress)
        files = {name: writer.facts() for name, writer in writers.items()}
        meta = {
            "pairs": kept,
            "skipped": read - kept,
            "max_tokens": max_tokens,
            "tokenizers": [source_tokenizer.fingerprint, target_tokenizer.fingerprint],
            "files": files,
        }
        write_sealed_json(folder / META, meta, format=FORMAT)
        return cls.open(folder, verify=False)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        tokenizers: tuple[Tokenizer, Tokenizer] | None = None,
        verify: bool = True,
    ) -> "EncodedCorpus":
        """Map what `build` wrote.

        Args:
            folder: the folder.
            tokenizers: if given, the (source, target) tokenizers that the corpus must have been made with.
            verify: also read all data once and compare the checksums (about a second per gigabyte).

        Errors:
            RunFolderError when a file is missing, truncated, foreign or changed, or when the tokenizers differ.
        """
        folder = Path(folder)
        meta = read_sealed_json(folder / META, format=FORMAT, way_out=_WAY_OUT)
        if tokenizers is not None and meta["tokenizers"] != [tokenizer.fingerprint for tokenizer in tokenizers]:
            raise RunFolderError(f"{folder} was made with other tokenizers than these; {_WAY_OUT}")
        arrays = {name: _map(folder / f"{name}.npy", facts, verify) for name, facts in meta["files"].items()}
        return cls(folder, meta, arrays)


class _ArrayWriter:
    """Appends to a one-dimensional .npy file whose length is known only at the end."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any]):
        self._file, self._dtype = file, dtype
        self.count = self.crc32 = 0
        self._header()
        self._start = file.tell()

    def write(self, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array, dtype=self._dtype).data
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.count += len(array)

    def finish(self) -> None:
        # NumPy pads the header so that a longer first axis still fits; the data must not have to move.
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._start:
            raise RuntimeError(f"the .npy header grew from {self._start} to {self._file.tell()} bytes")

    def facts(self) -> dict[str, Any]:
        size = self._start + self.count * self._dtype.itemsize
        return {"dtype": self._dtype.str, "count": self.count, "bytes": size, "crc32": self.crc32}

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


class _Side:
    """One language's two files, and the tokenizer that fills them."""

    def __init__(self, tokenizer: Tokenizer, tokens: _ArrayWriter, offsets: _ArrayWriter):
        self.tokenizer, self._tokens, self._offsets = tokenizer, tokens, offsets
        offsets.write(np.zeros(1, dtype=np.int64))

    def write(self, rows: list[list[int]]) -> None:
        end = self._tokens.count
        self._tokens.write(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
        self._offsets.write(end + np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))))


class _LinkFiles:
    """The four files of the links between tokens."""

    def __init__(self, sources: _ArrayWriter, targets: _ArrayWriter, shares: _ArrayWriter, offsets: _ArrayWriter):
        self._columns, self._offsets = (sources, targets, shares), offsets
        offsets.write(np.zeros(1, dtype=np.int64))

    def write(self, rows: list[Shares]) -> None:
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        self._offsets.write(self._columns[0].count + np.cumsum(counts))
        for place, column in enumerate(self._columns):
            column.write(np.array([link[place] for row in rows for link in row], dtype=np.float64))


@contextlib.contextmanager
def _array_file(path: Path, dtype: np.dtype[Any]) -> Iterator[_ArrayWriter]:
    with atomic_write(path) as file:
        writer = _ArrayWriter(file, dtype)
        yield writer
        writer.finish()


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # From here on the folder is unfinished until the new meta.json is there.
        (folder / META).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error
    return folder


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _encode(
    pairs: Iterable[Pair],
    sides: tuple[_Side, _Side],
    links: _LinkFiles | None,
    max_tokens: int,
    progress: Callable[[int], None] | None,
) -> tuple[int, int]:
    """Tokenise and write all pairs that fit; the numbers of pairs read and kept."""
    read = kept = 0
    for chunk in _chunks(pairs):
        source = sides[0].tokenizer.encode_batch(pair.source for pair in chunk)
        target = sides[1].tokenizer.encode_batch(pair.target for pair in chunk)
        fits = [0 < len(s) <= max_tokens and 0 < len(t) <= max_tokens for s, t in zip(source, target, strict=True)]
        sides[0].write(list(compress(source, fits)))
        sides[1].write(list(compress(target, fits)))
        if links is not None:
            links.write([_token_links(pair, sides) for pair in compress(chunk, fits)])
        read += len(chunk)
        kept += sum(fits)
        if progress is not None:
            progress(read)
    if not kept:
        raise DataError(
            f"none of {read} pairs is usable: in each a side is blank or has more than {max_tokens} tokens; raise "
            "max_tokens or use a larger vocabulary"
        )
    return read, kept


def _token_links(pair: Pair, sides: tuple[_Side, _Side]) -> Shares:
    words = (side.tokenizer.analyse(text).words for side, text in zip(sides, (pair.source, pair.target), strict=True))
    return spread(pair.links, *words) if pair.links else []


def _map(path: Path, facts: dict[str, Any], verify: bool) -> NDArray[Any]:
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise RunFolderError(f"{path} has {size} bytes instead of {facts['bytes']}; {_WAY_OUT}")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; {_WAY_OUT}") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); {_WAY_OUT}") from error
    if array.dtype.str != facts["dtype"] or array.shape != (facts["count"],):
        raise RunFolderError(f"{path} holds {array.dtype}{list(array.shape)}, not what {META} says; {_WAY_OUT}")
    # A plain array on the same mapped memory: memmap's own indexing is slower.
    array = np.asarray(array)
    if verify:
        crc32 = 0
        for start in range(0, len(array), _CHECK_BLOCK):
            crc32 = zlib.crc32(array[start : start + _CHECK_BLOCK].data, crc32)
        if crc32 != facts["crc32"]:
            raise RunFolderError(f"{path} was changed after it was written (the checksum differs); {_WAY_OUT}")
    return array


def _lengths(offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    lengths = np.empty(len(offsets) - 1, dtype=np.int32)
    for start in range(0, len(lengths), _CHECK_BLOCK):
        lengths[start : start + _CHECK_BLOCK] = np.diff(offsets[start : start + _CHECK_BLOCK + 1])
    return lengths
