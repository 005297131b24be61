"""The textbook: the full matrix, in plain torch and ordinary autograd. The definition of what a call means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limelight.backends.distances import distance_tile
from limelight.backends.dropout import kept_over_rate
from limelight.backends.protocol import Backend, Call, Result, heads_of
from limelight.contract import accumulation_dtype
from limelight.masks import Block
from limelight.masks.block import pick
from limelight.numerics import no_autocast, transformed


class Reference(Backend):
    """normalizer(score(q, k) + bias, over allowed keys) v, for any dtype."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its name."""
        return "reference"

    def refusal(self, call: Call) -> str | None:
        """It runs everything."""
        return None

    def fastest(self, call: Call) -> bool:
        """Whenever the backends before it are not."""
        return True

    def run(self, call: Call) -> Result:
        """The whole matrix at once; row by row where NaN or inf could stand behind a mask."""
        with no_autocast(call.query):
            return self._run(call)

    def _run(self, call: Call) -> Result:
        dtype, heads = accumulation_dtype(call.query.dtype), call.query.shape[1]
        query, key, value = (heads_of(tensor.to(dtype), heads) for tensor in (call.query, call.key, call.value))
        bias = None if call.bias is None else call.bias.to(dtype)
        block = call.whole()
        if call.distances is not None:
            bias = distance_tile(call.distances.to(dtype), block)[None]
        careful = call.may_forbid() and not transformed()  # under torch.func nobody can look at numbers
        if careful and not all(bool(tensor.isfinite().all()) for tensor in (query, key, value)):
            output, lse = _row_by_row(call, query, key, value, bias)
        else:
            forbidden = None if call.mask is None else ~call.mask.tile(block)
            output, lse = _rows(call, query, key, value, bias, forbidden, block)
        return Result(output.to(call.value.dtype), lse)


def _rows(
    call: Call, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, forbidden: Tensor | None, block: Block
) -> tuple[Tensor, Tensor]:
    """Output [n, H, t, E] and threshold [n, H, t], softmax's lse, of rows, from all the keys given."""
    parameters = tuple(parameter.to(query.dtype) for parameter in call.score.parameters)
    sink = None if call.sink is None else pick(call.sink.to(query.dtype), 0, block.batch)[..., None, None]
    scores, _ = call.score.tile(query, key, parameters, block)
    if bias is not None:
        # NaN - inf is NaN, but a bias of -inf forbids.
        scores = (scores + bias).masked_fill(bias == -torch.inf, -torch.inf)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -torch.inf)
    if not key.shape[2]:
        # One key that may not be attended to is as good as none.
        _, threshold = call.normalizer.textbook(functional.pad(scores, (0, 1), value=-torch.inf), sink)
        return torch.matmul(scores, value), threshold
    weights, threshold = call.normalizer.textbook(scores, sink)
    if call.dropout:
        weights = weights * kept_over_rate(block, call.dropout, call.seed, weights.dtype)
    # Against 0 · NaN in the gradient of what rows without keys took no part in.
    keyless = scores.detach().amax(-1, keepdim=True) == -torch.inf
    return torch.matmul(weights, value).masked_fill(keyless, 0.0), threshold


def _row_by_row(call: Call, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row from the keys that it may attend to and from nothing else. Slow, and right whatever the others hold."""
    n, heads, queries, _ = query.shape
    allowed = torch.ones(n, heads, queries, key.shape[2], dtype=torch.bool, device=query.device)
    if call.mask is not None:
        allowed = allowed & call.mask.tile(call.whole())
    if bias is not None:
        allowed = allowed & (bias != -torch.inf)
        bias = bias.expand(allowed.shape)
    outputs, lses = [], []
    for b in range(n):
        for h in range(heads):
            # The score's parameters may have a head axis, so the other heads stay, as zeros.
            alone = (0, 0, 0, 0, h, heads - 1 - h)
            for i in range(queries):
                columns = allowed[b, h, i].nonzero().squeeze(-1)
                # A row without keys is tied to the graph, but what it holds takes no part.
                row = query[b, h, i] if columns.numel() else torch.zeros_like(query[b, h, i]) + query[b, h, i][:0].sum()
                output, lse = _rows(
                    call,
                    functional.pad(row[None, None, None], alone),
                    functional.pad(key[b, h, columns][None, None], alone),
                    functional.pad(value[b, h, columns][None, None], alone),
                    None if bias is None else functional.pad(bias[b, h, i, columns][None, None, None], alone),
                    None,
                    call.block(slice(b, b + 1), slice(i, i + 1), columns),
                )
                outputs.append(output[0, h])
                lses.append(lse[0, h])
    output = torch.cat(outputs).view(n, heads, queries, value.shape[-1])
    return output, torch.cat(lses).view(n, heads, queries)
