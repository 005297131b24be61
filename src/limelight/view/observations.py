"""What can be gathered when `look` is called, and the answers that are more than a tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from limelight.backends.protocol import NOTHING, Call, Gather
from limelight.contract import require_choice, require_count
from limelight.errors import ArgumentError
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


Answer = Tensor | Links | RowWeights


def tensors_of(answer: Answer) -> tuple[Tensor, ...]:
    """The tensors that an answer is made of."""
    if isinstance(answer, Tensor):
        return (answer,)
    return tuple(answer) if isinstance(answer, Links) else (answer.weights,)


def through(answer: Answer, function: Callable[[Tensor], Tensor]) -> Answer:
    """The same answer, of what the function makes of its tensors."""
    if isinstance(answer, Tensor):
        return function(answer)
    if isinstance(answer, Links):
        return Links(*map(function, answer))
    return replace(answer, weights=function(answer.weights))


@dataclass(frozen=True)
class Observation:
    """Something that is gathered when `look` is called: a name, and what `top`, `rows` and `pooled` were asked for."""

    name: str
    k: int = 0
    places: tuple[int, ...] = ()
    cells: tuple[int, int] = (0, 0)
    reduce: str = "mean"


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
        elif one in _NAMES:
            wanted.append(Observation(one))
        else:
            known = ", ".join(map(repr, _NAMES))
            raise ArgumentError(
                f"observe: known are {known} and top(k), rows(places), pooled(rows, columns) of limelight; not {one!r}."
            )
    return tuple(wanted)


def all_places(observe: Sequence[Observation], queries: int) -> tuple[int, ...]:
    """The queries whose weights are asked for, in [0, T), ascending, each once. Errors: ArgumentError."""
    return tuple(sorted({place for one in observe if one.places for place in places_in(one.places, queries)}))


def map_of(cells: Sequence[int], shape: Sequence[int], reduce: str) -> tuple[tuple[int, int], str]:
    """How many cells a map of a matrix [..., T, S] has, and the name of that answer."""
    down, across = min(cells[0], shape[-2]), min(cells[1], shape[-1])
    return (down, across), f"map {reduce} {down} {across}"


def gather_of(observe: Sequence[Observation], call: Call) -> Gather:
    """The observations as a backend takes them.

    Errors: ArgumentError for queries that the call does not have; DenseSizeError for rows of more than 1 GiB.
    """
    if not observe:
        return NOTHING
    heads, queries = call.query.shape[1:3]
    shape = (*call.lead, heads, queries, call.key.shape[2])
    names = {one.name for one in observe}
    most = max(one.k for one in observe)
    places = all_places(observe, queries)
    if places:
        guard((*shape[:-2], len(places), shape[-1]), call.dtype(), DENSE_LIMIT)
    gather = Gather("received" in names, "entropy" in names, min(most, shape[-1]), "distance" in names, rows=places)
    first = next((one for one in observe if one.name == "pooled"), None)
    if first is None:
        return gather
    return gather._replace(cells=map_of(first.cells, shape, first.reduce)[0], reduce=first.reduce)
