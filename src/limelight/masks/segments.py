"""The segments mask: several sequences packed one after the other, each sees itself alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from limelight.contract import integer_dtypes, tracing
from limelight.errors import ArgumentError
from limelight.masks.block import Block, bounds, pick
from limelight.masks.form import Form
from limelight.masks.protocol import Mask


@dataclass(frozen=True, eq=False)
class Segments(Mask):
    """See `segments`. Both are int64, with the same axes in front of the last."""

    query_ids: Tensor
    key_ids: Tensor
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def tile(self, block: Block) -> Tensor:
        """Bool [n or 1, 1, t, s]."""
        moved = self._moved.get(block.device)
        if moved is None:
            moved = self._moved[block.device] = (self.query_ids.to(block.device), self.key_ids.to(block.device))
        query, key = (pick(self._folded(one, block), 0, block.batch) for one in moved)
        query, key = pick(query, 1, block.rows), pick(key, 1, block.columns)
        return query[:, None, :, None] == key[:, None, None, :]

    def rules_out(self, block: Block) -> bool:
        """The keys lie before or behind the runs of all its queries."""
        runs, (low, high) = self._runs_in(block), bounds(block.columns)
        return runs is not None and bool(runs[1].max() <= low or runs[0].min() > high)

    def allows_all(self, block: Block) -> bool:
        """The keys lie in the run of every query."""
        runs, (low, high) = self._runs_in(block), bounds(block.columns)
        return runs is not None and bool(runs[0].max() <= low and runs[1].min() > high)

    def reach(self, block: Block) -> tuple[int, int]:
        """From where the first run of its queries begins to where the last one ends."""
        runs, (low, high) = self._runs_in(block), bounds(block.columns)
        return (low, high) if runs is None else (max(low, int(runs[0].min())), min(high, int(runs[1].max()) - 1))

    def check(self, block: Block) -> None:
        """The ids line up with the first leading axes, with the queries and with the keys."""
        lead = tuple(self.query_ids.shape[:-1])
        if lead != block.lead[: len(lead)]:
            raise ArgumentError(
                f"mask segments(...): the axes of the ids in front of the last must be the leading axes of the query, "
                f"the first of them, or none; they are {list(lead)} and the leading axes are {list(block.lead)}."
            )
        for name, ids, letter, size in (
            ("query_ids", self.query_ids, "T", block.queries),
            ("key_ids", self.key_ids, "S", block.keys),
        ):
            if ids.shape[-1] != size:
                raise ArgumentError(
                    f"mask segments(...): {name} must have one id for each of {letter} = {size} positions; it has "
                    f"{ids.shape[-1]}. Where T and S differ give both query_ids and key_ids."
                )

    def per_key(self) -> bool:
        """False: each query has its own keys."""
        return False

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """With other ids."""
        return Segments(change(self.query_ids), change(self.key_ids))

    def form(self, whole: Block) -> Form | None:
        """The run of keys of each query; None where an id's keys lie apart, which under a compiler is an error."""
        if tracing():
            ends = _runs_in_graph(self.query_ids, self.key_ids)
        elif self._runs is None:
            return None
        else:
            ends = [torch.from_numpy(one) for one in self._runs]
        first, last = (self._folded(one, whole).to(whole.device) for one in ends)
        return Form(first=first, last=last)

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `_runs_of`."""
        found = _runs_of(self.query_ids, self.key_ids)
        return None if found is None else (found[0].numpy(), found[1].numpy())

    def _runs_in(self, block: Block) -> tuple[np.ndarray, np.ndarray] | None:
        """Those of the block's queries; of all between where those are chosen one by one, or of all sequences."""
        if self._runs is None:
            return None
        shape, (low, high) = self.query_ids.shape, bounds(block.rows)
        start, stop = 0, math.prod(shape[:-1])
        if isinstance(block.batch, slice) and len(shape) > 1:
            inner = math.prod(block.lead[len(shape) - 1 :])
            start, stop = block.batch.start // inner, (block.batch.stop - 1) // inner + 1
        first, last = (one.reshape(-1, shape[-1])[start:stop, low : high + 1] for one in self._runs)
        return (first, last) if first.size else None

    @staticmethod
    def _folded(ids: Tensor, block: Block) -> Tensor:
        """[N or 1, positions]."""
        lead = ids.ndim - 1
        if not lead:
            return ids[None]
        inner = math.prod(block.lead[lead:])
        ids = ids.reshape(-1, ids.shape[-1])
        return ids if inner == 1 else ids.repeat_interleave(inner, 0)


