"""Parallel text: reading, splitting, tokenising, and batches."""

from limelight.data.batches import Batch, Batches, collate
from limelight.data.corpus import Corpus, Pair, ReadReport, read_parallel, read_tsv
from limelight.data.dataset import EncodedCorpus
from limelight.data.split import Split, group_by_source, split_corpus, write_split, write_tsv
from limelight.data.tokenization import Pieces, Tokenizer, train_tokenizer

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "EncodedCorpus",
    "Pair",
    "Pieces",
    "ReadReport",
    "Split",
    "Tokenizer",
    "collate",
    "group_by_source",
    "read_parallel",
    "read_tsv",
    "split_corpus",
    "train_tokenizer",
    "write_split",
    "write_tsv",
]
