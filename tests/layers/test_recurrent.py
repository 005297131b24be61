import pytest
import torch

from limelight.errors import ArgumentError
from limelight.layers import BidirectionalEncoder, RecurrentStack, UnrolledStack

B, T, W, C = 3, 7, 5, 11
NEAR = {"rtol": 0.0, "atol": 1e-12}
CELLS = pytest.mark.parametrize("cell", ["gru", "lstm"])
LAYERS = pytest.mark.parametrize("layers", [1, 2])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(23)


def stack(cell, layers, dropout=0.0):
    made = RecurrentStack(cell, W, C, layers, dropout).double()
    state = torch.randn(B, layers, made.state_width).double()
    return made, torch.randn(B, T, W).double(), state


@CELLS
@LAYERS
def test_steps_one_by_one_are_the_whole_sequence(cell, layers):
    made, x, state = stack(cell, layers)
    whole = made(x, state)
    assert whole.shape == (B, T, C)
    for t in range(T):
        state = made.step(x[:, t], state)
        assert state.shape == (B, layers, made.state_width)
        torch.testing.assert_close(made.output(state), whole[:, t], **NEAR)


@CELLS
@LAYERS
@pytest.mark.parametrize("known", [0, 2, W])
def test_an_unrolled_pass_is_the_whole_sequence_with_its_gradients(cell, layers, known):
    made, x, state = stack(cell, layers)
    wanted = [x.requires_grad_(), state.requires_grad_(), *made.parameters()]
    whole, weights = made(x, state), torch.randn(B, T, C).double()
    expected = torch.autograd.grad((whole * weights).sum(), wanted)
    run, outputs = UnrolledStack(made, x[..., :known]), []
    for t in range(T):
        state = run.step(t, x[:, t, known:], state)
        outputs.append(made.output(state))
    found = torch.stack(outputs, 1)
    torch.testing.assert_close(found, whole, **NEAR)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), wanted), expected, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


@CELLS
@LAYERS
def test_the_stack_is_torchs_recurrent_network(cell, layers):
    made, x, state = stack(cell, layers)
    kind = torch.nn.LSTM if cell == "lstm" else torch.nn.GRU
    torchs = kind(W, C, layers, batch_first=True).double()
    with torch.no_grad():
        for i, one in enumerate(made.cells):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(torchs, f"{name}_l{i}").copy_(getattr(one, name))
    parts = [part.transpose(0, 1).contiguous() for part in state.split(C, -1)]
    expected, _ = torchs(x, tuple(parts) if cell == "lstm" else parts[0])
    torch.testing.assert_close(made(x, state), expected, **NEAR)


@CELLS
@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_near_the_exact_result(cell, layers, dtype):
    made, x, state = stack(cell, layers)
    expected = made(x, state)
    made.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = made(x.to(dtype), state.to(dtype))
        step = made.output(made.step(x[:, 0].to(dtype), state.to(dtype)))
    torch.testing.assert_close(whole.double(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(step.double(), expected[:, 0], rtol=0, atol=0.05)


def test_dropout_lies_between_layers_only():
    one, x, state = stack("gru", 1, dropout=0.5)
    assert torch.equal(one(x, state), one(x, state))
    two, x, state = stack("gru", 2, dropout=0.5)
    assert not torch.equal(two(x, state), two(x, state))
    # The top layer's output is whole; in a step the lower layer's own state is too.
    assert (two(x, state) != 0).all()
    assert torch.equal(two.step(x[:, 0], state)[:, 0], two.eval().step(x[:, 0], state)[:, 0])


@CELLS
@LAYERS
def test_a_sentence_is_encoded_alike_whatever_stands_beside_it(cell, layers):
    encoder = BidirectionalEncoder(cell, W, C, layers, 0.0).double()
    x, counts = torch.randn(B, T, W).double(), torch.tensor([3, 7, 1])
    x[0, 3:] = torch.nan
    memory, summary = encoder(x, counts)
    assert (memory.shape, summary.shape) == ((B, T, 2 * C), (B, 2 * C))
    for b, count in enumerate(counts.tolist()):
        alone, alone_summary = encoder(x[b : b + 1, :count], counts[b : b + 1])
        torch.testing.assert_close(memory[b, :count], alone[0], **NEAR)
        torch.testing.assert_close(summary[b], alone_summary[0], **NEAR)
        assert not memory[b, count:].any()
        # The last forward state stands at the sentence's end, the last backward one at its beginning.
        torch.testing.assert_close(summary[b], torch.cat([memory[b, count - 1, :C], memory[b, 0, C:]]), **NEAR)


def test_the_backward_direction_reads_backwards():
    encoder = BidirectionalEncoder("gru", W, C, 1, 0.0).double()
    x, count = torch.randn(1, T, W).double(), torch.tensor([T])
    changed = x.clone()
    changed[0, 4] += 1
    before, after = encoder(x, count)[0][0], encoder(changed, count)[0][0]
    differs = (before != after).any(-1, keepdim=False)
    assert differs.all()
    assert (before[:, :C] != after[:, :C]).any(-1).tolist() == [False] * 4 + [True] * 3
    assert (before[:, C:] != after[:, C:]).any(-1).tolist() == [True] * 5 + [False] * 2


@pytest.mark.parametrize("make", [RecurrentStack, BidirectionalEncoder])
def test_an_unknown_cell(make):
    with pytest.raises(ArgumentError, match="cell: must be 'gru' or 'lstm', got 'rnn'"):
        make("rnn", W, C, 1, 0.0)
