"""What a view rests on: which tensors, whether they are unchanged, and how scores and masks are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from limelight.backends.protocol import Call
from limelight.contract import tracing
from limelight.errors import ArgumentError, StaleViewError
from limelight.masks import Mask, band, causal, dense, interval, lengths, segments, window
from limelight.masks.band import Band
from limelight.masks.causal import Causal
from limelight.masks.combined import All, Not
from limelight.masks.combined import Any as Either
from limelight.masks.dense import Dense
from limelight.masks.interval import Interval
from limelight.masks.lengths import Lengths
from limelight.masks.segments import Segments
from limelight.masks.window import Window
from limelight.normalizers import Normalizer, entmax15, sigmoid, softmax, sparsemax
from limelight.normalizers.entmax import Entmax15
from limelight.normalizers.sigmoid import Sigmoid
from limelight.normalizers.softmax import Softmax
from limelight.normalizers.sparsemax import Sparsemax
from limelight.scores import Score, additive, dot, gaussian
from limelight.scores.additive import Additive
from limelight.scores.concat import Concat
from limelight.scores.cosine import Cosine
from limelight.scores.dot import Dot
from limelight.scores.gaussian import Gaussian
from limelight.scores.general import General

Facts = dict[str, Any]

_SCORES: dict[str, tuple[type, Callable[..., Any]]] = {
    "dot": (Dot, dot),
    "additive": (Additive, lambda vector, **_: additive(vector)),
    "gaussian": (Gaussian, lambda inner, centre, deviation: gaussian(inner, centre, deviation)),
}
_MASKS: dict[str, tuple[type, Callable[..., Any]]] = {
    "band": (Band, band),
    "causal": (Causal, causal),
    "window": (Window, window),
    "lengths": (Lengths, lambda count, **_: lengths(count)),
    "dense": (Dense, dense),
    "segments": (Segments, segments),
    "interval": (Interval, interval),
    "all": (All, All),
    "either": (Either, Either),
    "not": (Not, Not),
}
_NORMALIZERS: dict[str, tuple[type, Callable[..., Any]]] = {
    "softmax": (Softmax, softmax),
    "sigmoid": (Sigmoid, sigmoid),
    "sparsemax": (Sparsemax, sparsemax),
    "entmax15": (Entmax15, entmax15),
}
"""The name of each kind in a file, and what makes it of its fields again, checking them."""

_USUAL = (
    "query",
    "key",
    "value",
    "score",
    "mask",
    "bias",
    "dropout",
    "seed",
    "lead",
    "wants_lse",
    "gather",
    "normalizer",
    "rest",
)
MORE = tuple(field.name for field in fields(Call) if field.init and field.name not in _USUAL)
"""What a call may hold besides its usual parts."""

_BESIDES = ("bias", *MORE)

PLAIN = (bool, int, float, str, type(None))


class Versions:
    """Notices when a tensor that a view rests on is changed in place, which would make its answers wrong."""

    __slots__ = ("_noted",)

    def __init__(self, call: Call, threshold: Tensor) -> None:
        # What is made in inference mode has no version to compare, and a compiler has none to tell.
        there = [] if tracing() else _tensors_of(call, threshold)
        self._noted = [(name, one, one._version) for name, one in there if not one.is_inference()]

    def check(self) -> None:
        """Raise StaleViewError if one of them was changed."""
        for name, tensor, version in self._noted:
            if tensor._version != version:
                raise StaleViewError(
                    f"This view computes from the tensors of its call, and {name} was changed in place since. Ask the "
                    f"view before that, name what you want in observe=(...), or let the call have a clone of {name}."
                )


def _tensors_of(call: Call, threshold: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors that decide the weights, with their names."""
    found = [("query", call.query), ("key", call.key)]
    found.append(("lse" if call.normalizer.is_softmax else "threshold", threshold))
    for name in _BESIDES:
        one = getattr(call, name)
        if isinstance(one, Tensor):
            found.append((name, one))
    for place, one in enumerate(call.score.parameters):
        found.append((f"score, tensor {place}", one))
    if call.mask is not None:
        found.extend(mask_tensors("mask", call.mask))
    return found


