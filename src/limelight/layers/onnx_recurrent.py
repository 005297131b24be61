"""Recurrent layers as ONNX's own operators GRU and LSTM, for any length and any padding, while a model is exported.

torch unrolls them otherwise, to a graph of one length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""ONNX's order of the gates in torch's: GRU (r, z, n) -> (z, r, n), LSTM (i, f, g, o) -> (i, o, f, g)."""


def bidirectional(rnn: nn.GRU | nn.LSTM, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What `rnn` makes of padded sequences: x [B, S, .], counts [B] -> outputs [B, S, 2 h], last states [B, 2 h].

    Outputs at padded places are 0; the last states are those of both directions of the top layer.
    """
    kind = "LSTM" if isinstance(rnn, nn.LSTM) else "GRU"
    options: dict[str, Any] = {"direction": "bidirectional", "hidden_size": rnn.hidden_size}
    if kind == "GRU":
        options["linear_before_reset"] = 1  # torch's GRU resets after the product
    batch, length, _ = x.shape
    state = (2, batch, rnn.hidden_size)
    shapes = ((length, *state[:1], *state[1:]), *[state] * (2 if kind == "LSTM" else 1))
    x, last = x.transpose(0, 1), x
    for layer in range(rnn.num_layers):
        inputs = (x, *_weights(rnn, layer, _GATES[kind]), counts.to(torch.int32))
        outputs, last, *_ = torch.onnx.ops.symbolic_multi_out(
            kind, inputs, options, dtypes=(x.dtype,) * len(shapes), shapes=shapes
        )
        x = outputs.permute(0, 2, 1, 3).flatten(2)  # [S, 2, B, h] -> [S, B, 2 h]
    return x.transpose(0, 1), last.transpose(0, 1).flatten(1)


def _weights(rnn: nn.GRU | nn.LSTM, layer: int, gates: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """W [2, g h, .], R [2, g h, h] and B [2, 2 g h], both directions, the gates in ONNX's order."""

    def ordered(name: str) -> Tensor:
        parts = getattr(rnn, name).unflatten(0, (len(gates), rnn.hidden_size))
        return torch.stack([parts[gate] for gate in gates]).flatten(0, 1)

    ends = (f"l{layer}", f"l{layer}_reverse")
    return (
        torch.stack([ordered(f"weight_ih_{end}") for end in ends]),
        torch.stack([ordered(f"weight_hh_{end}") for end in ends]),
        torch.stack([torch.cat([ordered(f"bias_ih_{end}"), ordered(f"bias_hh_{end}")]) for end in ends]),
    )
