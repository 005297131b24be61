"""AttentionView: the attention matrix as a virtual array, computed where it is looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from limelight.backends import lookup
from limelight.backends.pairs import log_weights
from limelight.backends.pooling import pooled
from limelight.backends.protocol import Call, Gathered
from limelight.contract import exporting, require_choice, require_count
from limelight.errors import ArgumentError
from limelight.indexing import (
    Axis,
    as_places,
    as_region,
    folded,
    folded_places,
    parse,
    parse_block,
)
from limelight.view import operator, storage
from limelight.view.array import VirtualArray
from limelight.view.kept import Kept, bytes_of
from limelight.view.links import pharaoh
from limelight.view.mean import MeanView
from limelight.view.observations import Answers, Links, Observation, as_integers, places_in
from limelight.view.picture import html
from limelight.view.shared import Shared
from limelight.view.sizes import DENSE_LIMIT, dense_bytes, guard, in_units


class AttentionView(VirtualArray):
    """The attention matrix [..., H, T, S] of one call of `look`, without the matrix.

    weights[..., h, i, j] = exp(score(q_i, k_j) + bias - lse_i), 0 where the mask forbids: those before dropout. With a
    sink, which is no key and has no column, the weights of a row sum to less than 1. With another normalizer than
    softmax they are what it makes of score + bias - threshold. The view keeps query and key (as the score prepared
    them), mask, bias, sink and the lse or threshold, one number per row; where the whole matrix was one small block,
    the weights as well. Everything is computed block by block when asked for, exactly.

    `view[...]`, `dense`, the products `view @ x` and `x @ view`, `received(weights)` and `log_prob` are differentiable
    if the inputs were and gradients are on; `top`, `argmax`, `entropy`, `distance`, `received()`, `rows` and `map` are
    not. A view keeps the graph of its inputs alive: use `detach()` to store it. NumPy and torch take a view as an
    array, below 1 GiB. What has to be computed after a tensor given to `look` was changed in place raises
    StaleViewError.

    Do not build one; `look` does. Axes without names: [..., H, T, S] as in the call.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, T, S)."""
        return self._kept.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 for float64 inputs."""
        return self._kept.dtype

    @property
    def device(self) -> torch.device:
        """Where the view computes: the device of query and key."""
        return self._kept.threshold.device

    @property
    def lse(self) -> Tensor:
        """The log Σ_j exp(score) of each row, [..., H, T]; -inf for a row that may attend to nothing.

        A sink is one of the terms, so that of a row without keys is the sink.

        Errors: ArgumentError for another normalizer than softmax, which has a `threshold` and no lse.
        """
        normalizer = self._kept.normalizer
        if not normalizer.is_softmax:
            raise ArgumentError(
                f"view.lse is the log of softmax's sum; this view is of {normalizer.name}, which has none. Its one "
                f"number per row is view.threshold."
            )
        return self._kept.open(self._kept.threshold)

    @property
    def threshold(self) -> Tensor:
        """The number τ of each row, [..., H, T], with weights f(score + bias - τ); f is that of the normalizer.

        For softmax f = exp and τ = lse; sparsemax and entmax-1.5 give 0 to all scores of at most τ; sigmoid's is -b.
        -inf for a row that may attend to nothing (with a sink, or a bias given to `sigmoid`, the τ of that alone). The
        view itself keeps τ of other normalizers in float64.
        """
        return self._kept.open(self._kept.threshold).to(self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"AttentionView(shape={list(self.shape)}, keeps {in_units(self.kept_bytes)}, "
            f"dense would be {in_units(dense_bytes(self.shape, self.dtype))})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the repr and a small map, whose cost does not grow with the length."""
        return html(self)

    def __getitem__(self, index: Any) -> Tensor:
        """That block of weights.

        Integers, slices, Ellipsis and None as in NumPy; index arrays (sequences, ranges, tensors, bool masks) are
        allowed on every axis, and several of them mean the block of all combinations, as with `numpy.ix_`.

        Errors: ArgumentError for an index that does not fit; DenseSizeError if the block is above 1 GiB.

        Example: `view[0, :, 3, [5, 7]]` is [H, 2]: what query 3 of sequence 0 gives to keys 5 and 7.
        """
        if exporting() and self._kept.weights is not None:
            return self.dense()[index]  # the indexing of torch: an axis has a name for a size
        axes, shape = parse_block(index, self.shape)
        counts = tuple(axis.size for axis in axes)
        guard(counts, self.dtype, DENSE_LIMIT)
        return self._block(axes, counts).reshape(shape)

    def dense(self, *, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The whole matrix, [..., H, T, S].

        Arguments:
            limit: bytes that it may take; None for no limit.

        Errors: DenseSizeError, which names the bytes, if it is larger.
        """
        if exporting() and self._kept.weights is not None:
            # Sizes are names only, and the weights were computed with the output.
            return self._kept.open(self._kept.weights)
        guard(self.shape, self.dtype, limit)
        axes = parse(..., self.shape)
        return self._block(axes, self.shape).reshape(self.shape)

    def __matmul__(self, x: Any) -> Tensor:
        """W x, [..., H, T, M] of x [..., S, M], or [..., H, T] of x [S], in linear memory.

        Leading axes broadcast as in `torch.matmul`. What the mask hides takes no part, be it NaN or inf. The result
        has the dtype of the view. Differentiable with respect to x, query, key, bias and the score's parameters.

        Errors: ArgumentError for an x that does not fit.
        """
        return operator.right(self._kept.call, self._kept.threshold, self.shape[:-2], x)

    def __rmatmul__(self, x: Any) -> Tensor:
        """X W, [..., H, M, S] of x [..., M, T], or [..., H, S] of x [T]; otherwise as `view @ x`."""
        return operator.left(self._kept.call, self._kept.threshold, self.shape[:-2], x)

    def top(self, k: int) -> Links:
        """The min(k, S) strongest links of each query, strongest first, and of equal ones the lower index first.

        Where a query has fewer links, because it may attend to fewer keys or because sparsemax or entmax gives the
        others exactly 0, the rest has index -1 and weight 0.

        Errors: ArgumentError if k is not an integer of at least 1.
        """
        require_count("k", k, least=1)
        return self._kept.top(min(k, self.shape[-1]))

    def argmax(self) -> Tensor:
        """The key to which each query gives most, int64 [..., H, T]; the first of equals, -1 for an empty row."""
        if not self.shape[-1]:
            return torch.full(self.shape[:-1], -1, device=self.device)
        return self.top(1).indices.squeeze(-1)

    def entropy(self) -> Tensor:
        """-Σ_j w_j log w_j over the keys, in nats, of each query, [..., H, T]; 0 for a row that may attend to nothing.

        Of the weights as they are: with a sink they sum to less than 1, and the sink's own share is not counted; those
        of `sigmoid` sum to anything.
        """
        return self._kept.answer("entropy")

    def distance(self) -> Tensor:
        """How far each query looks, Σ_j w_ij |i + S - T - j| / Σ_j w_ij, in positions, [..., H, T].

        Query i lies at i + S - T, where `causal()` has it: both sequences end at the same place. 0 for a row that may
        attend to nothing.
        """
        return self._kept.answer("distance")

    def received(self, weights: Any = None) -> Tensor:
        """What each key received from all queries, Σ_i c_i w_ij, [..., H, S].

        Arguments:
            weights: c, one number per query, broadcasts to [..., H, T]; None: 1 each. With weights the answer is
                differentiable, as `x @ view`.

        Errors: ArgumentError for weights that do not fit.

        Example: `view.received(weights=kept)`, `kept` [B, 1, T] being 1 for a token and 0 for padding.
        """
        if weights is None:
            return self._kept.answer("received")
        return self._kept.received_by(weights)

    def mean(self, heads: int | Sequence[int] | None = None) -> MeanView:
        """The mean of the weights over all heads, or over those named: a virtual array [..., T, S] in its turn.

        Errors: ArgumentError for a head out of range, or none at all.

        Example: `view.mean()[0, 3]` is [S]: to what query 3 of sequence 0 attends, all heads alike.
        """
        return MeanView(self, heads)

    def alignment(self, heads: int | Sequence[int] | None = None, *, threshold: float | None = None) -> str:
        """The links of one sequence in the Pharaoh format, `source-target` from 0: `0-0 2-1`.

        From the mean over the heads: each query (target) is linked with the key (source) to which it gives most, the
        first of equals; with `threshold`, with every key of at least that weight.

        Errors: ArgumentError for a view of several sequences, or a threshold outside of (0, 1].
        """
        return pharaoh(self.mean(heads), threshold)

    def log_prob(self, pairs: Any) -> Tensor:
        """The log weights of single pairs, [P], for softmax score - lse; -inf where the mask forbids. Differentiable.

        The log of a weight of exactly 0, as sparsemax and entmax give them, is -inf too, with gradient 0: a loss of
        such log weights is inf where a pair has no link.

        Memory grows with P and the widths, not with T x S: `-view.log_prob(links).mean()` is the loss of guided
        alignment (Chen, Matusov, Khadivi, Peter 2016, arXiv 1607.01628).

        Arguments:
            pairs: integers [P, axes of the view], one index for each axis: (batch, head, query, key).

        Errors: ArgumentError for another shape or dtype, or an index out of range.

        Example: `view.log_prob([(0, 1, 3, 5)])` is [log view[0, 1, 3, 5]].
        """
        places = as_places(pairs, self.shape)
        lead = folded_places(places[:, :-3], self._kept.lead)
        wanted = torch.cat((lead.unsqueeze(-1), places[:, -3:]), -1).to(self.device)
        return log_weights(self._kept.call, self._kept.threshold, wanted)

    def rows(self, places: Iterable[int]) -> Tensor:
        """All weights of some queries, [..., H, len(places), S]; `view[..., places, :]` has their gradients as well.

        Arguments:
            places: integers in [-T, T); negative ones count from the end.

        Errors: ArgumentError for what is no integer or out of range; DenseSizeError if the rows are above 1 GiB.
        """
        wanted = places_in(as_integers("view.rows(places)", places), self.shape[-2])
        guard((*self.shape[:-2], len(wanted), self.shape[-1]), self.dtype, DENSE_LIMIT)
        return self._kept.rows(wanted)

    def map(self, rows: int, columns: int, region: tuple[Any, Any] | None = None, reduce: str = "mean") -> Tensor:
        """A picture of the matrix, or of a region of it: pooled to rows x columns cells, [..., H, rows, columns].

        Exact, block by block in one pass, whose cost is that of the region. Of a region with t queries, cell r takes
        those in [r t // rows, (r + 1) t // rows), and keys in the same way: where the number of cells does not divide
        that of the positions, cells differ by one position. There are no more cells than positions:
        min(rows, t) x min(columns, s).

        Arguments:
            rows: how many cells down, at least 1.
            columns: how many cells across, at least 1.
            region: (queries, keys), a slice with step 1 or an integer each; None: all.
            reduce: "mean" over all pairs of a cell, forbidden ones counting as 0, or "max".

        Errors: ArgumentError for a count, a region or a `reduce` that breaks these rules.

        Example: `view.map(64, 64, region=(slice(1000, 2000), slice(0, 500)))[0, 0]` is [64, 64].
        """
        require_count("rows", rows, least=1)
        require_count("columns", columns, least=1)
        require_choice("reduce", reduce, ("mean", "max"))
        if region is None:
            return self._kept.map((rows, columns), reduce)
        queries, keys = as_region(region, self.shape[-2:])
        call, threshold = self._kept.call, self._kept.threshold
        block = call.block(slice(0, len(threshold)), queries.selector, keys.selector)
        cells = min(rows, queries.size), min(columns, keys.size)
        with torch.no_grad():
            return self._kept.open(pooled(call, threshold, block, *cells, reduce))

    def detach(self) -> AttentionView:
        """The same view without the graph of its inputs: what to store."""
        return AttentionView(self._kept.detached())

    def copy(self, device: torch.device | str | None = None) -> AttentionView:
        """The same view with tensors of its own, without a graph: what others write into theirs does not change it.

        Arguments:
            device: where the copy lies; None: where the view lies.

        Mask, bias and sink, which several calls may share, are copied only to another device, or where they were made
        in inference mode, and the weights of a small matrix not at all: what the copy has of its own grows with T + S.
        """
        return AttentionView(self._kept.copied(None if device is None else torch.device(device), Shared()))

    def taken_over(
        self, device: torch.device | None, share: Callable[[Tensor], Tensor], *, sole: bool
    ) -> AttentionView:
        """As `copy`, for one who keeps many, whose masks, biases and sinks made in inference mode `share` copies.

        `sole`: nobody else has this view, and its answers are not copied.
        """
        return AttentionView(self._kept.copied(device, share, sole=sole))

    @property
    def kept_bytes(self) -> int:
        """The bytes of the tensors that the view keeps, those of mask and bias among them."""
        return bytes_of(self._kept.tensors())

    def kept_tensors(self) -> Iterator[Tensor]:
        """These tensors; other views may share those of mask, bias and sink."""
        return self._kept.tensors()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the view to a file, under a temporary name first: safetensors, with score and mask by their names.

        It holds what the view keeps and the answers that were observed, and nothing of T x S.

        Errors: ArgumentError, which says which, for a score or a mask that is not one of Limelight's own
        (`tile_score`, your own mask); OutputError if the file cannot be written.

        Example: `view.save("layer3.view")`, then `AttentionView.open("layer3.view")[0, 2, 99_000:]`.
        """
        storage.save(path, self._kept.sound, self._kept.threshold, self._kept.answers)

    @classmethod
    def open(
        cls, path: str | PathLike[str], *, device: str | torch.device = "cpu", verify: bool = False
    ) -> AttentionView:
        """The view that `save` wrote, memory-mapped: it opens at once, and blocks are computed as they are asked for.

        Arguments:
            path: the file. It may be replaced while the view is in use, but not cut short.
            device: where to compute; other than "cpu" copies query, key and lse there. A view may be opened on another
                device than the one it was saved on.
            verify: read the whole file and hold it against its checksum. Without it, names, sizes and settings are
                checked, but not every number.

        Errors: ViewFileError for a file that is missing, truncated, foreign or changed; ArgumentError for a device that
        is not there. Nothing is ever unpickled.
        """
        call, threshold, answers = storage.load(path, str(device), verify)
        return cls(Kept(call, threshold, answers=answers))

    def gather(self, observe: Sequence[Observation], seen: Gathered | None = None) -> None:
        """Keep the answers to what is asked for, so that the methods of that name give them at once.

        What the backend did not see on the way is computed.
        """
        self._kept.gather(observe, seen)

    @property
    def answers(self) -> Answers:
        """What was observed, which the methods of these names give at once."""
        return self._kept.answers

    def sound_call(self) -> Call:
        """The call of this view, without value. Errors: StaleViewError."""
        return self._kept.call

    def folded_threshold(self) -> Tensor:
        """The threshold with the leading axes folded, [N, H, T]."""
        return self._kept.threshold

    def mean_of_heads(self) -> Tensor | None:
        """The mean over all heads, [..., T, S], by one pass of a kernel, without gradients; None if there is none."""
        return self._kept.mean_of_heads()

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What the weights are differentiable by; `of` takes as many. Errors: StaleViewError."""
        return (*self._kept.sound.tensors(), self._kept.threshold)

    def of(self, tensors: Sequence[Tensor | None]) -> AttentionView:
        """The same view of other tensors, in the order of `tensors`."""
        return AttentionView(self._kept.of(tensors))

    def _block(self, axes: tuple[Axis, ...], counts: tuple[int, ...]) -> Tensor:
        """Weights [n, h, t, s] of the positions wanted along each axis."""
        batch = folded(axes[:-3], self._kept.lead)
        head, rows, columns = (axis.selector for axis in axes[-3:])
        seen = self._kept.seen_block(batch, head, rows, columns)
        if seen is not None:
            return seen
        call, threshold, weights = self._kept.call, self._kept.threshold, self._kept.weights
        block = call.block(batch, rows, columns, head)
        tracked = torch.is_grad_enabled() and threshold.requires_grad
        if weights is not None and not tracked:
            return lookup.taken(weights, block)
        return lookup.gathered(call, threshold, block, (math.prod(counts[:-3]), counts[-3], counts[-2], counts[-1]))
