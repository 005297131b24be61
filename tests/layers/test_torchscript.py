"""torch.jit: what is traced holds for other lengths and masks; what cannot be scripted says so."""

import io

import pytest
import torch
from torch import nn

from limelight import attend, causal, lengths, window
from limelight.errors import ExportError
from limelight.layers import MultiHeadAttention

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SIZES = ((2, 5, 4), (3, 7, 11), (1, 1, 2))


def reloaded(traced):
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    return torch.jit.load(stored)


class Masked(nn.Module):
    def __init__(self, layer, need_weights):
        super().__init__()
        self.layer, self.need_weights = layer, need_weights

    def forward(self, query, key, padding, pattern):
        found = self.layer(query, key, key, padding, self.need_weights, pattern)
        return found if self.need_weights else found[0]


def data(batch, queries, keys):
    torch.manual_seed(queries)
    query, key = torch.randn(batch, queries, 12), torch.randn(batch, keys, 12)
    pattern = torch.rand(queries, keys) < 0.3
    pattern[:, 0] = False
    # The first example has no padding, which is not to become part of the graph.
    padding = torch.arange(keys) >= torch.full((batch, 1), keys if batch == 2 else 2)
    return query, key, padding, pattern


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_a_traced_layer_takes_other_lengths_and_masks(options, need_weights):
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, **options).eval()
    ours = MultiHeadAttention(12, 3, batch_first=True, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    traced = reloaded(torch.jit.trace(Masked(ours, need_weights), data(*SIZES[0])))
    for sizes in SIZES:
        given = data(*sizes)
        torch.testing.assert_close(traced(*given), Masked(theirs, need_weights)(*given))


def test_a_traced_causal_mask_grows():
    def call(query, counts):
        return attend(query, query, query, mask=causal() & window(3, 0) & lengths(counts))

    traced = torch.jit.trace(call, (torch.randn(2, 3, 5, 4), torch.tensor([5, 5])))
    for batch, length in ((2, 5), (3, 9)):
        query, counts = torch.randn(batch, 3, length, 4), torch.arange(2, 2 + batch)
        torch.testing.assert_close(traced(query, counts), call(query, counts))


def test_script_is_refused_with_the_way_out():
    for model in (MultiHeadAttention(12, 3), nn.Sequential(nn.Linear(2, 2), MultiHeadAttention(12, 3))):
        with pytest.raises(ExportError, match=r"Use torch\.compile, torch\.export or torch\.jit\.trace, which take it"):
            torch.jit.script(model)
        with pytest.raises(RuntimeError, match="into which this state dict loads"):
            torch.jit.script(model)
