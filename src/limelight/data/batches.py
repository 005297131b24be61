"""Length-bucketed batches by token count: sentences of about the same length together, so that little is padding.

An epoch's batches depend on the corpus, the arguments and (seed, epoch) only, so that a resumed run takes up where it
was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limelight.data.dataset import EncodedCorpus, TokenLinks
from limelight.data.tokenization import Tokenizer
from limelight.errors import ArgumentError


@dataclass(frozen=True)
class Batch:
    """Sentence pairs as padded tensors; B rows, S the longest source, T the longest target, both counting eos.

    Fields:
        source: int64 [B, S], rows w1 .. wn eos pad ...
        source_lengths: int64 [B], n + 1: tokens that are not padding.
        target: int64 [B, T + 1], rows bos w1 .. wn eos pad ...; target[:, :-1] goes in, target[:, 1:] is predicted.
        target_lengths: int64 [B], n + 1: predicted tokens that are not padding.
        indices: int64 [B], the pairs' places in the corpus or list they come from.
        source_tokens, target_tokens: the sums of the lengths, known without asking the device.
        links: int64 [P, 3], (row, place in T, place in S) of the links that attention is to learn; None for none.
        shares: fp32 [P], the share of that source token in what the target token attends to, see `guide.spread`.

    Without targets (`collate` for translation) target is [B, 1] of bos, T = 0 and target_lengths is 0.
    """

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    indices: Tensor
    source_tokens: int
    target_tokens: int
    links: Tensor | None = None
    shares: Tensor | None = None

    def __len__(self) -> int:
        """The number of rows, B."""
        return self.source.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        names = ("source", "source_lengths", "target", "target_lengths", "indices")
        names += () if self.links is None else ("links", "shares")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


class Batches:
    """All batches of a corpus, epoch by epoch.

    An epoch: a random permutation of the pairs is cut into pools of about `pool` batches; each pool is sorted by target
    and then source length, ties in random order, and cut into batches whose padded size, rows x max(S, T), is at most
    `max_tokens` (a longer sentence is a batch of its own); then the batches of the epoch are shuffled.

    Args:
        corpus: the encoded pairs.
        max_tokens: the largest padded size of either side of a batch, eos included.
        seed: 0 or more; an epoch's random numbers come from PCG64 seeded with [seed, epoch].
        shuffle: False keeps the pairs in corpus order before pooling and the batches in pool order: for evaluation,
            where `Batch.indices` restores the order.
        pool: batches per pool. Larger pools pad less and mix less.

    Errors:
        ArgumentError for max_tokens < 1, pool < 1, seed < 0.
    """

    def __init__(
        self, corpus: EncodedCorpus, *, max_tokens: int = 4096, seed: int, shuffle: bool = True, pool: int = 100
    ):
        for name, value, least in (("max_tokens", max_tokens, 1), ("pool", pool, 1), ("seed", seed, 0)):
            if value < least:
                raise ArgumentError(f"{name} must be at least {least}, got {value}")
        self.corpus, self.max_tokens, self.seed, self.shuffle, self.pool = corpus, max_tokens, seed, shuffle, pool
        self._planned: tuple[int, list[NDArray[np.int64]]] | None = None

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The pairs of each batch of an epoch, by their indices; every pair is in exactly one batch."""
        if epoch < 0:
            raise ArgumentError(f"epoch must be 0 or more, got {epoch}")
        # Without shuffling all epochs are the same.
        epoch = epoch if self.shuffle else 0
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._make_plan(epoch)
        return self._planned[1]

    def count(self, epoch: int) -> int:
        """The number of batches of an epoch; epochs differ by a few."""
        return len(self.plan(epoch))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on: skipping costs nothing, the rest is the same.

        Errors: ArgumentError when start is not in [0, count(epoch)].
        """
        plan = self.plan(epoch)
        if not 0 <= start <= len(plan):
            raise ArgumentError(f"start must be in [0, {len(plan)}] for epoch {epoch}, got {start}")
        return (self.batch(indices) for indices in plan[start:])

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Put the pairs with these indices into one batch."""
        corpus = self.corpus
        source, source_lengths = _rows(corpus.source_tokens, corpus.source_offsets, indices)
        target, target_lengths = _rows(corpus.target_tokens, corpus.target_offsets, indices, bos=True)
        batch = _batch(source, source_lengths, target, target_lengths, indices)
        if corpus.links is None:
            return batch
        links, shares = _links(corpus.links, indices)
        return replace(batch, links=links, shares=shares) if len(links) else batch

    def _make_plan(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        pairs = len(self.corpus)
        order = random.permutation(pairs) if self.shuffle else np.arange(pairs)
        plan: list[NDArray[np.int64]] = []
        for pool in self._pools(order):
            target = self.corpus.target_lengths[pool]
            source = self.corpus.source_lengths[pool]
            # Source lengths go up for odd target lengths and down for even ones, so that they do not jump back to the
            # shortest where the target length changes: a third less padding on the source side. lexsort is stable:
            # equal lengths stay in the order of the permutation.
            pool = pool[np.lexsort((np.where(target % 2, source, -source), target))]
            plan.extend(self._cut(pool))
        if not self.shuffle:
            return plan
        return [plan[place] for place in random.permutation(len(plan))]

    def _pools(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        # A pool ends where the tokens seen so far fill `pool` more batches.
        room = self.pool * self.max_tokens
        sizes = np.maximum(self.corpus.source_lengths[order], self.corpus.target_lengths[order]) + 1
        filled = np.cumsum(sizes, dtype=np.int64)
        edges = np.searchsorted(filled, np.arange(room, filled[-1], room), side="left") + 1
        # A sentence longer than a pool fills several pools at once: equal edges are one.
        yield from np.split(order, np.unique(edges[edges < len(order)]))

    def _cut(self, pool: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        width = np.maximum(self.corpus.source_lengths[pool], self.corpus.target_lengths[pool]).astype(np.int64) + 1
        rows = np.arange(1, len(pool) + 1)
        start = 0
        while start < len(pool):
            # No batch has more rows than this, because the first one is in it.
            most = max(1, self.max_tokens // int(width[start]))
            padded = np.maximum.accumulate(width[start : start + most])
            padded *= rows[: len(padded)]
            fitting = max(1, int(np.searchsorted(padded, self.max_tokens, side="right")))
            yield pool[start : start + fitting]
            start += fitting


def collate(source: Sequence[Sequence[int]], target: Sequence[Sequence[int]] | None = None) -> Batch:
    """Put sentences given as id lists, without specials, into one batch.

    Args:
        source: B lists of ids; an empty one gives the row [eos].
        target: B lists of ids, or None for translation, see `Batch`.

    Errors:
        ArgumentError when there is no sentence, or the numbers differ.
    """
    if not source or (target is not None and len(target) != len(source)):
        count = "no target" if target is None else f"{len(target)} targets"
        raise ArgumentError(
            f"a batch needs at least one sentence and as many targets, got {len(source)} sources, {count}"
        )
    indices = np.arange(len(source))
    source_rows, source_lengths = _rows(*_flat(source), indices)
    if target is None:
        target_rows = np.full((len(source), 1), Tokenizer.bos, dtype=np.int64)
        return _batch(source_rows, source_lengths, target_rows, np.zeros_like(source_lengths), indices)
    return _batch(source_rows, source_lengths, *_rows(*_flat(target), indices, bos=True), indices)


def padding_share(batches: Batches, epoch: int) -> tuple[float, float]:
    """The share of padding among the source and the target tokens of an epoch, each in [0, 1)."""
    real, padded = np.zeros(2), np.zeros(2)
    for indices in batches.plan(epoch):
        for side, lengths in enumerate((batches.corpus.source_lengths, batches.corpus.target_lengths)):
            chosen = lengths[indices].astype(np.int64) + 1
            real[side] += chosen.sum()
            padded[side] += len(chosen) * chosen.max()
    source, target = (1 - real / padded).tolist()
    return source, target


def _rows(
    tokens: NDArray, offsets: NDArray[np.int64], indices: NDArray[np.int64], *, bos: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows ([bos] w1 .. wn eos pad ...) of the sentences `indices`, and n + 1: one gather for all rows."""
    starts = offsets[indices]
    lengths = offsets[indices + 1] - starts
    columns = np.arange(int(lengths.max()) + 1)
    # Places behind a sentence's end read some other token, which the next lines overwrite.
    places = np.minimum(starts[:, None] + columns, max(len(tokens) - 1, 0))
    rows = np.full((len(indices), len(columns) + bos), Tokenizer.bos, dtype=np.int64)
    body = rows[:, 1:] if bos else rows
    if len(tokens):
        body[:] = tokens[places]
    body[columns >= lengths[:, None]] = Tokenizer.pad
    body[np.arange(len(indices)), lengths] = Tokenizer.eos
    return rows, lengths + 1


def _links(kept: TokenLinks, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """See `Batch.links` and `Batch.shares`: of the pairs `indices`, which are the rows."""
    starts = kept.offsets[indices]
    counts = kept.offsets[indices + 1] - starts
    before = np.cumsum(counts) - counts
    places = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
    rows = np.repeat(np.arange(len(indices)), counts)
    links = np.stack([rows, kept.targets[places].astype(np.int64), kept.sources[places].astype(np.int64)], axis=1)
    return torch.from_numpy(links), torch.from_numpy(kept.shares[places])


def _flat(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = [len(row) for row in rows]
    tokens = np.fromiter((index for row in rows for index in row), dtype=np.int64, count=sum(lengths))
    return tokens, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _batch(
    source: NDArray, source_lengths: NDArray, target: NDArray, target_lengths: NDArray, indices: NDArray
) -> Batch:
    tensors = (torch.from_numpy(array) for array in (source, source_lengths, target, target_lengths, indices.copy()))
    return Batch(*tensors, source_tokens=int(source_lengths.sum()), target_tokens=int(target_lengths.sum()))
