"""Recurrent parts: a bidirectional encoder and a stack of cells that is stepped by hand."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers import onnx_recurrent
from limelight.layers.dropout import Dropout
from limelight.layers.gathered import GatheredLinear

Cell = Literal["gru", "lstm"]


def check_cell(cell: str) -> None:
    """Raise ArgumentError for a cell that is neither "gru" nor "lstm"."""
    if cell not in ("gru", "lstm"):
        raise ArgumentError(f"cell: must be 'gru' or 'lstm', got {cell!r}")


class BidirectionalEncoder(nn.Module):
    """Forward and backward recurrent layers, their states side by side: h_s = [→h_s; ←h_s].

    Bahdanau et al. (2014), section 3.2.

    Args:
        cell: "gru" (Cho et al. 2014) or "lstm" (Hochreiter and Schmidhuber 1997).
        input_width: the width of the embedded source.
        hidden: the width of each direction; the memory is 2 · hidden wide.
        layers: the number of layers.
        dropout: the share of units dropped between layers in training.
    """

    def __init__(self, cell: Cell, input_width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        check_cell(cell)
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn = kind(
            input_width,
            hidden,
            num_layers=layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )

    def forward(self, embedded: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; padding changes nothing and its outputs are 0.

        Args:
            embedded: [B, S, input_width].
            source_lengths: [B], how many positions of each row are real.

        Returns:
            memory [B, S, 2 · hidden]; per sentence the last forward and the first backward state of the top layer, side
            by side, [B, 2 · hidden].
        """
        if torch.onnx.is_in_onnx_export():
            return onnx_recurrent.bidirectional(self.rnn, embedded, source_lengths)
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, source_lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, state = self.rnn(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=embedded.shape[1])
        hidden = state[0] if isinstance(state, tuple) else state  # [2 · layers, B, hidden]
        return memory, torch.cat([hidden[-2], hidden[-1]], -1)


class RecurrentStack(nn.Module):
    """A stack of GRU or LSTM layers with two ways to run it: one step, or a whole sequence at once.

    The state is one tensor [B, layers, W]: W is `hidden` for a GRU, and 2 · hidden for an LSTM, whose hidden and cell
    states lie side by side.

    Args:
        cell: "gru" or "lstm".
        input_width: the width of an input.
        hidden: the width of a layer.
        layers: the number of layers.
        dropout: the share of units dropped between layers in training.
    """

    def __init__(self, cell: Cell, input_width: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        check_cell(cell)
        self.hidden = hidden
        self.layers = layers
        self.state_width = hidden if cell == "gru" else 2 * hidden
        self.lstm = cell == "lstm"
        kind = nn.LSTMCell if self.lstm else nn.GRUCell
        self.cells = nn.ModuleList(kind(input_width if i == 0 else hidden, hidden) for i in range(layers))
        self.dropout = Dropout(dropout)

    def output(self, state: Tensor) -> Tensor:
        """The top layer's output in a state: [..., layers, W] -> [..., hidden]."""
        return state[..., -1, : self.hidden]

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """One step: x [N, input_width], state [N, layers, W] -> the new state."""
        layers = []
        for i, cell in enumerate(self.cells):
            before = state[:, i]
            if self.lstm:
                after = torch.cat(cell(x, (before[:, : self.hidden], before[:, self.hidden :])), -1)
            else:
                after = cell(x, before)
            layers.append(after)
            x = self.dropout(after[:, : self.hidden])
        return torch.stack(layers, 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """A whole sequence at once: x [B, T, input_width], first state [B, layers, W] -> outputs [B, T, hidden]."""
        run = torch.lstm if self.lstm else torch.gru
        if self.lstm and torch.is_autocast_enabled(x.device.type):
            # Autocast narrows an LSTM's weights, but on the CPU not what it reads, and then oneDNN refuses.
            dtype = torch.get_autocast_dtype(x.device.type)
            x, state = x.to(dtype), state.to(dtype)
        for i, cell in enumerate(self.cells):
            weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
            first = state[:, i].unsqueeze(0)  # [1, B, W]
            start = [t.contiguous() for t in first.split(self.hidden, -1)] if self.lstm else first.contiguous()
            if i:
                x = self.dropout(x)
            # weights, biases, one layer, no dropout inside, training flag, one direction, batch first
            x = run(x, start, weights, True, 1, 0.0, self.training, False, True)[0]  # pyright: ignore
        return x


class UnrolledStack:
    """One forward pass of a `RecurrentStack`, step by step, for inputs [known_t; fed_t].

    `known` is there before the first step, and its products are made at once; `fed` comes from the steps before, such
    as a context. The gradients of the weights that each step uses are gathered (`GatheredLinear`).

    Args:
        stack: whose weights.
        known: [B, T, X].
    """

    def __init__(self, stack: RecurrentStack, known: Tensor):
        self.stack = stack
        width = known.shape[-1]
        cells = [cell for cell in stack.cells if isinstance(cell, nn.RNNCellBase)]  # all are
        first, *others = cells
        # Unbound, not indexed: the backward pass of an index is as large as what it is taken from.
        self.known = F.linear(known, first.weight_ih[:, :width], first.bias_ih).unbind(1)
        self.inputs = [GatheredLinear(first.weight_ih[:, width:])]
        self.inputs += [GatheredLinear(cell.weight_ih, cell.bias_ih) for cell in others]
        self.states = [GatheredLinear(cell.weight_hh, cell.bias_hh) for cell in cells]

    def step(self, t: int, fed: Tensor, state: Tensor) -> Tensor:
        """Step t: fed [B, input_width - X], state [B, layers, W] -> the new state."""
        stack, layers, x = self.stack, [], fed
        for i, before in enumerate(state.unbind(1)):
            gates = self.inputs[i](x)
            if i == 0:
                gates = gates + self.known[t]
            after = (_lstm if stack.lstm else _gru)(gates, self.states[i](before[:, : stack.hidden]), before)
            layers.append(after)
            x = stack.dropout(after[:, : stack.hidden])
        return torch.stack(layers, 1)


def _gru(x: Tensor, h: Tensor, before: Tensor) -> Tensor:
    """The state after `before` [N, H], of the gates' products with the input and the state, both [N, 3 H].

    r, z = σ(x_r + h_r), σ(x_z + h_z); n = tanh(x_n + r h_n); n + z (before - n). `torch.nn.GRU`.
    """
    width = before.shape[-1]
    (x_rz, x_n), (h_rz, h_n) = x.split([2 * width, width], -1), h.split([2 * width, width], -1)
    r, z = (x_rz + h_rz).sigmoid().chunk(2, -1)
    return torch.lerp(torch.addcmul(x_n, r, h_n).tanh(), before, z)


def _lstm(x: Tensor, h: Tensor, before: Tensor) -> Tensor:
    """The states [h; c] after `before` [N, 2 H], of the gates' products with the input and the state, both [N, 4 H].

    i, f, g, o = σ, σ, tanh, σ of their sums; c' = f c + i g, h' = o tanh(c'). `torch.nn.LSTM`.
    """
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * before.chunk(2, -1)[1] + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c], -1)
