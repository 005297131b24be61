"""What a view rests on: the call, one number per row, and the answers that are known already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.backends import lookup
from limelight.backends.pooling import pooled
from limelight.backends.protocol import NOTHING, OWN_TENSORS, Call, Gather, Gathered
from limelight.backends.select import mean_of_heads, observed
from limelight.contract import tracing
from limelight.masks.block import Selector
from limelight.normalizers import Normalizer
from limelight.numerics import transformed
from limelight.view import operator
from limelight.view.observations import (
    Answers,
    Links,
    Observation,
    RowWeights,
    Weighted,
    answers_of,
    gather_of,
    map_of,
    tensors_of,
    through,
)
from limelight.view.parts import Versions, mask_tensors


class Kept:
    """The call of a view without its value (one of one axis), the threshold of each row [N, H, T], what was observed.

    weights: the whole matrix [N, H, T, S] where it was one small block, else None.
    """

    __slots__ = ("_call", "_exact", "_versions", "answers", "threshold", "weights")

    def __init__(
        self, call: Call, threshold: Tensor, weights: Tensor | None = None, answers: Answers | None = None
    ) -> None:
        # The value takes no part in the weights; the view must not keep it alive. A call without one is the view's own.
        self._call = call if call.value.ndim == 1 else call.changed(value=call.value.new_empty(0))
        self._exact = False
        self._versions = Versions(self._call, threshold)
        self.threshold, self.weights = threshold, weights
        self.answers: Answers = {} if answers is None else answers

    @property
    def call(self) -> Call:
        """The call, to compute weights from. Errors: StaleViewError."""
        self._versions.check()
        if not (self._exact or tracing() or transformed()):
            self._exact = True
            self._call.rest = lookup.rest_of(self._call, self.threshold)
        return self._call

    @property
    def sound(self) -> Call:
        """The call, to hand on. Errors: StaleViewError."""
        self._versions.check()
        return self._call

    @property
    def normalizer(self) -> Normalizer:
        """What makes the weights of the scores."""
        return self._call.normalizer

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._call.dtype()

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes, before they were folded into N."""
        return self._call.lead

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, T, S)."""
        query = self._call.query
        return (*self._call.lead, query.shape[1], query.shape[2], self._call.key.shape[2])

    def open(self, tensor: Tensor) -> Tensor:
        """Unfold the leading axes of [N, ...]."""
        return tensor if len(self.lead) == 1 else tensor.reshape((*self.lead, *tensor.shape[1:]))

    def answer(self, name: str) -> Tensor:
        """What was observed of that name, "received", "entropy" or "distance", or a pass now; without gradients."""
        have = self.answers.get(name)
        if isinstance(have, Tensor):
            return have
        call = self.call
        with torch.no_grad():
            seen = getattr(observed(call, NOTHING._replace(**{name: True})), name)
            return self.open(getattr(lookup, name)(call, self.threshold) if seen is None else seen)

    def received_by(self, weights: Any) -> Tensor:
        """What each key received, each query counting by its weight; in the same way, with gradients if they are on."""
        tracked = torch.is_grad_enabled() and (self.threshold.requires_grad or getattr(weights, "requires_grad", False))
        for have in () if tracked else self.answers.values():
            if isinstance(have, Weighted) and have.is_of(weights):
                return have.received
        return operator.received(self.call, self.threshold, self.shape[:-2], weights)

    def top(self, k: int) -> Links:
        """The k strongest links, k in [1, S]; in the same way."""
        have = self.answers.get("top")
        if not isinstance(have, Links) or have.indices.shape[-1] < k:
            call = self.call
            with torch.no_grad():
                seen = observed(call, Gather(top=k)).top
                seen = lookup.strongest(call, self.threshold, k) if seen is None else seen
            have = Links(*(self.open(one) for one in seen))
        return Links(have.indices[..., :k], have.weights[..., :k])

    def rows(self, places: Sequence[int]) -> Tensor:
        """The weights [..., H, len(places), S] of these queries, in [0, T); in the same way."""
        have = self.answers.get("rows")
        if isinstance(have, RowWeights) and (found := have.find(places)) is not None:
            return have.weights[..., found, :]
        call = self.call
        with torch.no_grad():
            if self.weights is not None:
                return self.open(self.weights[..., list(places), :])
            return self.open(lookup.rows(call, self.threshold, places))

    def seen_block(self, batch: Selector, head: Selector, rows: Selector, columns: Selector) -> Tensor | None:
        """That block [n, h, t, s] of the rows that were observed; None if it has others, or is to have gradients."""
        have = self.answers.get("rows")
        if not isinstance(have, RowWeights):
            return None
        if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in self._call.tensors()):
            return None
        block = self._call.block(batch, rows, columns, head)
        found = have.find(block.row_index().tolist())
        if found is None:
            return None
        folded = have.weights.reshape(len(self.threshold), *have.weights.shape[-3:])
        return lookup.taken(folded, block._replace(rows=torch.tensor(found, dtype=torch.int64)))

    def mean_of_heads(self) -> Tensor | None:
        """The mean over all heads, [..., T, S], by one pass of a kernel, without gradients; None if there is none."""
        if self.weights is not None:
            return None
        with torch.no_grad():
            found = mean_of_heads(self.sound)
        return None if found is None else self.open(found)

    def of(self, tensors: Sequence[Any]) -> Kept:
        """The same of other tensors: those of the call, in the order of `Call.tensors`, and the threshold."""
        *of_call, threshold = tensors
        call = self._call.with_tensors(*of_call[:OWN_TENSORS]).with_parameters(tuple(of_call[OWN_TENSORS:]))
        return Kept(call.changed(rest=None), threshold)

    def map(self, cells: Sequence[int], reduce: str) -> Tensor:
        """The matrix pooled to so many cells, as far as it has them, [..., H, rows, columns]; in the same way."""
        cells, name = map_of(cells, self.shape, reduce)
        have = self.answers.get(name)
        if isinstance(have, Tensor):
            return have
        call = self.call
        with torch.no_grad():
            seen = observed(call, Gather(cells=cells, reduce=reduce)).pooled
            return self.open(pooled(call, self.threshold, call.whole(), *cells, reduce) if seen is None else seen)

    def gather(self, observe: Sequence[Observation], seen: Gathered | None) -> None:
        """Keep the answers to what is asked for: those seen on the way, and what was not is computed."""
        gather = gather_of(observe, self._call) if seen is None else self._call.gather
        if seen is not None:
            self._take(seen, gather)
        by_weights: list[Tensor] = []
        for one in observe:
            if one.weights is not None:
                by_weights.append(one.weights)
            elif one.name == "pooled":
                self.answers[map_of(one.cells, self.shape, one.reduce)[1]] = self.map(one.cells, one.reduce)
            elif one.name == "rows":
                have = self.answers.get("rows")
                if not isinstance(have, RowWeights) or have.find(gather.rows) is None:
                    self.answers["rows"] = RowWeights(tuple(gather.rows), self.rows(gather.rows))
            elif one.name not in self.answers:
                self.answers[one.name] = self.top(gather.top) if one.name == "top" else self.answer(one.name)
        on_the_way = None if seen is None or gather.row_weight is None else seen.received  # of the first weights
        for place, weights in enumerate(by_weights):
            with torch.no_grad():
                found = self.received_by(weights) if place or on_the_way is None else self.open(on_the_way)
            before = sum(isinstance(one, Weighted) for one in self.answers.values())
            self.answers[f"weighted {before}"] = Weighted(weights, found)

    def _take(self, seen: Gathered, gather: Gather) -> None:
        """Keep what was seen on the way."""
        for name, one in answers_of(seen).items():
            if name != "received" or gather.row_weight is None:
                self.answers[name] = through(one, self.open)
        if seen.rows is not None:
            self.answers["rows"] = RowWeights(tuple(gather.rows), self.open(seen.rows))
        if seen.pooled is not None:
            self.answers[map_of(gather.cells, self.shape, gather.reduce)[1]] = self.open(seen.pooled)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as a fresh one: other tensors have other versions."""
        return Kept, (self.sound.changed(rest=None), self.threshold, self.weights, self.answers)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        yield from (one for one in (*self._call.tensors(), self.threshold, self.weights) if one is not None)
        if self._call.mask is not None:
            yield from (one for _, one in mask_tensors("mask", self._call.mask))
        for one in self.answers.values():
            yield from tensors_of(one)

    def detached(self) -> Kept:
        """The same without a graph."""
        call = self.sound
        call = call.with_tensors(*(None if one is None else one.detach() for one in call.tensors()[:OWN_TENSORS]))
        call.rest = None
        return Kept(call, self.threshold.detach(), self.weights, self.answers)

    def copied(self, device: torch.device | None, share: Callable[[Tensor], Tensor], *, sole: bool = False) -> Kept:
        """Tensors of its own, without a graph; mask, bias and sink are shared unless the device is another one.

        Without the weights of a small matrix: what a copy has of its own grows with T + S. `sole`: nobody else has this
        one, so the answers, which the pass made for it, are taken over as they are, and so is the threshold, unless a
        backward pass may need it. `share` copies a mask, a bias or a sink made in inference mode: of these nothing
        tells that they were changed.
        """

        def own(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            to = tensor.device if device is None else device
            return tensor.to(to) if tensor.device != to else tensor.clone()

        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach() if device is None else tensor.detach().to(device)

        def shared(tensor: Tensor) -> Tensor:
            there = moved(tensor)
            return share(there) if there.is_inference() and there.data_ptr() == tensor.data_ptr() else there

        call = self.sound
        others = (call.bias, call.sink, call.distances)
        mask = call.mask
        if mask is not None and (device is not None or any(one.is_inference() for _, one in mask_tensors("", mask))):
            mask = mask.mapped(shared)  # a mask that stays the same keeps what it has worked out
        bias, sink, distances = (None if one is None else shared(one) for one in others)
        call = call.changed(
            query=own(call.query), key=own(call.key), bias=bias, sink=sink, distances=distances, mask=mask, rest=None
        )
        if call.score.parameters:
            call = call.with_parameters(tuple(own(one) for one in call.score.parameters))
        answers = {name: through(have, moved if sole else own) for name, have in self.answers.items()}
        threshold = self.threshold
        threshold = moved(threshold) if sole and not threshold.requires_grad else own(threshold)
        return Kept(call, threshold, answers=answers)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of all these tensors, what several of them share counted once, and no repetition made by `expand`."""
    sizes: dict[int, int] = {}
    for one in tensors:
        place, size = one.data_ptr(), min(one.nbytes, one.untyped_storage().nbytes())
        sizes[place] = max(size, sizes.get(place, 0))
    return sum(sizes.values())
