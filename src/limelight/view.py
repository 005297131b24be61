"""AttentionView: the attention matrix as a virtual array, computed where it is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limelight.backends import lookup
from limelight.backends.protocol import Call, Gather, Gathered
from limelight.contract import require_count
from limelight.errors import ArgumentError, DenseSizeError
from limelight.indexing import Axis, folded, parse

DENSE_LIMIT = 1 << 30
"""Bytes of weights that `dense` and `view[...]` hand out unless told otherwise: 1 GiB."""


class Links(NamedTuple):
    """The strongest links of each query: indices, int64, and weights, both [..., H, T, k], strongest first.

    Where a query may attend to fewer than k keys, the rest has index -1 and weight 0.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Observation:
    """Something that is gathered when `look` is called: a name, and k for `top`."""

    name: str
    k: int = 0


def top(k: int) -> Observation:
    """Ask `look(observe=(top(k),))` for the k strongest links of each query.

    Errors: ArgumentError if k is not an integer of at least 1.
    """
    require_count("k", k, least=1)
    return Observation("top", k)


def check_observations(observe: Sequence[str | Observation]) -> tuple[Observation, ...]:
    """The observations asked for, or ArgumentError with the known names."""
    wanted = []
    for one in (observe,) if isinstance(observe, (str, Observation)) else observe:
        if isinstance(one, Observation):
            wanted.append(one)
        elif one in ("received", "entropy"):
            wanted.append(Observation(one))
        else:
            raise ArgumentError(f"observe: known are 'received', 'entropy' and top(k), limelight.top; not {one!r}.")
    return tuple(wanted)


def gather_of(observe: Sequence[Observation], keys: int) -> Gather:
    """The observations as a backend takes them, for S keys."""
    names = {one.name for one in observe}
    most = max((one.k for one in observe), default=0)
    return Gather("received" in names, "entropy" in names, min(most, keys))


