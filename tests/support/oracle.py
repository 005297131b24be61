"""Attention worked out row by row in float64, with nothing of the library in it.

Row i of head h gathers the keys that it may attend to and works with those alone: what the others hold cannot matter.
Gradients come from ordinary autograd through the gathering.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RowScore = Callable[[Tensor, Tensor, int, int, Tensor], Tensor]
"""(query row [D], keys [s, D], head, query position, key positions [s]) -> scores [s]."""


Normalize = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Scores of a row [s], a sink being the last -> its weights [s] and its threshold, []."""


def by_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """exp(s - lse), lse."""
    lse = torch.logsumexp(scores, 0)
    return torch.exp(scores - lse), lse


class Answer(NamedTuple):
    output: Tensor
    weights: Tensor
    lse: Tensor


def answer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: RowScore,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    sink: Tensor | None = None,
    normalize: Normalize = by_softmax,
) -> Answer:
    """Output [..., H, T, E], weights [..., H, T, S] before dropout, lse [..., H, T]; keep multiplies the weights.

    A sink is a logit of every row that is counted by the lse. `normalize` makes weights and a number like the lse.
    """
    lead, (H, T), (G, S), E = query.shape[:-3], query.shape[-3:-1], key.shape[-3:-1], value.shape[-1]
    full = (*lead, H, T, S)
    allowed = torch.ones(full, dtype=torch.bool) if allowed is None else allowed.expand(full)
    bias = None if bias is None else bias.expand(full)
    sink = None if sink is None else sink.expand(full[:-2])
    if bias is not None:
        allowed = allowed & (bias != -torch.inf)
    outputs, weights, lses = [], [], []
    for place in torch.cartesian_prod(*[torch.arange(n) for n in (*lead, H, T)]).reshape(-1, len(lead) + 2).tolist():
        *b, h, i = place
        columns = allowed[(*b, h, i)].nonzero().squeeze(-1)
        row = torch.zeros(S, dtype=torch.float64)
        if not len(columns):
            outputs.append(torch.zeros(E, dtype=torch.float64))
            weights.append(row)
            alone = torch.zeros(0, dtype=torch.float64) if sink is None else sink[(*b, h)][None]
            lses.append(normalize(alone)[1] if len(alone) else torch.tensor(-torch.inf, dtype=torch.float64))
            continue
        keys = key[(*b, h * G // H)][columns]
        scores = score(query[(*b, h, i)], keys, h, i, columns)
        if bias is not None:
            scores = scores + bias[(*b, h, i)][columns]
        share, lse = normalize(scores if sink is None else torch.cat((scores, sink[(*b, h)][None])))
        share = share[: len(columns)]
        kept = share if keep is None else share * keep[(*b, h, i)][columns]
        outputs.append((kept[:, None] * value[(*b, h * G // H)][columns]).sum(0))
        weights.append(row.index_put((columns,), share))
        lses.append(lse)
    return Answer(
        torch.stack(outputs).view(*full[:-1], E), torch.stack(weights).view(full), torch.stack(lses).view(full[:-1])
    )
