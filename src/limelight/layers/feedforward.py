"""The position-wise feed-forward network."""

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from limelight.errors import ArgumentError
from limelight.layers.dropout import Dropout

Activation = Literal["relu", "gelu", "swiglu"]


class FeedForward(nn.Module):
    """W_2 f(W_1 x + b_1) + b_2, at every position alike.

    - relu:   f(z) = max(z, 0). Vaswani et al. (2017), equation 2.
    - gelu:   f(z) = z Φ(z), Φ the normal distribution's. Hendrycks and Gimpel (2016), arXiv 1606.08415.
    - swiglu: f(W_1 x + b_1) · (W_3 x + b_3) with f(z) = z sigmoid(z) takes the place of f. Shazeer (2020), arXiv
      2002.05202, equation 6, there without biases. It has three matrices: for the same cost take 2/3 of the hidden
      width.

    Args:
        width: C, the width that comes in and goes out.
        hidden: the width between.
        dropout: the share of hidden units dropped in training.
        activation: "relu", "gelu" or "swiglu".

    Raises:
        ArgumentError: an unknown activation.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, activation: Activation = "relu"):
        super().__init__()
        if activation not in get_args(Activation):
            raise ArgumentError(f"activation: must be 'relu', 'gelu' or 'swiglu', got {activation!r}")
        self.activation = activation
        self.expand = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if activation == "swiglu" else None
        self.contract = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        inner = self.expand(x)
        if self.gate is not None:
            inner = functional.silu(inner) * self.gate(x)
        else:
            inner = inner.relu() if self.activation == "relu" else functional.gelu(inner)
        return self.contract(self.dropout(inner))
