"""Calls that the C++ kernels take, in float64, as a hypothesis strategy."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from limelight import causal, dense, lengths, segments, window

WIDTHS = (1, 3, 8, 13, 31, 64, 97)
LENGTHS = (1, 2, 7, 24, 41, 131, 200, 389, 577)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(draw, seed, n, *sizes):
    """Ids of packed sequences; keys may have other lengths than queries, and queries ids that no key has."""
    lead = draw(st.sampled_from(((), (n,))))
    return [(random(seed + place, *lead, size) > 1.3).cumsum(-1) for place, size in enumerate(sizes)]


@st.composite
def cases(draw, additive=False, few=False):
    """(query, key, value) in float64, keyword arguments of `attend`; `few`: queries, and no dropout, as in decoding."""
    n, G = draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2)))
    shared = draw(st.sampled_from((1, 2, 3, 8, 19) if few else (1, 3)))
    H = G * shared
    most = 60 if additive else 600
    T, S = (draw(st.sampled_from([one for one in LENGTHS if one < most])) for _ in "TS")
    if few:
        T = draw(st.integers(1, max(12 // shared, 2 if shared <= 8 else 1)))
    D, E = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS))
    seed = draw(st.integers(0, 99))
    query, key, value = random(seed, n, H, T, D), random(seed + 1, n, G, S, D), random(seed + 2, n, G, S, E)
    masks = {
        "causal": lambda: causal(draw(st.sampled_from(("end", "start")))),
        "window": lambda: window(draw(st.integers(0, 9)), draw(st.integers(0, 9))),
        "lengths": lambda: lengths(torch.tensor([draw(st.integers(0, S)) for _ in range(n)])),
        "segments": lambda: segments(*ids(draw, seed + 6, n, T, S)),
        "dense": lambda: dense(random(seed + 3, draw(st.sampled_from((1, n))), 1, T, S) > -0.5),
    }
    mask = None
    for name in draw(st.lists(st.sampled_from(sorted(masks)), unique=True, max_size=3)):
        mask = masks[name]() if mask is None else mask & masks[name]()
    arguments = {"mask": mask}
    if draw(st.booleans()):
        bias = random(seed + 4, *(draw(st.sampled_from((1, size))) for size in (n, H, T, S)))
        arguments["bias"] = bias.masked_fill(bias > 1.5, -math.inf)
    if draw(st.booleans()):
        arguments["sink"] = random(seed + 5, draw(st.sampled_from((1, n))), draw(st.sampled_from((1, H))))
    if not few and draw(st.booleans()):
        arguments |= {"dropout": 0.3, "seed": draw(st.integers(0, 2**63 - 1))}
    return (query, key, value), arguments
