"""Luong's location-based attention: where to look is read off the decoder's state alone."""

import torch
from torch import Tensor, nn

from limelight.contract import exporting
from limelight.layers.memory_attention import MemoryAttention
from limelight.masks import Mask, lengths
from limelight.normalizers import Normalizer
from limelight.scores import Score, dot


class LocationAttention(MemoryAttention):
    """a_t = softmax(W_a s_t) over the source positions, c_t = Σ_s a_ts h_s; W_a is [P, Q], a row for each position.

    Luong, Pham and Manning (2015), equation 9 and the footnote to it: a shorter sentence uses the first rows, and words
    beyond position P - 1 are not attended to. On `attend` the rows are keys that do not depend on the memory.

    Args:
        query_width: Q, the width of the decoder's state.
        positions: P, how many source positions have a row.
        normalizer: how scores become weights, such as `sparsemax()`; None: `softmax()`.
    """

    def __init__(self, query_width: int, positions: int, *, normalizer: Normalizer | None = None):
        super().__init__(normalizer)
        self.weight = nn.Parameter(torch.empty(positions, query_width))
        nn.init.xavier_uniform_(self.weight)

    def keys(self, memory: Tensor) -> Tensor:
        """The rows of the memory's positions, [B, S, Q]; 0 for positions that have none."""
        batch, keys, _ = memory.shape
        if exporting():
            # A length is a name there, so none is compared.
            place, count = torch.arange(keys, device=memory.device), len(self.weight)
            rows = torch.where((place < count)[:, None], self.weight[place.clamp(max=count - 1)], 0.0)
        else:
            rows = self.weight[:keys]
            rows = nn.functional.pad(rows, (0, 0, 0, keys - len(rows)))
        return rows.expand(batch, -1, -1)

    def queries(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def score(self) -> Score:
        """A plain dot product of the state and a row."""
        return dot(1.0)

    def forward(
        self, state: Tensor, keys: Tensor, memory: Tensor, mask: Mask | None = None, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As every `MemoryAttention`; positions without a row are masked out."""
        if exporting() or keys.shape[1] > len(self.weight):
            known = lengths(torch.full((keys.shape[0],), len(self.weight), device=keys.device))
            mask = known if mask is None else mask & known
        return super().forward(state, keys, memory, mask, observe=observe)