class AttentionView:
    """The attention matrix [..., H, T, S] of one call of `look`, without the matrix.

    weights[..., h, i, j] = exp(score(q_i, k_j) + bias - lse_i), 0 where the mask forbids: those before dropout. With a
    sink, which is no key and has no column, the weights of a row sum to less than 1. The view
    keeps query and key (as the score prepared them), mask, bias and lse, one number per row; where the whole matrix was
    one small block, the weights as well. Everything is computed block by block when asked for, exactly.

    `view[...]` and `dense` are differentiable if the inputs were and gradients are on; `top`, `entropy` and `received`
    are not. A view keeps the graph of its inputs alive: use `detach()` to store it.

    Do not build one; `look` does. Axes without names: [..., H, T, S] as in the call.
    """

    def __init__(self, call: Call, lse: Tensor, weights: Tensor | None = None) -> None:
        # The value takes no part in the weights, the sink none but in the lse; the view must not keep them alive.
        self._call = replace(call, value=call.value.new_empty(0), sink=None)
        self._lse = lse
        self._weights = weights
        self._gathered: dict[str, Tensor | Links] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, T, S)."""
        query = self._call.query
        return (*self._call.lead, query.shape[1], query.shape[2], self._call.key.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 for float64 inputs."""
        return self._lse.dtype

    @property
    def lse(self) -> Tensor:
        """The log Σ_j exp(score) of each row, [..., H, T]; -inf for a row that may attend to nothing.

        A sink is one of the terms, so that of a row without keys is the sink.
        """
        return self._open(self._lse)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"AttentionView(shape={list(self.shape)}, keeps {_bytes(self._kept_bytes())}, "
            f"dense would be {_bytes(self._dense_bytes(self.shape))})"
        )

    def __getitem__(self, index: Any) -> Tensor:
        """That block of weights.

        Integers, slices and Ellipsis as in NumPy; index arrays (sequences, ranges, tensors, bool masks) are allowed on
        every axis, and several of them mean the block of all combinations, as with `numpy.ix_`.

        Errors: ArgumentError for an index that does not fit; DenseSizeError if the block is above 1 GiB.

        Example: `view[0, :, 3, [5, 7]]` is [H, 2]: what query 3 of sequence 0 gives to keys 5 and 7.
        """
        axes = parse(index, self.shape)
        counts = tuple(axis.size for axis in axes)
        self._guard(counts, DENSE_LIMIT)
        return self._block(axes, counts).reshape([axis.size for axis in axes if axis.stays])

    def dense(self, *, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The whole matrix, [..., H, T, S].

        Arguments:
            limit: bytes that it may take; None for no limit.

        Errors: DenseSizeError, which names the bytes, if it is larger.
        """
        self._guard(self.shape, limit)
        axes = parse(..., self.shape)
        return self._block(axes, self.shape).reshape(self.shape)

    @torch.no_grad()
    def top(self, k: int) -> Links:
        """The min(k, S) strongest links of each query, strongest first, and of equal ones the lower index first.

        Where a query may attend to fewer keys, the rest has index -1 and weight 0.

        Errors: ArgumentError if k is not an integer of at least 1.
        """
        require_count("k", k, least=1)
        k = min(k, self.shape[-1])
        have = self._gathered.get("top")
        if not isinstance(have, Links) or have.indices.shape[-1] < k:
            have = Links(*(self._open(one) for one in lookup.strongest(self._call, self._lse, k)))
        return Links(have.indices[..., :k], have.weights[..., :k])

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """-Σ_j w_j log w_j over the keys, in nats, of each query, [..., H, T]; 0 for a row that may attend to nothing.

        Of the weights as they are: with a sink they sum to less than 1, and the sink's own share is not counted.
        """
        have = self._gathered.get("entropy")
        return have if isinstance(have, Tensor) else self._open(lookup.entropy(self._call, self._lse))

    @torch.no_grad()
    def received(self) -> Tensor:
        """Σ_i w_ij, what each key received from all queries, [..., H, S]."""
        have = self._gathered.get("received")
        return have if isinstance(have, Tensor) else self._open(lookup.received(self._call, self._lse))

    def detach(self) -> AttentionView:
        """The same view without the graph of its inputs: what to store."""
        call = self._call
        bias = None if call.bias is None else call.bias.detach()
        call = replace(call, query=call.query.detach(), key=call.key.detach(), bias=bias)
        view = AttentionView(call, self._lse.detach(), self._weights)
        view._gathered = self._gathered
        return view

    def copy(self, device: torch.device | str | None = None) -> AttentionView:
        """The same view with tensors of its own, without a graph: what others write into theirs does not change it.

        Arguments:
            device: where the copy lies; None: where the view lies.

        Mask and bias, which several calls may share, are copied only to another device.
        """

        def copied(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            to = tensor.device if device is None else torch.device(device)
            return tensor.to(to) if tensor.device != to else tensor.clone(memory_format=torch.contiguous_format)

        call = self._call
        mask = call.mask if call.mask is None or device is None else call.mask.moved(torch.device(device))
        score = call.score.with_parameters(tuple(copied(one) for one in call.score.parameters))
        bias = None if call.bias is None else call.bias.detach().to(device or call.bias.device)
        query, key, value = copied(call.query), copied(call.key), copied(call.value)
        call = replace(call, query=query, key=key, value=value, score=score, mask=mask, bias=bias)
        view = AttentionView(call, copied(self._lse), None if self._weights is None else copied(self._weights))
        for name, have in self._gathered.items():
            view._gathered[name] = Links(*map(copied, have)) if isinstance(have, Links) else copied(have)
        return view

    @property
    def kept_bytes(self) -> int:
        """The bytes of the tensors that the view keeps; the mask's, which the caller made, are not counted."""
        return self._kept_bytes()

    def gather(self, observe: Sequence[Observation], seen: Gathered | None = None) -> None:
        """Keep the answers to what is asked for, so that the methods of that name give them at once.

        What the backend did not see on the way is computed.
        """
        if seen is not None:
            self._keep(seen)
        for one in observe:
            answer = (
                self.top(one.k) if one.name == "top" else self.entropy() if one.name == "entropy" else self.received()
            )
            self._gathered[one.name] = answer

    def _keep(self, seen: Gathered) -> None:
        """Answers that are there, [N, ...]."""
        for name, tensor in (("received", seen.received), ("entropy", seen.entropy)):
            if tensor is not None:
                self._gathered[name] = self._open(tensor)
        if seen.top is not None:
            self._gathered["top"] = Links(*(self._open(one) for one in seen.top))

    def _block(self, axes: tuple[Axis, ...], counts: tuple[int, ...]) -> Tensor:
        """Weights [n, h, t, s] of the positions wanted along each axis."""
        call = self._call
        batch = folded(axes[:-3], call.lead)
        head, rows, columns = (axis.selector for axis in axes[-3:])
        block = call.block(batch, rows, columns, head)
        if self._weights is not None and not self._tracked():
            return lookup.taken(self._weights, block)
        return lookup.gathered(call, self._lse, block, (math.prod(counts[:-3]), counts[-3], counts[-2], counts[-1]))

    def _tracked(self) -> bool:
        return torch.is_grad_enabled() and self._lse.requires_grad

    def _open(self, tensor: Tensor) -> Tensor:
        """Unfold the leading axes."""
        return tensor.reshape((*self._call.lead, *tensor.shape[1:]))

    def _kept_bytes(self) -> int:
        call = self._call
        kept = [call.query, call.key, self._lse, call.bias, self._weights, *call.score.parameters]
        for one in self._gathered.values():
            kept.extend(one if isinstance(one, Links) else (one,))
        return sum(one.nbytes for one in kept if one is not None)

    def _dense_bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._lse.element_size()

    def _guard(self, shape: tuple[int, ...], limit: int | None) -> None:
        size = self._dense_bytes(shape)
        if limit is not None and size > limit:
            raise DenseSizeError(
                f"The weights {list(shape)} would take {size:,} bytes ({_bytes(size)}); the limit is {limit:,}. "
                f"Look at a block, view[..., rows, columns], or at view.top(k), view.entropy(), view.received(); "
                f"or allow it: view.dense(limit={size}), limit=None for no limit."
            )


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
