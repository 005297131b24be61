"""What attends without a call that could be caught: how it is recognised, and the words in which it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

PRODUCTS = frozenset(
    {torch.bmm, torch.baddbmm, torch.matmul, torch.einsum}
    | {Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm}
)
SOFTMAXES = frozenset({F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})
OPERATORS = (OpOverload, OpOverloadPacket)

BY_HAND = "it multiplies query and key and takes the softmax itself, and no function is called that could be caught"
NO_NUMBERS = "its attention runs on tensors without numbers of their own: nested, sparse, meta, fake, or of torch.func"
KERNEL = "it calls torch.ops.{}, a kernel whose arguments are not understood here"
FLEX = (
    "it calls flex_attention, which compiles score_mod and mask_mod into its kernel; limelight.attend takes them as "
    "tile_score and a mask"
)
COMPILED = (
    "its attention is inside a function compiled by torch.compile; inside torch.compiler.set_stance('force_eager') it "
    "makes calls that can be seen"
)


@dataclass(slots=True)
class Steps:
    """What a module has done so far that may be part of attention by hand.

    products: sizes of products of two batches of matrices; shares: rows and columns of softmaxes over the last axis.
    """

    products: set[tuple[int, int, int]] = field(default_factory=set)
    shares: set[tuple[int, int]] = field(default_factory=set)


def softmax(steps: Steps, args: Any, kwargs: Any, shares: Any) -> bool:
    """Whether a softmax is attention: over scores of the size of a product of query and key."""
    if not isinstance(shares, Tensor) or shares.ndim < 2:
        return False
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    if axis in (-1, shares.ndim - 1):
        steps.shares.add(_shares(shares))
    return shares.ndim >= 3 and (shares.numel(), shares.shape[-2], shares.shape[-1]) in steps.products


def product(steps: Steps, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether a product is attention: of weights of the size of a softmax, and values that the queries share.

    A table of parameters is no value: a softmax over classes times a table is a mean of embeddings.
    """
    factors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if not isinstance(result, Tensor) or len(factors) < 2 or any(one.ndim < 3 for one in factors):
        return False
    if result.ndim >= 3:
        # Reshaping the leading axes leaves these as they are.
        steps.products.add((result.numel(), result.shape[-2], result.shape[-1]))
    weights, values = factors[-2:]
    rows, keys = _shares(weights)
    # A sink is one column more in the softmax.
    if isinstance(values, nn.Parameter) or not {(rows, keys), (rows, keys + 1)} & steps.shares:
        return False
    text = args[0] if args else kwargs.get("equation")
    return _sums_the_keys(text) if isinstance(text, str) else weights.shape[-1] == values.shape[-2]


def attends(operator: OpOverload | OpOverloadPacket) -> bool:
    """Whether the name of an operator says that it is attention, forward; ours are heard of elsewhere."""
    space, _, name = str(operator).partition(".")
    attention = "attention" in name or "attn" in name
    return attention and space != "limelight" and not any(part in name for part in ("backward", "choice"))


def scripted_attention(module: torch.jit.ScriptModule) -> bool:
    """Whether the code of a scripted module attends: it calls attention, or a softmax and a product."""
    graph = str(module.inlined_graph) if hasattr(module, "forward") else ""
    named = "attention" in graph
    return named or ("aten::softmax" in graph and any(f"aten::{one}(" in graph for one in ("matmul", "bmm", "einsum")))


def _shares(weights: Tensor) -> tuple[int, int]:
    """How many rows of how many weights."""
    return math.prod(weights.shape[:-1]), weights.shape[-1]


def _sums_the_keys(equation: str) -> bool:
    """Whether an einsum sums the last axis of its first factor away, and its second is the same for all queries."""
    left, _, out = equation.replace(" ", "").partition("->")
    weights, _, values = left.partition(",")
    query, key = weights[-2:] if len(weights) >= 2 else "??"
    return key in values and key not in out and query in out and query not in values
