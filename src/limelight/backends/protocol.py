"""What a backend is, and the one checked form of a call that all backends take."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from limelight.contract import accumulation_dtype
from limelight.masks import Block, Mask
from limelight.masks.block import Selector
from limelight.masks.form import EVERYTHING, Form
from limelight.normalizers import Normalizer, softmax
from limelight.scores import Score

if TYPE_CHECKING:
    from limelight.backends.lookup import Rest


class Gather(NamedTuple):
    """What is to be observed beside the output: received mass, entropy, the `top` strongest links (0: none), distance.

    row_weight: float32 [N, H, T], what each query counts in the received mass; None: 1 each. rows: the queries, in
    [0, T), ascending, each once, of which all weights are wanted. cells: how many down and across the matrix is to be
    pooled to, at most T and S, (): none; `reduce` by "mean" or "max".
    """

    received: bool = False
    entropy: bool = False
    top: int = 0
    distance: bool = False
    row_weight: Tensor | None = None
    rows: Sequence[int] = ()
    cells: Sequence[int] = ()
    reduce: str = "mean"

    def within(self, keys: int) -> Gather:
        """The same of a call with so many keys, which has no more links."""
        return self if self.top <= keys else self._replace(top=keys)


NOTHING = Gather()

SOFTMAX = softmax()


class Gathered(NamedTuple):
    """What a backend observed on the way, without a graph; None for what it did not.

    received [N, H, S]; entropy [N, H, T], nats; top: indices (int64) and weights [N, H, T, k], strongest first;
    distance [N, H, T], positions; rows [N, H, len(rows), S] and pooled [N, H, *cells], weights.
    """

    received: Tensor | None = None
    entropy: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None
    distance: Tensor | None = None
    rows: Tensor | None = None
    pooled: Tensor | None = None


OWN_TENSORS = 6
"""How many of `Call.tensors` are the call's own; those of its score follow."""


@dataclass(slots=True)
class Call:
    """One checked call. Leading axes are folded into N; query and key have been through `score.prepare`.

    query [N, H, T, D'], key [N, G, S, D''], value [N, G, S, E], bias [N or 1, H or 1, T or 1, S or 1] or None, sink
    [N or 1, H or 1] or None: one more logit of each row, without a value. distances [H or 1, T + S - 1] or None: a bias
    by distance, see `distances.py`; a call has that or a bias. The seed is an integer where dropout is above 0. The
    normalizer makes the weights of the scores. rest: of a call that is finished, what rounding took from the lse of
    its rows, see `lookup.Rest`; None: nothing worth speaking of.
    `wants_lse`: the caller looks, so lse has to be returned.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    mask: Mask | None
    bias: Tensor | None
    dropout: float
    seed: int
    lead: tuple[int, ...]
    wants_lse: bool
    gather: Gather = NOTHING
    sink: Tensor | None = None
    distances: Tensor | None = None
    normalizer: Normalizer = SOFTMAX
    rest: Rest | None = None
    # Worked out when first asked for; a changed copy begins without them.
    _whole: Block | None = field(default=None, init=False, repr=False, compare=False)
    _form: tuple[Form | None] | None = field(default=None, init=False, repr=False, compare=False)  # None: not asked

    def changed(self, **parts: Any) -> Call:
        """The same call with other parts, in two thirds of the time of `dataclasses.replace`."""
        call = Call(*[getattr(self, name) for name in _PARTS])
        for name, part in parts.items():
            setattr(call, name, part)
        return call

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that gradients flow to: `OWN_TENSORS` of the call, as `with_tensors` takes them, then the score's."""
        return self.query, self.key, self.value, self.bias, self.sink, self.distances, *self.score.parameters

    def with_tensors(self, *tensors: Any) -> Call:
        """The same call of other tensors: as many as `OWN_TENSORS`, in the order of `tensors`."""
        query, key, value, bias, sink, distances = tensors
        return self.changed(query=query, key=key, value=value, bias=bias, sink=sink, distances=distances)

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Call:
        """The same call with other parameters of the score."""
        return self.changed(score=self.score.with_parameters(parameters))

    def without_tensors(self) -> Call:
        """The call without its own tensors, for what must not keep them alive."""
        gone = self.query.new_empty(0)
        return self.with_tensors(gone, gone, gone, None, None, None)

    def may_forbid(self) -> bool:
        """Whether a mask, or a bias of -inf, can forbid pairs."""
        return self.mask is not None or self.bias is not None or self.distances is not None

    def block(self, batch: Selector, rows: Selector, columns: Selector, head: Selector | None = None) -> Block:
        """A block of this call's matrix, all heads unless said otherwise."""
        heads, queries, keys = self.query.shape[1], self.query.shape[2], self.key.shape[2]
        head = slice(0, heads) if head is None else head
        return Block(self.lead, heads, queries, keys, batch, head, rows, columns, self.query.device)

    def whole(self) -> Block:
        """The block that is the whole matrix."""
        if self._whole is None:
            n, _, queries, _ = self.query.shape
            self._whole = self.block(slice(0, n), slice(0, queries), slice(0, self.key.shape[2]))
        return self._whole

    def form(self) -> Form | None:
        """The mask as compiled kernels take it; None if it has no such form."""
        if self.mask is None:
            return EVERYTHING
        if self._form is None:
            self._form = (self.mask.form(self.whole()),)
        return self._form[0]

    def pair_cost(self) -> int:
        """Numbers held at once per (query, key) pair while a tile is computed."""
        cost = max(1, self.score.pair_cost(self.key.shape[-1]))
        return cost if self.distances is None else cost + 2

    def dtype(self) -> torch.dtype:
        """What scores and weights are computed in: float32 or wider."""
        return accumulation_dtype(self.query.dtype)

    def pairs(self) -> int:
        """N H T S."""
        return math.prod(self.query.shape[:3]) * self.key.shape[2]


_PARTS = tuple(one.name for one in fields(Call) if one.init)


class Result(NamedTuple):
    """Output [N, H, T, E]; lse [N, H, T] in the accumulation dtype (may be None when not wanted).

    For a normalizer other than softmax its threshold stands in the place of the lse, and may be in a wider dtype.

    weights [N, H, T, S] before dropout, without a graph, where the whole matrix was one block and they are there.
    gathered: what `call.gather` asked for, as far as the backend does that on the way.
    """

    output: Tensor
    lse: Tensor | None
    weights: Tensor | None = None
    gathered: Gathered | None = None


class Backend(ABC):
    """Interface of all backends. They never import one another."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name by which a call asks for it."""

    @abstractmethod
    def refusal(self, call: Call) -> str | None:
        """Why it cannot run this call, in a phrase; None if it can."""

    @abstractmethod
    def fastest(self, call: Call) -> bool:
        """Whether "auto" may take it, given that it can run and no backend before it was taken: as measured."""

    def gathers(self) -> bool:
        """Whether `run` answers `call.gather` on the way."""
        return False

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Run a call that `refusal` had nothing against."""


def heads_of(tensor: Tensor, heads: int) -> Tensor:
    """Repeat the key heads of [n, G, s, D] to the query heads: query head h meets key head h // (H / G)."""
    n, groups, s, width = tensor.shape
    if groups == heads:
        return tensor
    return tensor.unsqueeze(2).expand(n, groups, heads // groups, s, width).reshape(n, heads, s, width)


def groups_of(gradient: Tensor, groups: int) -> Tensor:
    """The reverse for a gradient [n, H, s, D]: sum over the query heads that share a key head."""
    n, heads, s, width = gradient.shape
    return gradient if heads == groups else gradient.reshape(n, groups, heads // groups, s, width).sum(2)
