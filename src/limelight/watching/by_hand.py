"""Attention by hand, a softmax of scores and a product with values: how it is recognised among a module's steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limelight.contract import accumulation_dtype
from limelight.numerics import has_numbers
from limelight.scores import dot

PRODUCTS = frozenset(
    {torch.bmm, torch.baddbmm, torch.matmul, torch.einsum}
    | {Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm}
)
SOFTMAXES = frozenset({F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""What modules call the number of their heads."""

_MOST_WAITING = 4
"""Softmaxes that a module remembers until it is known what comes of them."""


class Scores(NamedTuple):
    """What a softmax was taken of, [..., T, S], and the logit beside them, [..., T], if there is one."""

    scores: Tensor
    sink: Tensor | None = None

    def in_our_terms(self, module: nn.Module) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Query, key and options of `look` with the same weights: the scores are a bias, and the dot product is 0.

        A sink is 0 as well, and the scores of a row are moved by as much, which leaves its weights as they are.
        """
        bias = self.scores if self.sink is None else self.scores - self.sink.unsqueeze(-1)
        bias = _with_heads(bias, module)
        zero = bias.new_zeros(1, dtype=accumulation_dtype(bias.dtype))
        query, key = zero.expand(*bias.shape[:-1], 1), zero.expand(*bias.shape[:-2], bias.shape[-1], 1)
        sink = None if self.sink is None else zero.expand(bias.shape[-3])
        return query, key, {"score": dot(1.0), "mask": None, "bias": bias, "sink": sink}


@dataclass(slots=True)
class Waiting:
    """A softmax of which it is not known yet whether it is attention: what it was taken of, the last axis, and where
    its result lies. None once that is known.
    """

    scores: Tensor | None
    result: int


@dataclass(slots=True)
class Steps:
    """What a module has done so far that may be part of attention by hand.

    products: sizes of products of two batches of matrices; waiting: softmaxes by rows and columns.
    """

    products: set[tuple[int, int, int]] = field(default_factory=set)
    waiting: dict[tuple[int, int], Waiting] = field(default_factory=dict)


def softmax(near: list[Steps], args: Any, kwargs: Any, shares: Any) -> tuple[int, Scores] | None:
    """If a softmax is attention, over scores of the size of a product of query and key: whose, and these scores.

    near: the steps of the module that takes it, and of those around it that may have a part in it.
    """
    scores = args[0] if args else kwargs.get("input")
    if not isinstance(shares, Tensor) or not isinstance(scores, Tensor) or not 2 <= scores.ndim == shares.ndim:
        return None
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    if not isinstance(axis, int) or not scores.numel():
        return None
    size = scores.numel(), scores.shape[-2], scores.shape[-1]
    if scores.ndim >= 3 and axis in (-1, scores.ndim - 1):
        for place, steps in enumerate(near):
            if size in steps.products:
                return place, Scores(scores)
    scores = scores.movedim(axis, -1)
    waiting = Waiting(scores, _address(shares))
    for steps in near:
        steps.waiting.pop(_rows(scores), None)  # the newest is the last
        steps.waiting[_rows(scores)] = waiting
        if len(steps.waiting) > _MOST_WAITING:
            del steps.waiting[next(iter(steps.waiting))]
    return None


def product(near: list[Steps], args: Any, kwargs: Any, result: Any) -> tuple[int, Scores | None] | None:
    """If a product is attention, of weights from a softmax and values that the queries share: whose, and its scores.

    A table of parameters is no value: a softmax over classes times a table is a mean of embeddings. The scores are
    None where the softmax had a column more, and it is not the last.
    """
    factors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if not isinstance(result, Tensor) or len(factors) < 2 or any(one.ndim < 3 for one in factors):
        return None
    if result.ndim >= 3:
        # Reshaping the leading axes leaves these as they are.
        for steps in near:
            steps.products.add((result.numel(), result.shape[-2], result.shape[-1]))
    weights, values = factors[-2:]
    text = args[0] if args else kwargs.get("equation")
    sums = _sums_the_keys(text) if isinstance(text, str) else weights.shape[-1] == values.shape[-2]
    if isinstance(values, nn.Parameter) or not sums:
        return None
    rows, keys = _rows(weights)
    for place, steps in enumerate(near):
        for beside in (0, 1):  # a sink is one column more in the softmax
            waiting = steps.waiting.pop((rows, keys + beside), None)
            if waiting is not None and waiting.scores is not None:
                scores, waiting.scores = waiting.scores, None
                return place, _parted(scores, beside, weights, waiting.result)
    return None


def _parted(scores: Tensor, beside: int, weights: Tensor, result: int) -> Scores | None:
    """The scores of the weights that met the values, in their shape where they had no axis for the queries."""
    sink = None
    if beside:
        if not result or _address(weights) != result:
            return None
        scores, sink = scores[..., :-1], scores[..., -1]
    if scores.ndim < 3:
        scores = scores.reshape(weights.shape)
        sink = None if sink is None else sink.reshape(weights.shape[:-1])
    return Scores(scores, sink)


def _with_heads(scores: Tensor, module: nn.Module) -> Tensor:
    """The scores as [..., H, T, S]; a module may have folded its heads into the axis before T.

    A module that says how many heads it has is believed where that divides; else there is one.
    """
    if scores.ndim > 3:
        return scores
    named = (getattr(module, name, None) for name in _HEADS)
    heads = next((one for one in named if isinstance(one, int) and one > 0), 1)
    return scores.unflatten(0, (-1, heads)) if scores.shape[0] % heads == 0 else scores.unsqueeze(1)


def _address(tensor: Tensor) -> int:
    """Where it lies; 0 for what has no place."""
    if torch.compiler.is_dynamo_compiling() or tensor.device.type == "meta" or not has_numbers(tensor):
        return 0
    return tensor.data_ptr()


def _rows(weights: Tensor) -> tuple[int, int]:
    """How many rows of how many weights."""
    return math.prod(weights.shape[:-1]), weights.shape[-1]


def _sums_the_keys(equation: str) -> bool:
    """Whether an einsum sums the last axis of its first factor away, and its second is the same for all queries."""
    left, _, out = equation.replace(" ", "").partition("->")
    weights, _, values = left.partition(",")
    query, key = weights[-2:] if len(weights) >= 2 else "??"
    return key in values and key not in out and query in out and query not in values
