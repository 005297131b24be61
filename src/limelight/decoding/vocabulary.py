"""A model's output layer, as a search asks it."""

import torch
from torch import Tensor, nn

from limelight.backends.rows import Scores


class Vocabulary:
    """The most probable next tokens: p = softmax(W x + b) over the tokens that are not banned.

    Args:
        output: the model's output layer.
        banned: tokens that are never produced.
    """

    def __init__(self, output: nn.Linear, banned: tuple[int, ...] = ()):
        # The bias is added where the scores are read: they are many more than the features that they are made of.
        bias = output.weight.new_zeros(output.out_features, dtype=torch.float32)
        if output.bias is not None:
            bias += output.bias.detach()
        bias[list(banned)] = -torch.inf
        self.scores = Scores(output.weight, bias)

    def best(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k most probable tokens and their log probabilities, the most probable first.

        Args:
            features: [..., C], what the output layer reads.
            k: in [1, V].

        Returns:
            tokens int64 [..., k]; fp32 [..., k] in nats, -inf for a banned one.
        """
        score, token, total = self.scores.strongest(features, k)
        return token, score - total.unsqueeze(-1)

    def __len__(self) -> int:
        return len(self.scores.bias)
