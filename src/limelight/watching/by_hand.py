"""Attention by hand, a softmax of scores and a product of weights and values: how it is recognised by these steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limelight.contract import accumulation_dtype
from limelight.numerics import has_numbers
from limelight.scores import dot

if TYPE_CHECKING:
    from limelight.watching.places import Running

PRODUCTS = frozenset(
    {torch.bmm, torch.baddbmm, torch.matmul, torch.einsum}
    | {Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm}
)
SOFTMAXES = frozenset({F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""What modules call the number of their heads."""

_PATIENCE = 64
"""How many functions of torch may be called between a softmax and the product with values."""

_NEAR = 3
"""How many modules, from the one that takes the product outwards, may be the one that attends."""


def may_attend(shares: Any) -> int:
    """1 if a softmax may be one of attention, as far as can be told before a product with values; else 0."""
    return int(isinstance(shares, Tensor) and shares.ndim >= 3)


class Scores(NamedTuple):
    """What a softmax was taken of, [..., T, S], and the logit beside them, [..., T], if there is one."""

    scores: Tensor
    sink: Tensor | None = None

    def in_our_terms(self, around: Sequence[Running]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Query, key and options of `look` with the same weights: the scores are a bias, and the dot product is 0.

        A sink is 0 as well, and the scores of a row are moved by as much, which leaves its weights as they are.
        """
        dtype = accumulation_dtype(self.scores.dtype)
        bias = self.scores if self.sink is None else self.scores.to(dtype) - self.sink.to(dtype).unsqueeze(-1)
        bias = _with_heads(bias, around)
        zero = bias.new_zeros(1, dtype=dtype)
        query, key = zero.expand(*bias.shape[:-1], 1), zero.expand(*bias.shape[:-2], bias.shape[-1], 1)
        sink = None if self.sink is None else zero.expand(bias.shape[-3])
        return query, key, {"score": dot(1.0), "mask": None, "bias": bias, "sink": sink}


class Found(NamedTuple):
    """Attention by hand: the module that attends and those around it, and its scores; None if they cannot be told."""

    around: list[Running]
    scores: Scores | None


@dataclass(slots=True, eq=False)
class _Waiting:
    """A softmax over an axis of scores [...] of which it is not known yet what comes of it.

    version: that of the scores, None where torch counts none; result: where the weights lie, 0 where they lie nowhere.
    """

    scores: Tensor
    axis: int
    version: int | None
    result: int
    around: list[Running]
    born: int

    def unchanged(self) -> bool:
        """Whether the scores are still what the softmax was taken of."""
        return self.version is None or self.scores._version == self.version


class ByHand:
    """The steps of one `watch` block. `now` counts the functions of torch that were called."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    @property
    def waits(self) -> bool:
        """Whether there is a softmax that a product may show to be attention."""
        return bool(self._waiting)

    def softmax(self, around: list[Running], now: int, args: Any, kwargs: Any, shares: Any) -> None:
        """A softmax, of which a product will say whether it is attention."""
        scores = args[0] if args else kwargs.get("input")
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(scores, Tensor) or not isinstance(shares, Tensor) or not isinstance(axis, int):
            return
        if kwargs.get("out") is not None or not _strided(scores, shares) or scores.shape != shares.shape:
            return
        if scores.ndim < 2 or not scores.numel() or not scores.is_floating_point():
            return
        version = None if scores.is_inference() else scores._version
        self._forget(now)
        self._waiting.append(
            _Waiting(scores.detach(), axis % scores.ndim, version, _address(shares), list(around), now)
        )

    def product(self, around: list[Running], now: int, args: Any, kwargs: Any, result: Any) -> list[Found]:
        """What becomes certain by a product: attention, if its weights are those of a softmax, and its values such as
        the queries share. A table of parameters is no value: it makes a mean of embeddings of class probabilities.
        """
        self._forget(now)
        given = (*args, *(kwargs[name] for name in kwargs if name != "out"))
        flat = [two for one in given for two in (one if isinstance(one, (list, tuple)) else (one,))]
        factors = [one for one in flat if isinstance(one, Tensor)]
        if not self._waiting or not isinstance(result, Tensor) or len(factors) < 2 or not _strided(*factors):
            return []
        text = args[0] if args else kwargs.get("equation")
        found: list[Found] = []
        for waiting in list(self._waiting):
            shared = [place for place, one in enumerate(around[:_NEAR]) if any(one is two for two in waiting.around)]
            match = _matched(waiting, factors[-2], factors[-1], text if isinstance(text, str) else None)
            if not shared or match is None:
                continue
            self._waiting.remove(waiting)
            found.append(Found(around[shared[0] :], match.scores if waiting.unchanged() else None))
        return found

    def _forget(self, now: int) -> None:
        self._waiting = [one for one in self._waiting if now - one.born <= _PATIENCE]


class _Match(NamedTuple):
    """Weights of a softmax that met values: what it was taken of, None if that cannot be told."""

    scores: Scores | None


def _matched(waiting: _Waiting, left: Tensor, right: Tensor, text: str | None) -> _Match | None:
    """The match, if one factor may be the weights and the other the values."""
    if left.ndim < 3 or right.ndim < 3:
        return None
    if text is not None:
        terms, _, out = text.replace(" ", "").partition("->")
        names = terms.split(",")
        if len(names) != 2 or not out:
            return None
        first, second = names
        for weights, values, of_weights, of_values in ((left, right, first, second), (right, left, second, first)):
            if weights.shape == waiting.scores.shape and not isinstance(values, nn.Parameter):
                match = _by_letters(waiting, of_weights, of_values, out)
                if match is not None:
                    return match
        if not _sums_the_keys(first, second, out):
            return None
    elif left.shape[-1] != right.shape[-2]:
        return None
    if not isinstance(right, nn.Parameter):
        match = _by_size(waiting, left, right)
        if match is not None:
            return match
    turned = waiting.axis == waiting.scores.ndim - 2 and text is None and not isinstance(left, nn.Parameter)
    several = right.shape[-1] > 1  # one column alone is rather a filter than a query
    return _by_size(waiting, right.mT, left.mT) if turned and several else None


def _by_size(waiting: _Waiting, weights: Tensor, values: Tensor) -> _Match | None:
    """The match of weights [..., t, s] that meet values [..., s, E], in which leading axes may have been reshaped."""
    scores = waiting.scores.movedim(waiting.axis, -1)
    rows, keys = math.prod(weights.shape[:-1]), weights.shape[-1]
    beside = scores.shape[-1] - keys  # a sink is one column more in the softmax
    if beside not in (0, 1) or math.prod(scores.shape[:-1]) != rows or weights.shape[0] != values.shape[0]:
        return None
    if scores.ndim >= 3 and weights.shape[-2] % scores.shape[-2]:
        return None  # each row has values of its own, as experts are weighted
    sink = None
    if beside:
        scores, sink = scores[..., :-1], scores[..., -1]
        if not waiting.result or _address(weights) != waiting.result or not sink.isfinite().all():
            return _Match(None)
    if scores.ndim < 3:
        scores = scores.reshape(weights.shape)
        sink = None if sink is None else sink.reshape(weights.shape[:-1])
    return _Match(Scores(scores, sink))


def _by_letters(waiting: _Waiting, weights: str, values: str, out: str) -> _Match | None:
    """The match [..., t, s] by the letters of an einsum: keys are summed, values have heads and such, not queries."""
    terms = weights, values, out
    if any("..." in one for one in terms):
        if not all(one.startswith("...") for one in terms):
            return None
        hidden = waiting.scores.ndim - len(weights) + 3
        weights, values, out = ("\0" * hidden + one[3:] for one in terms)
    key = weights[waiting.axis]
    shared = [place for place, one in enumerate(weights) if one in values and place != waiting.axis]
    asking = [place for place, one in enumerate(weights) if one not in values]
    summed = key in values and key not in out and key != "\0"
    if not summed or not asking or not all(weights[place] in out for place in (*shared, *asking)):
        return None
    scores = waiting.scores.permute(*shared, *asking, waiting.axis)
    return _Match(Scores(scores.flatten(len(shared), -2) if shared else scores.flatten(0, -2).unsqueeze(0)))


def _sums_the_keys(weights: str, values: str, out: str) -> bool:
    """Whether an einsum sums the last axis of its first factor away, and its second is the same for all queries."""
    query, key = weights[-2:] if len(weights) >= 2 else "??"
    return key in values and key not in out and query in out and query not in values


def _with_heads(scores: Tensor, around: Sequence[Running]) -> Tensor:
    """The scores as [..., H, T, S]; a module may have folded its heads into the axis before T.

    A module that says how many heads it has, or the one around it, is believed where that divides; else there is one.
    """
    if scores.ndim > 3:
        return scores
    for running in around[:2]:
        # Not by getattr: what a model computes when it is asked is none of our business.
        said = (vars(running.module).get(name) for name in _HEADS)
        heads = next((one for one in said if isinstance(one, int) and one > 0), None)
        if heads is not None and scores.shape[0] % heads == 0:
            return scores.unflatten(0, (-1, heads))
    return scores.unsqueeze(1)


def _strided(*tensors: Tensor) -> bool:
    return all(one.layout is torch.strided and not one.is_nested for one in tensors)


def _address(tensor: Tensor) -> int:
    """Where it lies; 0 for what has no place."""
    return tensor.data_ptr() if tensor.device.type != "meta" and has_numbers(tensor) else 0
