"""Held against torch's own layer, in float64 and with shared parameters."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.tolerance import assert_near
from torch import nn

import limelight
from limelight.errors import TorchArgumentError
from limelight.layers import MultiHeadAttention
from limelight.view import AttentionView

TERMS = 200


def pair(embed=12, heads=3, **options):
    """Torch's layer and ours with its parameters; its biases, 0 at first, are drawn."""
    theirs = nn.MultiheadAttention(embed, heads, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, one in theirs.named_parameters():
            if "bias" in name:
                one.normal_()
    ours = MultiHeadAttention(embed, heads, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def hides(shape, kind):
    """A mask that leaves key 0 to every query, as torch has NaN where nothing is left."""
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False
    if kind == "bool":
        return hidden
    added = numbers(*shape) if kind == "float" else torch.zeros(shape, dtype=torch.float64)
    return added.masked_fill(hidden, -torch.inf)


KINDS = st.sampled_from((None, "bool", "float", "zeros"))


@given(data=st.data())
@settings(max_examples=120, deadline=None)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_outputs_weights_and_gradients_are_those_of_torch(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    options = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    apart = draw(st.booleans())
    widths = {"kdim": 7, "vdim": 5} if apart else {}
    theirs, ours = pair(**options, **widths)
    batched = draw(st.booleans())
    n, rows, columns = (2 if batched else 1), draw(st.sampled_from((1, 5))), draw(st.sampled_from((5, 7)))
    kind = "other" if apart else draw(st.sampled_from(("self", "memory", "other")))
    columns = rows if kind == "self" else columns

    def given_as(length, width):
        shape = (length, width) if not batched else (n, length, width) if options["batch_first"] else (length, n, width)
        return numbers(*shape).requires_grad_()

    query = given_as(rows, 12)
    key = query if kind == "self" else given_as(columns, widths.get("kdim", 12))
    value = key if kind != "other" else given_as(columns, widths.get("vdim", 12))
    arguments = {"average_attn_weights": draw(st.booleans()), "need_weights": draw(st.booleans())}
    attn, padding = draw(KINDS), draw(KINDS)
    if attn:
        shape = draw(st.sampled_from(((rows, columns), (n * 3, rows, columns))))
        arguments["attn_mask"] = hides(shape, attn)
    if padding:
        arguments["key_padding_mask"] = hides((n, columns) if batched else (columns,), padding)

    tensors = {id(x): x for x in (query, key, value)}.values()
    results = []
    for layer in (theirs, ours):
        output, weights = layer(query, key, value, **arguments)
        loss = (output * torch.arange(output.numel(), dtype=torch.float64).view_as(output).sin()).sum()
        if weights is not None:
            loss = loss + (weights * torch.arange(weights.numel(), dtype=torch.float64).view_as(weights).cos()).sum()
        parameters = [one for _, one in sorted(layer.named_parameters())]
        results.append((output, weights, torch.autograd.grad(loss, [*tensors, *parameters])))
    (expected, expected_weights, expected_grads), (output, weights, grads) = results
    assert_near(output, expected, torch.float64, TERMS)
    assert (weights is None) is (expected_weights is None)
    if weights is not None:
        assert_near(weights, expected_weights, torch.float64, TERMS)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert_near(grad, wanted, torch.float64, TERMS)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 7), (7, 3)])
@pytest.mark.parametrize("padded", [True, False])
def test_a_causal_mask_with_its_hint(need_weights, kind, rows, columns, padded):
    theirs, ours = pair(batch_first=True)
    query, memory = numbers(2, rows, 12), numbers(2, columns, 12)
    mask = torch.ones(rows, columns, dtype=torch.bool).triu(1)
    mask = mask if kind == "bool" else numbers(rows, columns).mul(0).masked_fill(mask, -torch.inf)
    padding = torch.arange(columns) >= torch.tensor([[columns], [columns - 1]]) if padded else None
    if padded and kind == "float":
        padding = torch.zeros(2, columns, dtype=torch.float64).masked_fill(padding, -torch.inf)
    arguments = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights, "key_padding_mask": padding}
    expected, expected_weights = theirs(query, memory, memory, **arguments)
    output, weights = ours(query, memory, memory, **arguments)
    assert_near(output, expected, torch.float64, TERMS)
    if need_weights:
        assert_near(weights, expected_weights, torch.float64, TERMS)


