"""A view and the matrix that it stands for, worked out pair by pair in float64 and differentiable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from tests.support.inputs import SCORES, ScoreCase, Sizes, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.normalizers import NORMALIZERS
from tests.support.oracle import answer, by_softmax
from torch import Tensor

import limelight
from limelight.view import AttentionView

BUDGETS = (1, 60, 1 << 21)


class ViewCase(NamedTuple):
    """`leaves` are query, key and the score's tensors, of which `weights` [..., H, T, S] and the view are made."""

    view: AttentionView
    weights: Tensor
    leaves: tuple[Tensor, ...]
    sizes: Sizes
    score: ScoreCase


@st.composite
def view_cases(
    draw: st.DrawFn, *, scores: tuple[str, ...] = SCORES, square: bool = False, lead: tuple[int, ...] | None = None
) -> ViewCase:
    """Any score, mask and normalizer, a bias or none, shared key heads or not, zero to two leading axes, both backends.

    To be drawn inside of `blocks_of`.
    """
    if lead is None:
        lead = draw(st.sampled_from(((), (2,), (1,), (2, 2))))
    heads, groups = draw(st.sampled_from(((2, 1), (3, 3))))
    sizes = Sizes(lead=lead, H=heads, G=groups, T=5 if square else 3, S=5, D=3, E=2)
    if not square and draw(st.booleans()):
        sizes.S = 2
    score = score_case(draw(st.sampled_from(scores)), sizes)
    mask = draw(st.none() | mask_cases(sizes))
    query, key, value = tensors(sizes, seed=draw(st.integers(0, 9)))
    leaves = (query, key, *score.leaves)
    bias = None
    if draw(st.booleans()):
        bias = torch.randn(sizes.full[-3:], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        bias.requires_grad_()
        leaves = (*leaves, bias)
    normalizer, normalize = draw(st.sampled_from(((None, by_softmax), *NORMALIZERS.values())))
    allowed = None if mask is None else mask.truth
    truth = answer(query, key, value, score.oracle(*score.leaves), allowed, bias, normalize=normalize)
    _, view = limelight.look(
        query,
        key,
        value,
        score=score.make(*score.leaves),
        mask=None if mask is None else mask.mask,
        bias=bias,
        normalizer=normalizer,
        backend=draw(st.sampled_from(("reference", "streaming"))),
    )
    return ViewCase(view, truth.weights, leaves, sizes, score)


def gradients(output: Tensor, leaves: tuple[Tensor, ...], seed: int = 3) -> list[Tensor]:
    """Gradients of a sum of the output with random factors; zeros where there is no path."""
    factors = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(seed))
    if not output.requires_grad:
        return [torch.zeros_like(one) for one in leaves]
    found = torch.autograd.grad((output * factors).sum(), leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True)]


def pooled(weights: Tensor, rows: int, columns: int, reduce: str) -> Tensor:
    """A matrix pooled cell by cell, from the definition."""
    *lead, t, s = weights.shape
    rows, columns = min(rows, t), min(columns, s)
    out = torch.zeros(*lead, rows, columns, dtype=weights.dtype)
    for r in range(rows):
        for c in range(columns):
            cell = weights[..., r * t // rows : (r + 1) * t // rows, c * s // columns : (c + 1) * s // columns]
            out[..., r, c] = cell.mean((-2, -1)) if reduce == "mean" else cell.amax((-2, -1))
    return out
