"""The position-wise feed-forward network."""

from torch import Tensor, nn

from limelight.layers.dropout import Dropout


class FeedForward(nn.Module):
    """W_2 relu(W_1 x + b_1) + b_2, at every position alike. Vaswani et al. (2017), equation 2.

    Args:
        width: C, the width that comes in and goes out.
        hidden: the width between.
        dropout: the share of hidden units dropped in training.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.contract(self.dropout(self.expand(x).relu()))
