"""What can be gathered when `look` is called, and the answers that are more than a tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limelight.arrays import as_tensor
from limelight.backends.protocol import NOTHING, Call, Gather, Gathered
from limelight.contract import require_broadcast, require_choice, require_count
from limelight.errors import ArgumentError
from limelight.numerics import all_finite
from limelight.view.sizes import DENSE_LIMIT, guard

_NAMES = ("received", "entropy", "distance")


class Links(NamedTuple):
    """The strongest links of each query: indices, int64, and weights, both [..., H, T, k], strongest first.

    Where a query has fewer than k links, the rest has index -1 and weight 0.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class RowWeights:
    """The weights [..., H, len(places), S] of the queries at these places, which are in [0, T), ascending."""

    places: tuple[int, ...]
    weights: Tensor

    def find(self, places: Sequence[int]) -> list[int] | None:
        """Where in `weights` those of other places lie; None if some of them do not."""
        where = {place: index for index, place in enumerate(self.places)}
        return [where[place] for place in places] if all(place in where for place in places) else None


class Weighted(NamedTuple):
    """What each key received, [..., H, S], each query counting by its weight; these broadcast to [..., H, T]."""

    weights: Tensor
    received: Tensor

    def is_of(self, weights: Any) -> bool:
        """Whether these are the weights, or equal ones."""
        mine, given = self.weights, as_tensor(weights)
        if mine is given:
            return True
        if not isinstance(given, Tensor) or given.device != mine.device or given.dtype is not mine.dtype:
            return False
        return given.shape == mine.shape and torch.equal(given, mine)


Answer = Tensor | Links | RowWeights | Weighted
Answers = dict[str, Answer]
"""What was observed, by name: "received", "entropy", "distance", "top", "rows", maps as `map_of` names them, and what
keys received by weights, of any name."""


def tensors_of(answer: Answer) -> tuple[Tensor, ...]:
    """The tensors that an answer is made of."""
    if isinstance(answer, Tensor):
        return (answer,)
    return (answer.weights,) if isinstance(answer, RowWeights) else tuple(answer)


def through(answer: Answer, function: Callable[[Tensor], Tensor]) -> Answer:
    """The same answer, of what the function makes of its tensors."""
    if isinstance(answer, Tensor):
        return function(answer)
    if isinstance(answer, RowWeights):
        return replace(answer, weights=function(answer.weights))
    return type(answer)(*map(function, answer))


def answers_of(seen: Gathered) -> Answers:
    """What a pass saw, by name; rows and maps, whose names say more than the pass knows, are left out."""
    found: Answers = {}
    if seen.received is not None:
        found["received"] = seen.received
    if seen.entropy is not None:
        found["entropy"] = seen.entropy
    if seen.distance is not None:
        found["distance"] = seen.distance
    if seen.top is not None:
        found["top"] = Links(*seen.top)
    return found


@dataclass(frozen=True)
class Observation:
    """Something that is gathered when `look` is called: a name, and what the function of that name was asked for."""

    name: str
    k: int = 0
    places: tuple[int, ...] = ()
    cells: tuple[int, int] = (0, 0)
    reduce: str = "mean"
    weights: Tensor | None = field(default=None, compare=False)


_NAMED = {name: Observation(name) for name in _NAMES}


def received(weights: Any) -> Observation:
    """Ask `look(observe=(received(weights),))` for what each key receives, each query counting by its weight.

    `view.received(weights)` then has the answer; with weights of 0 for padding it is what the real queries gave.
    "received" counts every query as 1. Of several of these in one call one is gathered in its pass, and each other one
    by a pass of its own.

    Arguments:
        weights: numbers without a gradient that broadcast to [..., H, T], such as [B, 1, T]; `look` makes sure.

    Errors: ArgumentError for what is no tensor or array of finite real numbers, or wants a gradient.
    """
    given = as_tensor(weights)
    if not isinstance(given, Tensor) or given.is_complex() or not given.ndim or given.requires_grad:
        kind = type(weights).__name__ if not isinstance(given, Tensor) else f"{given.dtype} {list(given.shape)}"
        raise ArgumentError(
            f"received(weights): weights must be a tensor of real numbers without a gradient, one for each query; it "
            f"is {kind}. With gradients, and for one number, ask view.received(weights)."
        )
    if not all_finite(given):
        raise ArgumentError("received(weights): weights must be finite; there is NaN or inf among them.")
    return Observation("received", weights=given.detach().clone())


def top(k: int) -> Observation:
    """Ask `look(observe=(top(k),))` for the k strongest links of each query.

    Errors: ArgumentError if k is not an integer of at least 1.
    """
    require_count("k", k, least=1)
    return Observation("top", k)


def rows(places: Iterable[int]) -> Observation:
    """Ask `look(observe=(rows([0, -1]),))` for all weights of some queries: `view.rows`, and `view[..., places, :]`.

    Arguments:
        places: integers in [-T, T), of which `look` makes sure; negative ones count from the end.

    Errors: ArgumentError if they are no integers, or none.
    """
    wanted = as_integers("rows(places)", places)
    if not wanted:
        raise ArgumentError("rows(places): places must name one query at least, such as rows([0, -1]); it is empty.")
    return Observation("rows", places=wanted)