def mask_tensors(name: str, mask: Mask) -> Iterator[tuple[str, Tensor]]:
    """The tensors among the fields of a mask and of the masks that it is made of."""
    for field in getattr(type(mask), "__dataclass_fields__", ()):
        one = getattr(mask, field)
        if isinstance(one, Tensor):
            yield f"{name} {field}", one
        elif isinstance(one, Mask):
            yield from mask_tensors(f"{name} {field}", one)


def written_score(score: Score, tensors: dict[str, Tensor]) -> Facts:
    """A score that has prepared query and key, as facts; its tensors are added to `tensors`.

    Errors: ArgumentError for a score that is not one of ours.
    """
    return _written(_prepared(score), _SCORES, "score", tensors)


def _prepared(score: Score) -> Score:
    """What is left of a score once query and key are prepared."""
    if isinstance(score, General):
        return score.inner
    if isinstance(score, Cosine):
        return dot(1.0)
    if isinstance(score, Gaussian):
        return replace(score, inner=_prepared(score.inner))
    if isinstance(score, (Additive, Concat)):
        return score.with_parameters(score.parameters)
    return score


def written_mask(mask: Mask | None, tensors: dict[str, Tensor]) -> Facts | None:
    """A mask as facts; its tensors are added to `tensors`.

    Errors: ArgumentError for a mask, or a part of one, that is not one of ours.
    """
    return None if mask is None else _written(mask, _MASKS, "mask", tensors)


def written_normalizer(normalizer: Normalizer, tensors: dict[str, Tensor]) -> Facts:
    """A normalizer as facts. Errors: ArgumentError for one that is not one of ours."""
    return _written(normalizer, _NORMALIZERS, "normalizer", tensors)


def read_score(facts: Facts, tensors: dict[str, Tensor]) -> Score:
    """What `written_score` wrote. Errors: KeyError, TypeError, ValueError for facts that do not hold."""
    return _read(facts, _SCORES, tensors)


def read_mask(facts: Facts | None, tensors: dict[str, Tensor]) -> Mask | None:
    """What `written_mask` wrote. Errors: KeyError, TypeError, ValueError for facts that do not hold."""
    return None if facts is None else _read(facts, _MASKS, tensors)


def read_normalizer(facts: Facts, tensors: dict[str, Tensor]) -> Normalizer:
    """What `written_normalizer` wrote. Errors: KeyError, TypeError, ValueError for facts that do not hold."""
    return _read(facts, _NORMALIZERS, tensors)


def _written(part: Any, known: dict[str, tuple[type, Callable[..., Any]]], place: str, tensors: Any) -> Facts:
    name = next((name for name, (kind, _) in known.items() if type(part) is kind), None)
    if name is None:
        kind = place.split(".")[0]
        raise ArgumentError(
            f"view.save: the {kind} {type(part).__name__} cannot be written to a file, which holds names and tensors, "
            f"no code; those of limelight.{kind}s can ({', '.join(known)})"
            f"{', not tile_score' if kind == 'score' else ''}. Save view.dense() or view[...] of the part you need."
        )
    facts: Facts = {"kind": name}
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name.startswith("_"):
            continue
        if isinstance(value, Tensor):
            tensors[f"{place}.{field.name}"] = value
            facts[field.name] = {"tensor": f"{place}.{field.name}"}
        elif isinstance(value, (Mask, Score)):
            facts[field.name] = _written(value, known, f"{place}.{field.name}", tensors)
        elif isinstance(value, PLAIN):
            facts[field.name] = value
        else:
            raise ArgumentError(
                f"view.save: {field.name} of {type(part).__name__} cannot be written to a file; it is {value!r}."
            )
    return facts


def _read(facts: Facts, known: dict[str, tuple[type, Callable[..., Any]]], tensors: dict[str, Tensor]) -> Any:
    _, make = known[facts["kind"]]
    values = {}
    for name, value in facts.items():
        if name == "kind":
            continue
        if isinstance(value, dict):
            values[name] = tensors[value["tensor"]] if "tensor" in value else _read(value, known, tensors)
        else:
            values[name] = value
    return make(**values)
