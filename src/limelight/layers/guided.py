"""The log weights of chosen links, for guided alignment."""

import math

import torch
from torch import Tensor

from limelight.attend import look
from limelight.masks import Mask
from limelight.normalizers import Normalizer
from limelight.scores import Score


def link_log_weights(
    query: Tensor,
    key: Tensor,
    links: Tensor,
    *,
    score: Score | None = None,
    mask: Mask | None = None,
    normalizer: Normalizer | None = None,
) -> Tensor:
    """The log of the mean over the heads of the weights of single links, log 1/H Σ_h w_hp, [P]; differentiable.

    Memory grows with P and the widths, not with T x S: `AttentionView.log_prob` of a view that has no values to weigh.

    Args:
        query: [B, H, T, D].
        key: [B, G, S, D].
        links: int64 [P, 3], (row of the batch, query, key); the mask must allow them.
        score: as for `attend`.
        mask: as for `attend`.
        normalizer: as for `attend`.
    """
    _, view = look(query, key, key[..., :1], score=score, mask=mask, normalizer=normalizer)
    heads = torch.arange(query.shape[1], device=links.device).repeat_interleave(len(links))
    row, target, source = links.repeat(query.shape[1], 1).unbind(-1)
    log_weights = view.log_prob(torch.stack([row, heads, target, source], -1))
    if query.shape[1] == 1:
        return log_weights
    return log_weights.unflatten(0, (query.shape[1], -1)).logsumexp(0) - math.log(query.shape[1])
