"""From a corpus to what training reads: the split, the vocabularies, the encoded training part."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from limelight.data import (
    Corpus,
    EncodedCorpus,
    Pair,
    ReadReport,
    Tokenizer,
    split_corpus,
    train_tokenizer,
    write_split,
)
from limelight.data.split import links_beside, write_tsv
from limelight.errors import DataError, RunFolderError
from limelight.files import file_checksum
from limelight.pharaoh import Link
from limelight.run_folder import RunFolder
from limelight.training.config import DataConfig
from limelight.weights import TRAIN_AGAIN

Say = Callable[[str], None]
"""Called with a line of what is being done."""

_ENDS = ".!?¡¿。！？…"  # what closes, or in Spanish opens, a sentence


@dataclass(frozen=True)
class Prepared:
    """What training reads."""

    corpus: EncodedCorpus
    dev: list[tuple[str, str]]
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer


def prepare(run: RunFolder, corpus: Corpus, dev: Corpus | None, config: DataConfig, seed: int, say: Say) -> Prepared:
    """Split, learn the vocabularies, encode; everything lands in the run folder.

    Args:
        run: a new run folder.
        corpus: the parallel text.
        dev: a corpus to validate on; None holds a part of `corpus` out, and a test part too.
        config: how.
        seed: of the split.
        say: told what was read and skipped.

    Raises:
        DataError: the corpus cannot be used; OutputError: the folder cannot be written.
    """
    _write_parts(run, corpus, dev, config, seed, say)
    guided = corpus.links is not None
    source_tokenizer, target_tokenizer = _learn_tokenizers(_kept(run, "train"), config)
    source_tokenizer.save(run.tokenizer("source"))
    target_tokenizer.save(run.tokenizer("target"))
    say(f"vocabularies: {len(source_tokenizer)} source and {len(target_tokenizer)} target {config.tokens} tokens")
    encoded = _encode(run, config, source_tokenizer, target_tokenizer, guided)
    if guided:
        say(_guidance(encoded))
    if encoded.skipped:
        say(f"{encoded.skipped} training pairs are longer than {config.max_tokens} tokens and were left out")
    return Prepared(encoded, read_dev(run), source_tokenizer, target_tokenizer)


def reopen(run: RunFolder, config: DataConfig, dev_checksum: str | None = None, *, guided: bool = False) -> Prepared:
    """What `prepare` left in the folder. Without the encoded training part, data/train, it is made anew.

    Args:
        run: the folder.
        config: as it was for `prepare`.
        dev_checksum: of dev.tsv as `prepare` left it; not checked where it is not known.
        guided: whether the corpus had links.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    tokenizers = run.read_tokenizers()
    folder = run.data / "train"
    try:
        encoded = (
            EncodedCorpus.open(folder, tokenizers=tokenizers)
            if folder.exists()
            else _encode(run, config, *tokenizers, guided)
        )
    except DataError as error:
        raise RunFolderError(f"{error}; {TRAIN_AGAIN}") from error
    return Prepared(encoded, read_dev(run, dev_checksum), *tokenizers)


def read_dev(run: RunFolder, checksum: str | None = None) -> list[tuple[str, str]]:
    """The dev part's pairs; `checksum` is what the file must have.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    kept, report = _kept(run, "dev"), ReadReport()
    try:
        pairs = [(pair.source, pair.target) for pair in kept.pairs(report)]
    except DataError as error:
        raise RunFolderError(f"{error}; {TRAIN_AGAIN}") from error
    if checksum is not None and file_checksum(run.data / "dev.tsv") != checksum:
        raise RunFolderError(f"{kept} was changed after it was written (the checksum differs); {TRAIN_AGAIN}")
    if report.skipped:
        raise RunFolderError(f"{kept} was changed after it was written: {report.summary()}; {TRAIN_AGAIN}")
    return pairs


def _write_parts(run: RunFolder, corpus: Corpus, dev: Corpus | None, config: DataConfig, seed: int, say: Say) -> None:
    """Write train.tsv and dev.tsv, and test.tsv if a part of the corpus is held out."""
    report, dev_report = ReadReport(), ReadReport()
    say(f"reading {corpus}")
    if dev is None:
        split = split_corpus(corpus, dev=config.dev, test=config.test, seed=seed, report=report)
        counts = write_split(corpus, split, run.data)
        say(f"{split.pairs} pairs of {split.unique} source sentences; " + _counts(counts))
    else:
        count = write_tsv(run.data / "train.tsv", corpus.pairs(report), guided=corpus.links is not None)
        dev_count = write_tsv(run.data / "dev.tsv", dev.pairs(dev_report))
        say(f"{count} training pairs, {dev_count} dev pairs")
    for one in (report, dev_report):
        if one.skipped:
            say(one.summary())


def _kept(run: RunFolder, part: str, *, guided: bool = False) -> Corpus:
    """A part as it was written: what was too long was left out then, by limits that need not be known any more."""
    tsv = run.data / f"{part}.tsv"
    links = links_beside(tsv) if guided else None
    return Corpus(tsv=tsv, max_words=sys.maxsize, max_characters=sys.maxsize, links=links)


def _encode(
    run: RunFolder, config: DataConfig, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer, guided: bool
) -> EncodedCorpus:
    pairs = _with_loose_ends(_kept(run, "train", guided=guided).pairs(), config.loose_ends)
    return EncodedCorpus.build(
        run.data / "train", pairs, source_tokenizer, target_tokenizer, max_tokens=config.max_tokens, guided=guided
    )


def _learn_tokenizers(train: Corpus, config: DataConfig) -> tuple[Tokenizer, Tokenizer]:
    def learn(sides: Callable[[Pair], Iterable[str]]) -> Tokenizer:
        lines = (line for pair in train.pairs() for line in sides(pair))
        return train_tokenizer(config.tokens, lines, vocab_size=config.vocabulary, lowercase=config.lowercase)

    if config.joint:
        both = learn(lambda pair: (pair.source, pair.target))
        return both, both
    return learn(lambda pair: (pair.source,)), learn(lambda pair: (pair.target,))


def _with_loose_ends(pairs: Iterable[Pair], words: int) -> Iterator[Pair]:
    for pair in pairs:
        yield pair
        if len(pair.source.split()) > words:
            continue
        source, target = pair.source.strip(_ENDS), pair.target.strip(_ENDS)
        if source and target and (source, target) != (pair.source, pair.target):
            yield replace(pair, source=source, target=target, links=_renumbered(pair.links, source, target))


def _renumbered(links: frozenset[Link], source: str, target: str) -> frozenset[Link]:
    """Links of the words that are left: a mark that was a word of its own leaves a space at the end it stood at."""
    first = tuple(int(side.startswith(" ")) for side in (source, target))
    count = tuple(len(side.split()) for side in (source, target))
    moved = ((i - first[0], j - first[1]) for i, j in links)
    return frozenset((i, j) for i, j in moved if 0 <= i < count[0] and 0 <= j < count[1])


def _guidance(encoded: EncodedCorpus) -> str:
    assert encoded.links is not None
    without = int((np.diff(encoded.links.offsets) == 0).sum())
    rest = f"; {without} pairs have none" if without else ""
    return f"word links to learn attention from: {len(encoded.links.shares)} between tokens{rest}"


def _counts(counts: dict) -> str:
    return ", ".join(f"{count} {part}" for part, count in counts.items() if count)
