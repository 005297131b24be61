"""What the mask functions of transformers say, in our masks.

A mask function answers for one pair of places: f(batch, head, query place, key place). Those that transformers makes
itself are recognised by their code and become bands and segments; any other is asked block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor

from limelight.interop.torch_attention import padding_mask
from limelight.masks import Block, Mask, band, segments
from limelight.masks.block import positions
from limelight.masks.protocol import remembered

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Asked(Mask):
    """A mask function, asked for the pairs of a block. `by_pair`: it takes single pairs, and is mapped over them."""

    function: Function
    query_offset: int
    key_offset: int
    by_pair: bool

    def tile(self, block: Block) -> Tensor:
        """Bool [n, h, t, s], or what broadcasts to it."""
        return remembered(self, block, self._tile)

    def _tile(self, block: Block) -> Tensor:
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
        from transformers import masking_utils

        batch, head = (positions(one, block.device) for one in (block.batch, block.head))
        query, key = block.row_index() + self.query_offset, block.column_index() + self.key_offset
        if self.by_pair:
            with TransformGetItemToIndex():
                return masking_utils._vmap_expansion_sdpa(self.function)(batch, head, query, key)
        return self.function(
            batch[:, None, None, None], head[None, :, None, None], query[None, None, :, None], key[None, None, None, :]
        )

    def rules_out(self, block: Block) -> bool:
        """Not known without asking for every pair."""
        return False

    def allows_all(self, block: Block) -> bool:
        """Not known without asking for every pair."""
        return False

    def check(self, block: Block) -> None:
        """Transformers makes it for the call."""

    def per_key(self) -> bool:
        """Not known."""
        return False


def described(function: Function, offsets: tuple[int, int], padding: Tensor | None, by_pair: bool) -> Mask | None:
    """The mask that a function and the padding [B, S] (True: no padding) stand for; None if it allows everything.

    Arguments:
        function: f(batch, head, query place, key place) -> bool.
        offsets: the places of the first query and the first key.
        padding: which keys are there.
        by_pair: whether the function takes single pairs only.
    """
    recognised = _parts(function, offsets)
    parts: list[Mask] = [Asked(function, *offsets, by_pair)] if recognised is None else recognised
    there = None if padding is None else padding_mask(padding)
    if there is not None:
        parts.append(there)
    return reduce(and_, parts) if parts else None


def _parts(function: Function, offsets: tuple[int, int]) -> list[Mask] | None:
    """The masks whose conjunction a function is; None if it is not recognised."""
    known, held = _known(), _held(function)
    # Query i and key j stand at distance j - i + shift.
    shift = offsets[1] - offsets[0]
    kind = known.get(getattr(function, "__code__", None))
    if kind == "all":
        return []
    if kind == "causal":
        return [band(high=-shift)]
    if kind == "window":
        return [band(low=1 - held["sliding_window"] - shift)]
    if kind == "both sides":
        width = held["sliding_window"]
        return [band(-width - shift, width - shift)]
    if kind == "and":
        parts = [_parts(one, offsets) for one in held["mask_functions"]]
        return None if None in parts else [one for part in parts for one in part or ()]
    if kind == "packed":
        return [segments(held["packed_sequence_mask"])]
    if kind == "packed places":
        # Places count from each sequence's start, and only pairs of one sequence are left: their distance is the same.
        return _parts(held["mask_function"], offsets)
    return None


@cache
def _known() -> dict[Any, str]:
    """The code of the mask functions that transformers makes -> what they say."""
    from transformers import masking_utils as made

    functions = {
        "all": made.bidirectional_mask_function,
        "causal": made.causal_mask_function,
        "window": made.sliding_window_overlay(1),
        "both sides": made.sliding_window_bidirectional_overlay(1),
        "and": made.and_masks(made.causal_mask_function),
        "packed": made.packed_sequence_mask_function(torch.zeros(1, 1)),
        "packed places": made.remap_positions_for_packed_sequence(made.causal_mask_function, torch.zeros(1, 1)),
    }
    return {function.__code__: name for name, function in functions.items()}


def _held(function: Function) -> dict[str, Any]:
    """What a function holds of the function that made it, by name."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    return (
        {} if code is None else {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    )
