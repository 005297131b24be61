"""Masks beside their truth, worked out pair by pair, and a hypothesis strategy for masks made of masks."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from tests.support.inputs import Sizes
from torch import Tensor

import limelight
from limelight.masks import Mask


class MaskCase(NamedTuple):
    mask: Mask
    truth: Tensor
    """Bool [..., H, T, S]."""


def _pairs(sizes: Sizes, rule: object) -> Tensor:
    truth = torch.zeros(sizes.full, dtype=torch.bool)
    for place in itertools.product(*map(range, sizes.full)):
        truth[place] = rule(place)  # type: ignore[operator]
    return truth


def causal_case(sizes: Sizes, align: str = "end") -> MaskCase:
    move = sizes.S - sizes.T if align == "end" else 0
    return MaskCase(limelight.causal(align), _pairs(sizes, lambda p: p[-1] <= p[-2] + move))


def window_case(sizes: Sizes, before: int, after: int, align: str = "end") -> MaskCase:
    move = sizes.S - sizes.T if align == "end" else 0
    return MaskCase(
        limelight.window(before, after, align=align),
        _pairs(sizes, lambda p: p[-2] + move - before <= p[-1] <= p[-2] + move + after),
    )


def lengths_case(sizes: Sizes, counts: Tensor) -> MaskCase:
    axes = counts.ndim
    return MaskCase(limelight.lengths(counts), _pairs(sizes, lambda p: p[-1] < int(counts[p[:axes]])))


def dense_case(sizes: Sizes, allowed: Tensor) -> MaskCase:
    return MaskCase(limelight.dense(allowed), allowed.expand(sizes.full).clone())


def band_case(sizes: Sizes, low: int | None, high: int | None) -> MaskCase:
    least, most = -1000 if low is None else low, 1000 if high is None else high
    return MaskCase(limelight.band(low, high), _pairs(sizes, lambda p: p[-2] + least <= p[-1] <= p[-2] + most))


def segments_case(sizes: Sizes, query_ids: Tensor, key_ids: Tensor) -> MaskCase:
    axes = query_ids.ndim - 1
    return MaskCase(
        limelight.segments(query_ids, key_ids),
        _pairs(sizes, lambda p: query_ids[(*p[:axes], p[-2])] == key_ids[(*p[:axes], p[-1])]),
    )


def interval_case(sizes: Sizes, first: Tensor, last: Tensor) -> MaskCase:
    axes = first.ndim - 1
    return MaskCase(
        limelight.interval(first, last),
        _pairs(sizes, lambda p: first[(*p[:axes], p[-2])] <= p[-1] <= last[(*p[:axes], p[-2])]),
    )


def combine(first: MaskCase, second: MaskCase, sign: str) -> MaskCase:
    if sign == "&":
        return MaskCase(first.mask & second.mask, first.truth & second.truth)
    return MaskCase(first.mask | second.mask, first.truth | second.truth)


@st.composite
def mask_cases(draw: st.DrawFn, sizes: Sizes, depth: int = 2) -> MaskCase:
    """Any mask, combined up to `depth` deep."""
    if depth and draw(st.booleans()):
        first = draw(mask_cases(sizes, depth - 1))
        if draw(st.booleans()):
            return MaskCase(~first.mask, ~first.truth)
        return combine(first, draw(mask_cases(sizes, depth - 1)), draw(st.sampled_from("&|")))
    kind = draw(st.sampled_from(("causal", "window", "band", "lengths", "dense", "segments", "interval")))
    align = draw(st.sampled_from(("end", "start")))
    if kind == "causal":
        return causal_case(sizes, align)
    if kind == "window":
        return window_case(sizes, draw(st.integers(0, 4)), draw(st.integers(0, 4)), align)
    if kind == "band":
        return band_case(sizes, *(draw(st.none() | st.integers(-4, 6)) for _ in range(2)))
    if kind == "segments":
        maker = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        shape = sizes.lead[: draw(st.integers(0, len(sizes.lead)))]
        query, key = (torch.randint(0, 3, (*shape, size), generator=maker) for size in (sizes.T, sizes.S))
        packed = draw(st.booleans())  # or in any order
        return segments_case(sizes, *((query.sort().values, key.sort().values) if packed else (query, key)))
    if kind == "interval":
        maker = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        shape = (*sizes.lead[: draw(st.integers(0, len(sizes.lead)))], sizes.T)
        first = torch.randint(-3, sizes.S + 2, shape, generator=maker)
        return interval_case(sizes, first, first + torch.randint(-1, 5, shape, generator=maker))
    if kind == "lengths":
        shape = sizes.lead[: draw(st.integers(1, len(sizes.lead)))] if sizes.lead else (1,)
        if not sizes.lead:
            return causal_case(sizes, align)
        maker = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        return lengths_case(sizes, torch.randint(0, sizes.S + 1, shape, generator=maker))
    maker = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = [size if draw(st.booleans()) else 1 for size in sizes.full]
    return dense_case(sizes, torch.rand(shape, generator=maker) < 0.6)