def pooled(rows: int, columns: int, reduce: str = "mean") -> Observation:
    """Ask `look(observe=(pooled(rows, columns),))` for the matrix pooled to so many cells: `view.map(rows, columns)`.

    Of several such maps in one call the first is gathered in its pass, and each other one by a pass of its own.

    Arguments:
        rows: how many cells down, at least 1; there are no more than queries.
        columns: how many cells across, at least 1; there are no more than keys.
        reduce: "mean" over all pairs of a cell, forbidden ones counting as 0, or "max".

    Errors: ArgumentError for a count or a `reduce` that breaks these rules.
    """
    require_count("rows", rows, least=1)
    require_count("columns", columns, least=1)
    require_choice("reduce", reduce, ("mean", "max"))
    return Observation("pooled", cells=(rows, columns), reduce=reduce)


def as_integers(name: str, places: Any) -> tuple[int, ...]:
    """Integers of any kind as a tuple. Errors: ArgumentError for what is none, True and False among it."""
    try:
        given = places.tolist() if isinstance(places, Tensor) else list(places)
        if any(isinstance(one, bool) for one in given):
            raise TypeError("True and False are no places")
        return tuple(operator.index(one) for one in given)
    except TypeError as error:
        raise ArgumentError(f"{name}: places must be a sequence of integers; it is {places!r} ({error}).") from None


def places_in(places: Sequence[int], queries: int) -> tuple[int, ...]:
    """The places counted from the front. Errors: ArgumentError for one that is not there."""
    for one in places:
        if not -queries <= one < queries:
            raise ArgumentError(f"rows(places): the call has queries [0, {queries}); {one} is out of range.")
    return tuple(one % queries for one in places)


def check_observations(observe: str | Observation | Sequence[str | Observation]) -> tuple[Observation, ...]:
    """The observations asked for, or ArgumentError with the known names."""
    wanted = []
    for one in observe if isinstance(observe, Iterable) and not isinstance(observe, str) else (observe,):
        if isinstance(one, Observation):
            wanted.append(one)
        elif isinstance(one, str) and one in _NAMED:
            wanted.append(_NAMED[one])
        else:
            known = ", ".join(map(repr, _NAMES))
            raise ArgumentError(
                f"observe: known are {known} and top(k), received(weights), rows(places), pooled(rows, columns) of "
                f"limelight; not {one!r}."
            )
    return tuple(wanted)


def all_places(observe: Sequence[Observation], queries: int) -> tuple[int, ...]:
    """The queries whose weights are asked for, in [0, T), ascending, each once. Errors: ArgumentError."""
    return tuple(sorted({place for one in observe if one.places for place in places_in(one.places, queries)}))


def row_weights(weights: Tensor, lines: Sequence[int]) -> Tensor | None:
    """Weights as a pass takes them, float32 [..., H, T]; None of float64.

    Errors: ArgumentError where they do not broadcast to `lines`.
    """
    require_broadcast("weights", weights, lines, "[..., H, T]")
    if weights.dtype is torch.float64:
        return None
    return weights.to(torch.float32).expand(tuple(lines))


def map_of(cells: Sequence[int], shape: Sequence[int], reduce: str) -> tuple[tuple[int, int], str]:
    """How many cells a map of a matrix [..., T, S] has, and the name of that answer."""
    down, across = min(cells[0], shape[-2]), min(cells[1], shape[-1])
    return (down, across), f"map {reduce} {down} {across}"


def simple_gather(observe: Sequence[Observation]) -> Gather | None:
    """The observations as a backend takes them, with all links wanted; None where there are rows, maps or weights."""
    if not all(one.name in (*_NAMES, "top") and one.weights is None for one in observe):
        return None
    names = {one.name for one in observe}
    most = max((one.k for one in observe), default=0)
    return Gather("received" in names, "entropy" in names, most, "distance" in names)


def gather_of(observe: Sequence[Observation], call: Call) -> Gather:
    """The observations as a backend takes them.

    Errors: ArgumentError for queries that the call does not have; DenseSizeError for rows of more than 1 GiB.
    """
    if not observe:
        return NOTHING
    heads, queries = call.query.shape[1:3]
    shape = (*call.lead, heads, queries, call.key.shape[2])
    names = {one.name for one in observe if one.weights is None}
    most = max(one.k for one in observe)
    places = all_places(observe, queries) if "rows" in names else ()
    if places:
        guard((*shape[:-2], len(places), shape[-1]), call.dtype(), DENSE_LIMIT)
    gather = Gather("received" in names, "entropy" in names, min(most, shape[-1]), "distance" in names, rows=places)
    by_weights = [row_weights(one.weights, shape[:-1]) for one in observe if one.weights is not None]
    if by_weights and by_weights[0] is not None and not gather.received:
        row_weight = by_weights[0].reshape(call.query.shape[:3]).contiguous()
        gather = gather._replace(received=True, row_weight=row_weight)
    first = next((one for one in observe if one.name == "pooled"), None)
    if first is None:
        return gather
    return gather._replace(cells=map_of(first.cells, shape, first.reduce)[0], reduce=first.reduce)
