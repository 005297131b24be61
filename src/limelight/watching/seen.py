"""What a watched block has seen: a mapping from module path to what its calls showed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from limelight.errors import ArgumentError, WatchError
from limelight.view import AttentionView, Links, Observation
from limelight.view.kept import bytes_of
from limelight.view.observations import (
    Answers,
    RowWeights,
    Weighted,
    all_places,
    as_integers,
    map_of,
    places_in,
    tensors_of,
    through,
)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was asked for of one call, without the view: the answers of `AttentionView` to the same questions.

    `shape` is that of the attention matrix, (..., H, T, S).
    """

    shape: tuple[int, ...]
    _answers: Answers

    def received(self, weights: Any = None) -> Tensor:
        """Σ_i c_i w_ij, [..., H, S], c being 1 or the weights. ArgumentError if that was not in `observe`."""
        if weights is None:
            return self._named("received")
        weighted = (one for one in self._answers.values() if isinstance(one, Weighted))
        found = next((one.received for one in weighted if one.is_of(weights)), None)
        return found if found is not None else self._missing("received(weights), of these weights,")

    def entropy(self) -> Tensor:
        """The entropy of each query in nats, [..., H, T]. ArgumentError if "entropy" was not in `observe`."""
        return self._named("entropy")

    def distance(self) -> Tensor:
        """How far each query looks, [..., H, T]. ArgumentError if "distance" was not in `observe`."""
        return self._named("distance")

    def top(self, k: int) -> Links:
        """The min(k, S) strongest links of each query. ArgumentError if no `top` of at least k was in `observe`."""
        have = self._answers.get("top")
        if not isinstance(have, Links) or have.indices.shape[-1] < min(k, self.shape[-1]):
            self._missing(f"top({k})")
        return Links(have.indices[..., :k], have.weights[..., :k])

    def rows(self, places: Iterable[int]) -> Tensor:
        """All weights of some queries, [..., H, len(places), S]. ArgumentError if they were not in `observe`."""
        wanted = places_in(as_integers("rows(places)", places), self.shape[-2])
        have = self._answers.get("rows")
        found = have.find(wanted) if isinstance(have, RowWeights) else None
        if not isinstance(have, RowWeights) or found is None:
            self._missing(f"rows({list(wanted)})")
        return have.weights[..., found, :]

    def map(self, rows: int, columns: int, *, reduce: str = "mean") -> Tensor:
        """The matrix pooled, [..., H, rows, columns]. ArgumentError if such a `pooled` was not in `observe`."""
        name = map_of((rows, columns), self.shape, reduce)[1]
        return self._named(name, f"pooled({rows}, {columns}, {reduce!r})")

    @property
    def kept_bytes(self) -> int:
        """The bytes of the tensors kept."""
        return bytes_of(self.kept_tensors())

    def kept_tensors(self) -> Iterator[Tensor]:
        """These tensors."""
        for one in self._answers.values():
            yield from tensors_of(one)

    def _named(self, name: str, asked: str | None = None) -> Tensor:
        """The answer of that name; `asked`: what it is asked for by."""
        have = self._answers.get(name)
        return have if isinstance(have, Tensor) else self._missing(f'"{name}"' if asked is None else asked)

    def _missing(self, name: str) -> NoReturn:
        raise ArgumentError(
            f"observe: {name} was not asked for, and with keep='stats' nothing else is kept. "
            f"Use watch(..., observe=({name},)), or keep='views'."
        )


def statistics(
    view: AttentionView, observe: Sequence[Observation], device: torch.device | None, *, sole: bool = False
) -> Statistics:
    """The answers of a view to what is asked for, on that device, or where they are; `sole`: nobody else asked."""

    def there(tensor: Tensor) -> Tensor:
        # What others have too they may write into, and a part of it would keep the whole.
        tensor = tensor if sole else tensor.clone()
        return tensor if device is None else tensor.to(device)

    answers = view.answers if sole else _asked(view, observe)
    if not sole or device is not None:
        answers = {name: through(one, there) for name, one in answers.items()}
    return Statistics(view.shape, answers)


