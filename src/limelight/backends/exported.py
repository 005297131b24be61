"""What runs while torch.export looks on: the textbook, in operators that every format has, for any length."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.backends.distances import distance_tile
from limelight.backends.protocol import Backend, Call, Result, heads_of
from limelight.contract import accumulation_dtype, exporting
from limelight.errors import ArgumentError
from limelight.masks.block import pick


class Exported(Backend):
    """softmax(score(q, k) + bias, over allowed keys) v, the whole matrix at once.

    As `reference`, but it looks at no number and no length, because an exported graph has none yet: NaN or inf at keys
    that the mask hides would reach the result.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name."""
        return "exported"

    def refusal(self, call: Call) -> str | None:
        """It runs only while something is exported, without dropout."""
        return None if exporting() else "nothing is being exported"

    def fastest(self, call: Call) -> bool:
        """There is no other."""
        return True

    def run(self, call: Call) -> Result:
        """Output, lse and weights."""
        if call.dropout:
            raise ArgumentError("dropout must be 0 in what is exported; it is on. Call model.eval() before.")
        if not call.normalizer.is_softmax:
            raise ArgumentError(f"normalizer must be softmax in what is exported; it is {call.normalizer!r}.")
        dtype, heads = accumulation_dtype(call.query.dtype), call.query.shape[1]
        query, key, value = (heads_of(one.to(dtype), heads) for one in (call.query, call.key, call.value))
        scores, block = self._scores(call, query, key), call.whole()
        if call.bias is not None:
            scores = scores + call.bias.to(dtype)
        if call.distances is not None:
            scores = scores + distance_tile(call.distances.to(dtype), block)
        if call.mask is not None:
            scores = torch.where(call.mask.tile(block), scores, -torch.inf)
        peak = scores.amax(-1, keepdim=True)
        sink = None if call.sink is None else pick(call.sink.to(dtype), 0, block.batch)[..., None, None]
        peak = peak if sink is None else torch.maximum(peak, sink)
        # A row that may attend to nothing has a peak of -inf, which would make NaN of -inf - peak.
        peak = torch.where(peak == -torch.inf, 0.0, peak)
        weights = torch.exp(scores - peak)
        total = weights.sum(-1, keepdim=True)
        total = total if sink is None else total + torch.exp(sink - peak)
        lse = (peak + total.log()).squeeze(-1)
        weights = weights / torch.where(total == 0, 1.0, total)
        return Result(torch.matmul(weights, value).to(call.value.dtype), lse, weights)

    def _scores(self, call: Call, query: Tensor, key: Tensor) -> Tensor:
        """The scores [n, H, t, s]."""
        scale, cap = call.score.plain_scale(query.shape[-1]), call.score.soft_cap()
        if scale is None:
            parameters = tuple(one.to(query.dtype) for one in call.score.parameters)
            return call.score.tile(query, key, parameters, call.whole())[0]
        scores = torch.matmul(query * scale, key.mT)
        return scores if cap is None else cap * torch.tanh(scores / cap)
