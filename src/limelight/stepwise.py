"""One call of `attend` in separate steps, to look at: scores, masked scores, weights, output."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limelight.attend import look
from limelight.backends.distances import distance_tile
from limelight.backends.protocol import heads_of
from limelight.biases import Bias
from limelight.masks import Mask
from limelight.normalizers import Normalizer
from limelight.scores import Score


class Steps(NamedTuple):
    """What each step of a call gave.

    Attributes:
        scores: score(q_i, k_j) of every pair, scaled and capped as the score says, [..., H, T, S].
        masked: the same with the bias added, and -inf where a query may not attend to a key.
        weights: softmax over the keys, or what another normalizer makes of `masked`, [..., H, T, S].
        output: weights times values, [..., H, T, E].
    """

    scores: Tensor
    masked: Tensor
    weights: Tensor
    output: Tensor


def steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    mask: Mask | None = None,
    bias: Tensor | Bias | None = None,
    sink: Tensor | None = None,
    normalizer: Normalizer | None = None,
) -> Steps:
    """The call of `attend` with these arguments, one step after the other, by the reference backend.

    It holds the matrix of all queries and keys several times: for small examples and for teaching. The output is that
    of `attend`. Differentiable.

    Arguments and errors: as `attend`.

    Example: `steps(q, k, v, mask=causal()).masked` with q [1, 1, 5, 64].
    """
    options = {"score": score, "mask": mask, "bias": bias, "sink": sink, "normalizer": normalizer}
    output, view = look(query, key, value, **options, backend="reference")
    call, block = view.sound_call(), view.sound_call().whole()
    heads = call.query.shape[1]
    query, key = (heads_of(one.to(view.dtype), heads) for one in (call.query, call.key))
    parameters = tuple(parameter.to(view.dtype) for parameter in call.score.parameters)
    scores, _ = call.score.tile(query, key, parameters, block)
    masked = scores
    added = call.bias if call.distances is None else distance_tile(call.distances, block)[None]
    if added is not None:
        added = added.to(view.dtype)
        masked = (masked + added).masked_fill(added == -torch.inf, -torch.inf)
    if call.mask is not None:
        masked = masked.masked_fill(~call.mask.tile(block), -torch.inf)
    return Steps(scores.reshape(view.shape), masked.reshape(view.shape), view.dense(limit=None), output)