def _runs_of(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """(first, last), int32 [..., T] on the host: query i sees keys in [first, last), [S, 0) where its id has none.

    None where the keys of some id do not lie side by side.
    """
    query, key = (one.cpu().reshape(-1, one.shape[-1]) for one in (query_ids, key_ids))
    keys = key.shape[-1]
    ids, places = torch.sort(key, dim=-1, stable=True)
    apart = (ids[:, 1:] == ids[:, :-1]) & (places[:, 1:] != places[:, :-1] + 1)
    if bool(apart.any()):
        return None
    begin, end = torch.searchsorted(ids, query), torch.searchsorted(ids, query, right=True)
    places = places.gather(-1, begin.clamp(max=keys - 1)) if keys else begin
    none = begin == end
    first = places.masked_fill(none, keys)
    last = (places + end - begin).masked_fill(none, 0)
    return first.view(query_ids.shape).to(torch.int32), last.view(query_ids.shape).to(torch.int32)


@torch.library.custom_op("limelight::runs", mutates_args=())
def _runs_in_graph(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
    """`_runs_of` as one step for a compiler."""
    found = _runs_of(query_ids, key_ids)
    if found is None:
        raise ArgumentError(
            "mask segments(...): under torch.compile the keys of every id must lie side by side; those of some lie "
            "apart. Use dense(query_ids[..., :, None] == key_ids[..., None, :]), or do not compile this call."
        )
    return found[0].to(query_ids.device), found[1].to(query_ids.device)


@_runs_in_graph.register_fake
def _(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
    first, last = (query_ids.new_empty(query_ids.shape, dtype=torch.int32) for _ in range(2))
    return first, last


def segments(query_ids: Tensor, key_ids: Tensor | None = None) -> Mask:
    """Keys of the query's own segment: key j of query i is allowed where key_ids[j] = query_ids[i].

    For sequences packed one after the other into one, without padding. Where the keys of every id lie side by side, as
    they do in packed sequences, blocks of other segments are skipped and the compiled kernels run it. Under
    `torch.compile` they must.

    Arguments:
        query_ids: integers [..., T]: the axes in front are the leading axes of the query, the first of them, or none.
        key_ids: integers [..., S], the same axes in front; None: those of the queries, and T = S.

    A query whose id no key has may attend to nothing: output 0. Padding is a segment like any other; give its queries
    and keys two ids of their own to leave it out. With T = S, `segments(ids) & causal()` is causal within each segment;
    with T and S different `causal()` lines up the ends of the whole, not those of each segment.

    Errors: ArgumentError for a dtype that is not an integer, for ids without an axis or with other axes in front and,
    when used, for sizes that do not fit the call.

    Example: `attend(q, k, v, mask=segments(torch.tensor([0, 0, 0, 1, 1])) & causal())` with T = S = 5.
    """
    query_ids = _checked("query_ids", query_ids)
    key_ids = query_ids if key_ids is None else _checked("key_ids", key_ids)
    if query_ids.shape[:-1] != key_ids.shape[:-1]:
        raise ArgumentError(
            f"segments(query_ids, key_ids): both must have the same axes in front of the last; their shapes are "
            f"{list(query_ids.shape)} and {list(key_ids.shape)}. Use .expand(...)."
        )
    return Segments(query_ids, key_ids)


def _checked(name: str, ids: Tensor) -> Tensor:
    """A copy as int64."""
    ids = torch.as_tensor(ids)
    if ids.dtype not in integer_dtypes:
        raise ArgumentError(
            f"segments({name}): {name} must hold integers, one id per position; its dtype is {ids.dtype}. "
            f"Use {name}.long(), or dense(...) for a mask of True and False."
        )
    if ids.ndim == 0:
        raise ArgumentError(f"segments({name}): {name} must have one axis at least, the positions; it is a scalar.")
    return ids.detach().to(torch.int64, copy=True)
