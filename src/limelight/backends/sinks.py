"""The gradient of a sink: a logit of each row that takes its share of the softmax and gives no value."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.normalizers import Normalizer
from limelight.numerics import excess


def sink_share(sink: Tensor, lse: Tensor) -> Tensor:
    """The sinks' own weights exp(sink - lse), [N, H, T]; 0 where there is none (-inf)."""
    sink = sink.to(lse.dtype).unsqueeze(-1)
    return torch.exp(sink - lse).masked_fill(sink == -torch.inf, 0.0)


def sink_slopes(normalizer: Normalizer, sink: Tensor, threshold: Tensor, rest: Tensor | None = None) -> Tensor:
    """The slopes f'(sink - threshold), [N, H, T], with which a sink takes part: for softmax `sink_share`."""
    sink = sink.to(threshold.dtype).unsqueeze(-1)
    slopes = normalizer.slopes(normalizer.weights(excess(sink, threshold, rest)))
    return slopes.masked_fill(sink == -torch.inf, 0.0)


def sink_gradient(sink: Tensor, share: Tensor, delta: Tensor) -> Tensor:
    """-Σ_i share_i delta_i over the rows, delta_i = Σ_e o_ie (d o)_ie - (d lse)_i.

    Shapes: sink [N or 1, H or 1]; share and delta [N, H, T]. Rows without keys must not bring NaN in their delta.
    """
    return (share * delta).sum(-1).neg().sum_to_size(sink.shape).to(sink.dtype)


def row_products(output: Tensor, to_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ_e o_e (d o)_e, [N, H, T]; NaN that comes back to an output of 0, as that of a row without keys, counts as 0."""
    output = output.to(dtype)
    return (output * to_output.to(dtype)).masked_fill_(output == 0.0, 0.0).sum(-1)