def test_a_hint_is_believed_where_torch_believes_it():
    theirs, ours = pair(batch_first=True)
    x, nothing_hidden = numbers(2, 5, 12), torch.zeros(5, 5, dtype=torch.bool)
    for need_weights in (True, False):
        arguments = {"attn_mask": nothing_hidden, "is_causal": True, "need_weights": need_weights}
        assert_near(ours(x, x, x, **arguments)[0], theirs(x, x, x, **arguments)[0], torch.float64, TERMS)


@pytest.mark.parametrize("options", [{}, {"kdim": 7}, {"vdim": 5}, {"bias": False}, {"add_bias_kv": True}])
def test_first_values_and_state_dict_are_those_of_torch(options):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(12, 3, **options)
    torch.manual_seed(3)
    ours = MultiHeadAttention(12, 3, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for name, one in theirs.state_dict().items():
        assert torch.equal(one, ours.state_dict()[name]), name
    nn.MultiheadAttention(12, 3, **options).load_state_dict(MultiHeadAttention(12, 3, **options).state_dict())


def test_a_query_without_keys_gets_zeros():
    _, ours = pair(batch_first=True)
    x = numbers(2, 5, 12).requires_grad_()
    padding = torch.tensor([[True] * 5, [False] * 5])
    for need_weights in (True, False):
        output, weights = ours(x, x, x, key_padding_mask=padding, need_weights=need_weights)
        assert torch.equal(output[0], ours.out_proj.bias.expand(5, 12))
        if weights is not None:
            assert torch.equal(weights[0], torch.zeros(5, 5, dtype=torch.float64))
        output.sum().backward()
        assert x.grad.isfinite().all()
        assert torch.equal(x.grad[0], torch.zeros(5, 12, dtype=torch.float64))


def test_nan_in_the_padding_touches_nothing():
    _, ours = pair(batch_first=True)
    x = numbers(2, 5, 12)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected, _ = ours(x, x, x, key_padding_mask=padding, need_weights=False)
    x[1, 3:] = torch.nan
    output, _ = ours(x, x, x, key_padding_mask=padding, need_weights=False)
    assert_near(output[1, :3], expected[1, :3], torch.float64, TERMS)


@pytest.mark.parametrize("average", [True, False])
def test_the_weights_of_training_are_those_that_made_the_output(average):
    torch.manual_seed(5)
    ours = MultiHeadAttention(12, 3, dropout=0.5, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        ours.out_proj.weight.copy_(torch.eye(12))
    x = numbers(2, 7, 12)
    output, weights = ours(x, x, x, average_attn_weights=average)
    if average:
        return
    value = torch.nn.functional.linear(x, ours.in_proj_weight[24:]).unflatten(-1, (3, 4)).transpose(1, 2)
    assert_near(output, (weights @ value).transpose(1, 2).flatten(-2), torch.float64, TERMS)
    assert 0.3 < (weights == 0).double().mean() < 0.7
    assert not torch.equal(ours(x, x, x)[0], output)
    torch.manual_seed(5)
    again = ours(x, x, x, need_weights=False)[0]
    torch.manual_seed(5)
    assert torch.equal(ours(x, x, x, need_weights=False)[0], again)


@pytest.mark.parametrize("batched", [True, False])
def test_a_view_has_the_weights(batched):
    theirs, ours = pair(batch_first=True)
    x = numbers(2, 7, 12) if batched else numbers(7, 12)
    output, view = ours(x, x, x, need_weights="view")
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    assert isinstance(view, AttentionView)
    assert_near(output, expected, torch.float64, TERMS)
    assert_near(view.dense(), weights.view(-1, 3, 7, 7), torch.float64, TERMS)


def test_watch_sees_it():
    theirs, ours = pair(batch_first=True)
    x = numbers(2, 7, 12)
    model = nn.ModuleDict({"attention": ours})
    with limelight.watch(model) as seen:
        model["attention"](x, x, x, need_weights=False)
    weights = theirs(x, x, x, average_attn_weights=False)[1]
    assert_near(seen["attention"][0].dense(), weights, torch.float64, TERMS)


@pytest.mark.parametrize("kind", ["none", "hint", "padding", "bool and padding on the left", "float"])
def test_without_weights_nothing_of_the_matrix_is_stored(kind):
    length, heads = 700, 2
    layer = MultiHeadAttention(8, heads, batch_first=True)
    x = torch.randn(1, length, 8).requires_grad_()
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    behind, before = (torch.arange(length)[None] > 500), (torch.arange(length)[None] < 3)
    other = causal.clone()
    other[0, 0] = True
    arguments = {
        "none": {},
        "hint": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": behind},
        "bool and padding on the left": {"attn_mask": other, "key_padding_mask": before},
        "float": {"attn_mask": torch.randn(length, length), "key_padding_mask": before},
    }[kind]
    with Largest() as largest:
        layer(x, x, x, need_weights=False, **arguments)[0].sum().backward()
    own = length * length if "attn_mask" in arguments else 0
    # A block of the streaming backend is 2^18 pairs at most where the native kernels are not there.
    assert largest.numel <= max(own, 1 << 18)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_keep_theirs(dtype):
    layer = MultiHeadAttention(12, 3, dtype=dtype)
    x = torch.randn(5, 2, 12).to(dtype)
    output, weights = layer(x, x, x)
    assert output.dtype is dtype
    assert weights.dtype is dtype


def test_autocast():
    layer = MultiHeadAttention(12, 3)
    x = torch.randn(5, 2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, x, x, need_weights=False)[0].dtype is torch.bfloat16


def test_it_is_copied_and_pickled():
    _, ours = pair()
    x = numbers(5, 2, 12)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(0, 1), "embed_dim and num_heads must be greater than 0; they are 0 and 1"),
        (lambda: MultiHeadAttention(12, 5), "embed_dim must be divisible by num_heads; it is 12, and 5 heads leave 2"),
    ],
)
def test_bad_sizes_raise_what_torch_raises(make, message):
    with pytest.raises(TorchArgumentError, match=message):
        make()