def _asked(view: AttentionView, observe: Sequence[Observation]) -> Answers:
    """Of the answers of a view, what is asked for; others asked it more."""
    found: Answers = {}
    for one in observe:
        if one.weights is not None:
            found[f"weighted {len(found)}"] = Weighted(one.weights, view.received(one.weights))
        elif one.name == "pooled":
            found[map_of(one.cells, view.shape, one.reduce)[1]] = view.map(*one.cells, reduce=one.reduce)
        elif one.name in ("received", "entropy", "distance"):
            found[one.name] = getattr(view, one.name)()
    most, places = max((one.k for one in observe), default=0), all_places(observe, view.shape[-2])
    if most:
        found["top"] = view.top(most)
    if places:
        found["rows"] = RowWeights(places, view.rows(places))
    return found


One = TypeVar("One", AttentionView, Statistics)


class Seen(Mapping[str, list[One]], Generic[One]):
    """Module path -> what each of its attention calls showed, in the order of the calls.

    `unseen` maps the paths of modules that were found to attend in a way that cannot be watched to the reason. `ran`
    are the paths of those of the watched modules that lie in no other, if they were run inside the block.

    A module that stands under several paths is asked for by any of them; the first is its key.

    Errors: WatchError, a KeyError, for a path without attention calls, and from iterating where there were none at all;
    it says what was seen instead.
    """

    def __init__(self, hint: str = "", names: Mapping[str, str] | None = None) -> None:
        self._calls: dict[str, list[One]] = {}
        self._names: Mapping[str, str] = {} if names is None else names
        self.hint = hint
        self.unseen: dict[str, str] = {}
        self.ran: set[str] = set()

    def add(self, path: str, one: One) -> None:
        """One more call of that module."""
        self._calls.setdefault(path, []).append(one)

    def __getitem__(self, path: str) -> list[One]:
        have = self._calls.get(self._names.get(path, path))
        if have is None:
            raise WatchError(self._why_not(path))
        return have

    def __iter__(self) -> Iterator[str]:
        if not self._calls:
            raise WatchError(self.nothing())
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._names.get(path, path) in self._calls

    @property
    def kept_bytes(self) -> int:
        """The bytes of all tensors kept; a mask or a bias that several calls share counts once."""
        return bytes_of(tensor for calls in self._calls.values() for one in calls for tensor in one.kept_tensors())

    def __repr__(self) -> str:
        calls = sum(len(one) for one in self._calls.values())
        unseen = f", {len(self.unseen)} modules unseen" if self.unseen else ""
        return f"Seen({len(self)} modules, {calls} calls, keeps {self.kept_bytes:,} bytes{unseen})"

    def nothing(self) -> str:
        """Why there is nothing to see."""
        if self.unseen:
            return f"No attention call was seen. {self.unseen_text()}{self.hint}"
        if not self.ran:
            return (
                "No attention call was seen: no module of the watched model, or of the layers chosen, was run inside "
                "the block by the thread that entered it. Call the model inside the block."
            )
        return (
            "No attention call was seen: what was watched ran, and none of the modules watched called "
            "F.scaled_dot_product_attention, nn.MultiheadAttention or limelight.attend, or took a softmax of scores "
            f"and weighted values by it.{self.hint}"
        )

    def unseen_text(self) -> str:
        """Which modules attend unseen, and why."""
        path, reason = next(iter(self.unseen.items()))
        others = f" (and {len(self.unseen) - 1} more modules)" if len(self.unseen) > 1 else ""
        return f"{path or 'The model itself'}{others}: {reason}."

    def _why_not(self, path: str) -> str:
        if path in self.unseen:
            return f"The attention of {path} cannot be seen: {self.unseen[path]}.{self.hint}"
        if not self._calls:
            return self.nothing()
        near = get_close_matches(path, self._calls, n=3, cutoff=0.4) or list(self._calls)[:3]
        return f"{path!r} was not seen to attend; near it: {', '.join(map(repr, near))}; {len(self)} modules in all."
