"""AttentionView: the attention matrix as a virtual array that is computed where it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limelight.backends.protocol import Call


class Observation(NamedTuple):
    k: int


def top(k: int) -> Observation:
    return Observation(k)


class Links(NamedTuple):
    indices: Tensor
    weights: Tensor


def check_observations(observe: Sequence[str | Observation]) -> tuple[str | Observation, ...]:
    return tuple(observe)


class AttentionView:
    def __init__(self, call: Call, lse: Tensor) -> None:
        self._call, self._lse = call, lse

    def gather(self, observe: tuple[str | Observation, ...]) -> None: ...

    def dense(self) -> Tensor:
        from limelight.backends.tiles import key_piece, query_piece, score_tile

        call = self._call
        block = call.whole()
        q, k = query_piece(call.query, block, self._lse.dtype), key_piece(call.key, block, self._lse.dtype)
        s = score_tile(call, q, k, call.score.parameters, block, True).scores
        lse = self._lse.unsqueeze(-1)
        p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf))
        return p.reshape(call.lead + tuple(p.shape[1:]))