X, M = torch.zeros(5, 2, 12), torch.zeros(7, 2, 12)
BAD = {
    "axes of query": ((X[0, 0], X, X), {}, "query must have the axes .L, N, E., or .L, E. without a batch"),
    "axes of key": ((X, X[0], X), {}, "key must have 3 axes, as query has"),
    "width": (
        (torch.zeros(5, 2, 11), M, M),
        {},
        "query must be 12 wide, as the layer was made; its shape is .5, 2, 11",
    ),
    "positions": ((X, M, M[:6]), {}, "key and value must have the same positions and batch"),
    "batch": ((X, M[:, :1], M[:, :1]), {}, "key must have the batch of query, 2; it has 1"),
    "dtype of mask": ((X, M, M), {"attn_mask": torch.zeros(5, 7).int()}, "attn_mask must be a tensor of bool"),
    "dtype of padding": ((X, M, M), {"key_padding_mask": torch.zeros(2, 7).int()}, "key_padding_mask must be a tensor"),
    "axes of mask": ((X, M, M), {"attn_mask": torch.zeros(7)}, "attn_mask must have the shape .L, S. or .N H, L, S."),
    "shape of mask": ((X, M, M), {"attn_mask": torch.zeros(7, 5)}, "here .5, 7. or .6, 5, 7.; it is .7, 5."),
    "folded mask": ((X, M, M), {"attn_mask": torch.zeros(2, 5, 7)}, "here .5, 7. or .6, 5, 7.; it is .2, 5, 7."),
    "padding": (
        (X, M, M),
        {"key_padding_mask": torch.zeros(7, 2)},
        "key_padding_mask must have the shape .N, S., here",
    ),
    "hint alone": ((X, X, X), {"is_causal": True}, "is_causal only says that attn_mask hides the future"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_raise_what_torch_raises(name):
    inputs, arguments, message = BAD[name]
    with pytest.raises((ValueError, AssertionError, RuntimeError)) as theirs:
        nn.MultiheadAttention(12, 3)(*inputs, **arguments)
    with pytest.raises(TorchArgumentError, match=message) as ours:
        MultiHeadAttention(12, 3)(*inputs, **arguments)
    assert isinstance(ours.value, type(theirs.value))


def test_another_word_for_the_weights_is_refused():
    with pytest.raises(TorchArgumentError, match="need_weights must be True, False or 'view'; it is 'views'"):
        MultiHeadAttention(12, 3)(X, X, X, need_weights="views")
