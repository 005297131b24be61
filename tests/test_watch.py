from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from tests.support.allocations import Largest
from tests.support.views import pooled
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

import limelight
from limelight import attend, causal, top, watch
from limelight.backends import extension
from limelight.errors import ArgumentError, StaleViewError, WatchError
from limelight.layers import BahdanauAttention, GroupedQueryAttention
from limelight.watching import by_hand, places

ALL = ("received", "entropy", top(3))
native = pytest.mark.skipif(extension.refusal() is not None, reason="the native extension is not there")


class Torch(nn.Module):
    """Self-attention over torch's function, with whatever options."""

    def __init__(self, width=22, heads=2, **options):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)
        self.heads, self.options = heads, options

    def forward(self, x):
        parts = self.project(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        query, key, value = parts
        out = F.scaled_dot_product_attention(query, key, value, **self.options)
        return out.transpose(-3, -2).flatten(-2)

    def weights(self, x, causal=False):
        query, key, _ = self.project(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1) > 0, -torch.inf)
        return scores.softmax(-1)


def layers(count=2, **options):
    return nn.Sequential(*(Torch(**options) for _ in range(count)))


def same(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("keep", ["views", "stats"])
def test_every_call_is_seen_and_nothing_changes(keep):
    torch.manual_seed(3)
    model, x = layers(is_causal=True), torch.randn(3, 7, 22)
    expected = model(x)
    with watch(model, observe=ALL, keep=keep) as seen:
        same(model(x), expected)
        model(x[:1])
    assert list(seen) == ["0", "1"]
    assert [one.shape for one in seen["1"]] == [(3, 2, 7, 7), (1, 2, 7, 7)]
    weights = model[0].weights(x, causal=True).detach()
    one = seen["0"][0]
    same(one.received(), weights.sum(-2))
    same(one.entropy(), torch.special.entr(weights).sum(-1))
    same(one.top(2).weights, weights.topk(2).values)
    assert torch.equal(one.top(1).indices[..., 0], weights.argmax(-1))
    if keep == "views":
        same(one.dense(), weights)


def test_statistics_keep_only_what_was_asked_for():
    model, x = layers(), torch.randn(1, 50, 22)
    with watch(model, observe="entropy", keep="stats") as seen:
        model(x)
    assert seen.kept_bytes == 2 * 2 * 50 * 4
    with pytest.raises(ArgumentError, match=r'observe: "received" was not asked for'):
        seen["0"][0].received()
    with pytest.raises(ArgumentError, match=r"top\(2\) was not asked for"):
        seen["0"][0].top(2)
    with watch(model, observe=top(3), keep="stats") as seen:
        model(x)
    assert seen["0"][0].top(2).indices.shape == (1, 2, 50, 2)
    with pytest.raises(ArgumentError, match=r"top\(4\)"):
        seen["0"][0].top(4)
    with pytest.raises(ArgumentError, match="it names nothing"):
        watch(model, keep="stats")


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, {"enable_gqa": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_statistics_are_the_answers_of_views(dtype, options):
    class Model(nn.Module):
        def forward(self, *inputs):
            return F.scaled_dot_product_attention(*inputs, **options)

    torch.manual_seed(5)
    groups = 2 if options.get("enable_gqa") else 4
    inputs = [torch.randn(3, *size, dtype=dtype) for size in ((4, 9, 8), (groups, 14, 8), (groups, 14, 8))]
    observe = "received", "entropy", "distance", top(3), top(20)
    with watch(Model(), observe=observe, keep="stats") as seen, torch.inference_mode():
        Model()(*inputs)
    assert not len(seen)  # another model
    model = Model()
    with watch(model, observe=observe, keep="stats") as alone:
        first = model(*inputs)
    with watch(model, observe=observe) as views, watch(model, observe=observe, keep="stats") as beside:
        second = model(*inputs)
    assert torch.equal(first, second)
    for one in (alone[""][0], beside[""][0]):
        view = views[""][0]
        assert one.shape == view.shape == (3, 4, 9, 14)
        for name in ("received", "entropy", "distance"):
            assert torch.equal(getattr(one, name)(), getattr(view, name)())
        assert all(map(torch.equal, one.top(14), view.top(14)))
        assert one.top(20).indices.shape == (3, 4, 9, 14)


def test_heads_that_share_keys_unasked_are_torchs_error():
    class Model(nn.Module):
        def forward(self, *inputs):
            return F.scaled_dot_product_attention(*inputs)

    model, inputs = Model(), [torch.randn(1, heads, 5, 8) for heads in (4, 2, 2)]
    with pytest.raises(RuntimeError) as outside:
        model(*inputs)
    with pytest.raises(RuntimeError) as inside, watch(model, observe="entropy", keep="stats"):
        model(*inputs)
    assert str(inside.value) == str(outside.value)


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_a_scale_that_is_no_number_stops_no_model(scale):
    model, x = Torch(scale=scale), torch.randn(1, 5, 22)
    with pytest.warns(UserWarning, match="scale must be a finite number"), watch(model) as seen:
        output = model(x)
    torch.testing.assert_close(output, model(x), equal_nan=True)
    assert not len(seen)


def test_paths_are_those_that_torch_gives():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(shared, nn.ModuleDict({"a": shared, "b": nn.Identity()}), shared)
    model.nothing = None
    every = list(model.named_modules(remove_duplicate=False))
    names, modules = places.named(model)
    assert list(names) == [path for path, _ in every]
    assert all(modules[names[path]] is module for path, module in every)
    assert list(modules) == [path for path, _ in model.named_modules()]


def assert_bits(model, x, train):
    """The model gives the same bits and gradients inside a block as outside."""
    model.train(train)
    results = []
    for block in (False, True):
        model.zero_grad()
        torch.manual_seed(11)
        if block:
            with watch(model, observe=ALL) as seen:
                output = model(x)
        else:
            output = model(x)
        output.square().sum().backward()
        results.append((output.detach(), *(one.grad for one in model.parameters())))
    for before, inside in zip(*results, strict=True):
        assert torch.equal(before, inside)
    return seen


def test_dropout_is_left_to_torch_bit_for_bit():
    model, x = layers(dropout_p=0.4), torch.randn(2, 7, 22)
    seen = assert_bits(model, x, True)
    same(seen["0"][0].dense(), model[0].weights(x).detach())


def test_float64_is_left_to_torch():
    bias = nn.Parameter(torch.randn(7, 7, dtype=torch.float64))
    model = layers(attn_mask=bias).double()
    model.register_parameter("bias", bias)
    seen = assert_bits(model, torch.randn(2, 7, 22, dtype=torch.float64), True)
    assert not seen["0"][0].dense().requires_grad
    # Query, key and lse of two layers, what was observed, and the bias, which both share, once; no weights.
    rows, observed = 2 * 2 * 7, 8 + 8 + 3 * 16
    assert seen.kept_bytes == 2 * rows * (2 * 11 * 8 + 8 + observed) + 7 * 7 * 8


def test_autocast_is_left_to_torch():
    model, x = layers(), torch.randn(2, 7, 22)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with watch(model) as seen:
            assert torch.equal(model(x), expected)
    assert seen["0"][0].shape == (2, 2, 7, 7)


def graph(node):
    """The names of all operations behind an output."""
    return set() if node is None else {node.name()}.union(*(graph(one) for one, _ in node.next_functions))


@native
def test_the_native_kernel_gives_torchs_gradients():
    bias = nn.Parameter(torch.randn(37, 37))
    model, x = layers(attn_mask=bias), torch.randn(2, 37, 22)
    model.register_parameter("bias", bias)
    grads = []
    for block in (False, True):
        model.zero_grad()
        if block:
            with watch(model, observe=ALL):
                output = model(x)
            assert any("_Attention" in name for name in graph(output.grad_fn))
        else:
            output = model(x)
        output.square().sum().backward()
        grads.append([one.grad for one in model.parameters()])
    for one, other in zip(*grads, strict=True):
        same(one, other, atol=2e-4)


class Checkpointed(nn.Module):
    """Layers that are run again in the backward pass."""

    def __init__(self, *inner, reentrant=False):
        super().__init__()
        self.inner, self.reentrant = nn.ModuleList(inner), reentrant

    def forward(self, x):
        for one in self.inner:
            x = checkpoint(one, x, use_reentrant=self.reentrant)
        return x


class Own(nn.Module):
    """Self-attention of ours."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return attend(self.scale * x, x, x, mask=causal())


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", [Torch, Own])
def test_a_gradient_checkpoint_is_one_call_and_its_gradients_stay(layer, reentrant, inside):
    torch.manual_seed(2)
    model, x = Checkpointed(layer(), layer(), reentrant=reentrant), torch.randn(2, 7, 22)
    grads = []
    for block in (False, True):
        model.zero_grad()
        given = x.clone().requires_grad_()
        if block:
            with watch(model, observe=ALL) as seen:
                output = model(given)
                if inside:
                    output.square().sum().backward()
            if not inside:
                output.square().sum().backward()
        else:
            model(given).square().sum().backward()
        grads.append([given.grad, *(one.grad for one in model.parameters())])
    assert {path: len(calls) for path, calls in seen.items()} == {"inner.0": 1, "inner.1": 1}
    for one, other in zip(*grads, strict=True):
        same(one, other, atol=2e-4)


def test_ruling_out_fused_kernels_leaves_the_call_to_torch():
    model, x = layers(1), torch.randn(1, 7, 22)

    def second_derivative():
        given = x.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            output = model(given)
        (slope,) = torch.autograd.grad(output.square().sum(), given, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), given)[0]

    expected = second_derivative()
    with watch(model) as seen:
        assert torch.equal(second_derivative(), expected)
    assert seen["0"][0].shape == (1, 2, 7, 7)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("model", [Torch(), nn.MultiheadAttention(22, 2, batch_first=True)], ids=["torch", "multihead"])
def test_inside_torch_func_the_model_works_and_is_named(model):
    x = torch.randn(3, 2, 7, 22)

    def output(parameters, x):
        given = (x,) if isinstance(model, Torch) else (x, x, x)
        found = torch.func.functional_call(model, parameters, given)
        return (found if isinstance(found, Tensor) else found[0]).square().sum()

    slopes = torch.func.vmap(torch.func.grad(output), (None, 0))
    parameters = dict(model.named_parameters())
    expected = slopes(parameters, x)
    with (
        pytest.warns(UserWarning, match=r"without numbers of their own: nested, sparse, meta, fake, or of torch\.func"),
        watch(model, observe=ALL) as seen,
    ):
        found = slopes(parameters, x)
    for name, one in expected.items():
        assert torch.equal(found[name], one)
    with pytest.raises(WatchError, match="The model itself: its attention runs on tensors without numbers"):
        list(seen)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_views_have_no_graph_and_work_outside_any_mode(grad):
    model, x = layers(), torch.randn(1, 7, 22)
    with grad(), watch(model) as seen:
        model(x)
    view = seen["0"][0]
    assert not view.lse.requires_grad
    assert not view.dense().requires_grad
    same(view.dense(), model[0].weights(x).detach())
    assert view.entropy().shape == (1, 2, 7)


def test_the_graph_is_not_kept_alive():
    class Node:
        """Lives as long as the graph of what was marked."""

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, node):
            ctx.node = node
            return x.clone()

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0], None

    model, node = layers(), Node()
    with watch(model, observe=ALL) as seen:
        output = model(Mark.apply(torch.randn(1, 7, 22, requires_grad=True), node))
    alive = weakref.ref(node)
    del node
    assert alive() is not None
    del output
    gc.collect()
    assert alive() is None
    assert len(seen) == 2


def test_what_happens_to_the_tensors_later_does_not_change_a_view():
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = torch.randn(1, 1, 5, 3)

        def forward(self, x):
            out = F.scaled_dot_product_attention(x, self.key, self.key)
            self.key.add_(1.0)
            return out

    model, x = Cache(), torch.randn(1, 1, 2, 3)
    expected = (x @ model.key.mT / 3**0.5).softmax(-1)
    with watch(model) as seen:
        model(x)
    same(seen[""][0].dense(), expected)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_a_mask_that_the_model_writes_into_again_is_stale_or_kept_as_it_was(grad):
    class Buffered(nn.Module):
        def forward(self, x, allowed):
            return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)

    model, x = Buffered(), torch.randn(2, 2, 6, 4)
    with grad(), watch(model) as seen:
        allowed = torch.rand(6, 6).gt(0.4).logical_or_(torch.eye(6, dtype=torch.bool))
        model(x, allowed.expand(2, 2, 6, 6))
        model(x, allowed.expand(2, 2, 6, 6))
        before = [view.dense().clone() for view in seen[""]]
        allowed.fill_(True)
        model(x, allowed.expand(2, 2, 6, 6))
    first, second, last = seen[""]
    if grad is torch.no_grad:
        with pytest.raises(StaleViewError, match="mask allowed was changed in place since"):
            first.dense()
    else:
        same(first.dense(), before[0])
        same(second.dense(), before[1])
        # The mask of the first two calls is kept once, and no repetition of it.
        assert seen.kept_bytes == 3 * 2 * 2 * 6 * (2 * 4 + 1) * 4 + 2 * 6 * 6
    same(last.dense(), (x @ x.mT / 2).softmax(-1))


def test_a_mask_and_the_future_are_both_hidden():
    allowed = torch.rand(7, 7) > 0.4
    model, x = layers(1, attn_mask=allowed, is_causal=True), torch.randn(3, 7, 22)
    expected = model(x)
    with watch(model) as seen:
        same(model(x), expected)
    there = seen["0"][0].dense() > 0
    assert torch.equal(there, (allowed & torch.ones(7, 7).tril().bool()).expand_as(there))


def test_a_module_under_two_names_is_found_by_either():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Torch()
            self.again = self.first

        def forward(self, x):
            return self.again(self.first(x))

    model, x = Twice(), torch.randn(1, 7, 22)
    with watch(model, layers="again") as seen:
        model(x)
    assert list(seen) == ["first"]
    assert "again" in seen
    assert seen["again"] is seen["first"]
    assert len(seen["again"]) == 2


def test_a_copy_of_the_model_made_inside_the_block_is_free_of_it():
    model, x = layers(), torch.randn(1, 7, 22)
    with watch(model) as seen:
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        model(x)
    for one in copies:
        same(one(x), model(x))
    assert len(seen["0"]) == 1


def test_memory_stays_linear():
    model, x = layers(1, width=8, is_causal=True), torch.randn(1, 4099, 8)
    with torch.no_grad(), Largest() as largest, watch(model, observe=ALL) as seen:
        model(x)
        seen["0"][0].copy()
    assert largest.numel < 4099 * 4099 // 2
    assert seen.kept_bytes < 4099 * 200


def test_a_mask_of_the_model_counts_once():
    model, x = layers(3, attn_mask=torch.rand(2, 1, 50, 50) < 0.7), torch.randn(2, 50, 22)
    with watch(model) as seen:
        model(x)
    assert seen["0"][0].kept_bytes == 2 * 2 * 50 * (2 * 11 + 1) * 4 + 2 * 50 * 50
    assert seen.kept_bytes == 3 * 2 * 2 * 50 * (2 * 11 + 1) * 4 + 2 * 50 * 50


def test_statistics_hold_no_more_than_they_say():
    model, x = layers(1), torch.randn(1, 50, 22)
    with watch(model, observe=top(40), keep="stats"), watch(model, observe=top(2), keep="stats") as seen:
        model(x)
    links = seen["0"][0].top(2)
    assert seen.kept_bytes == 2 * 50 * 2 * (8 + 4)
    assert sum(one.untyped_storage().nbytes() for one in links) == seen.kept_bytes


@pytest.mark.parametrize("keep", ["views", "stats"])
def test_rows_and_maps_are_seen(keep):
    model, x = layers(1), torch.randn(2, 9, 22)
    asked = limelight.rows([0, -1]), limelight.pooled(3, 4), limelight.pooled(2, 2, "max")
    with watch(model, observe=limelight.rows([5])), watch(model, observe=asked, keep=keep) as seen:
        model(x)
    one, weights = seen["0"][0], model[0].weights(x, causal=False).detach()
    same(one.rows([-1, 0]), weights[..., [-1, 0], :])
    same(one.map(3, 4), pooled(weights, 3, 4, "mean"))
    same(one.map(2, 2, reduce="max"), pooled(weights, 2, 2, "max"))
    if keep == "stats":
        assert seen.kept_bytes == 2 * 2 * 4 * (2 * 9 + 3 * 4 + 2 * 2)
        with pytest.raises(ArgumentError, match=r"rows\(\[5\]\) was not asked for"):
            one.rows([5])
        with pytest.raises(ArgumentError, match=r"pooled\(3, 4, 'max'\) was not asked for"):
            one.map(3, 4, reduce="max")
    with watch(model, observe=limelight.rows([9])), pytest.raises(ArgumentError, match=r"queries \[0, 9\); 9 is out"):
        model(x)


@pytest.mark.parametrize("keep", ["views", "stats"])
def test_what_keys_receive_without_padding_is_seen(keep):
    model, x = layers(), torch.randn(3, 7, 22)
    real = torch.arange(7) < torch.tensor([[7], [4], [2]])
    with torch.no_grad(), watch(model, observe=(limelight.received(real[:, None]), "received"), keep=keep) as seen:
        model(x)
    weights = model[0].weights(x).detach()
    same(seen["0"][0].received(real[:, None]), (weights * real[:, None, :, None]).sum(-2), atol=1e-5)
    same(seen["0"][0].received(), weights.sum(-2), atol=1e-5)
    if keep == "stats":
        with pytest.raises(ArgumentError, match=r"observe: received\(weights\), of these weights, was not asked for"):
            seen["0"][0].received(~real[:, None])


def test_kept_on_the_cpu():
    model, x = layers(), torch.randn(1, 7, 22)
    with watch(model, observe=ALL, offload="cpu") as seen:
        model(x)
    assert seen["0"][0].lse.device.type == "cpu"
    with pytest.raises(ArgumentError, match="offload must be one of 'cpu'"):
        watch(model, offload="disk")  # pyright: ignore


# nn.MultiheadAttention and what is built on it


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_multihead_attention(batch_first, need_weights, masked):
    torch.manual_seed(5)
    model = nn.MultiheadAttention(12, 3, batch_first=batch_first, add_bias_kv=masked)
    sizes = ((2, 5), (2, 7)) if batch_first else ((5, 2), (7, 2))
    query, memory = (torch.randn(*size, 12) for size in sizes)
    options = {"need_weights": need_weights}
    if masked:
        options["key_padding_mask"] = torch.arange(7) > torch.tensor([[6], [3]])
        options["attn_mask"] = torch.ones(5, 7).triu(3) > 0
    expected, _ = model(query, memory, memory, **options)
    _, weights = model(query, memory, memory, **{**options, "need_weights": True}, average_attn_weights=False)
    with watch(model, observe=ALL) as seen:
        output, returned = model(query, memory, memory, **options)
    (same if not need_weights else torch.equal)(output, expected)
    if need_weights:
        assert torch.equal(output, expected)
        same(returned, weights.mean(1))
    view = seen[""][0]
    assert view.shape == (2, 3, 5, 7 + masked)
    same(view.dense(), weights.detach())
    same(view.received(), weights.detach().sum(-2))


def test_unbatched_multihead_attention():
    model, x = nn.MultiheadAttention(12, 3), torch.randn(5, 12)
    _, weights = model(x, x, x, average_attn_weights=False)
    with watch(model) as seen:
        model(x, x, x)
        model(x, x, x, need_weights=False)
    for view in seen[""]:
        same(view.dense().squeeze(0) if view.dense().ndim > 3 else view.dense(), weights.detach())


def test_multihead_attention_with_dropout_gives_the_same_bits():
    class Wrapped(nn.Module):
        def __init__(self, need_weights):
            super().__init__()
            self.inner, self.need_weights = nn.MultiheadAttention(12, 3, dropout=0.3), need_weights

        def forward(self, x):
            return self.inner(x, x, x, need_weights=self.need_weights)[0]

    for need_weights in (True, False):
        seen = assert_bits(Wrapped(need_weights), torch.randn(5, 2, 12), True)
        assert [one.shape for one in seen["inner"]] == [(2, 3, 5, 5)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_of_the_transformer_is_off_inside_and_back_after():
    torch.manual_seed(7)
    model = nn.Transformer(12, 2, 2, 2, 24, batch_first=True).eval()
    source, target = torch.randn(2, 7, 12), torch.randn(2, 5, 12)
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    with torch.no_grad():
        before = model(source, target, src_key_padding_mask=padding, memory_key_padding_mask=padding)
        with watch(model, observe=ALL) as seen:
            inside = model(source, target, src_key_padding_mask=padding, memory_key_padding_mask=padding)
        after = model(source, target, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    assert torch.equal(before, after)
    same(inside, before)
    assert {path: view.shape for path, (view,) in seen.items()} == {
        **{f"encoder.layers.{i}.self_attn": (2, 2, 7, 7) for i in range(2)},
        **{f"decoder.layers.{i}.self_attn": (2, 2, 5, 5) for i in range(2)},
        **{f"decoder.layers.{i}.multihead_attn": (2, 2, 5, 7) for i in range(2)},
    }
    assert seen["encoder.layers.0.self_attn"][0].dense()[1, ..., 5:].abs().max() == 0


# our own layers


@pytest.mark.parametrize("observe", [False, True])
def test_our_layers(observe):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.multi, self.additive = GroupedQueryAttention(12, 3), BahdanauAttention(12, 12, 5)

        def forward(self, x):
            x, _ = self.multi(x, *self.multi.keys_values(x), causal(), observe=observe)
            return self.additive(x, self.additive.keys(x), x, observe=observe)

    model, x = Model(), torch.randn(2, 7, 12)
    expected, _ = model(x)
    with watch(model, observe=ALL) as seen:
        got, weights = model(x)
    same(got, expected)
    assert list(seen) == ["multi", "additive"]
    assert not seen.unseen
    assert seen["multi"][0].shape == (2, 3, 7, 7)
    assert seen["additive"][0].shape == (2, 1, 7, 7)
    if weights is not None:
        same(seen["additive"][0].dense()[:, 0], weights.detach())


def test_a_backend_named_by_the_layer_computes_its_output():
    class Named(nn.Module):
        def forward(self, x):
            return attend(x, x, x, dropout=0.2, seed=3, backend="streaming")

    model, x = Named(), torch.randn(2, 7, 5)
    with watch(model) as seen:
        assert torch.equal(model(x), attend(x, x, x, dropout=0.2, seed=3, backend="streaming"))
    assert seen[""][0].shape == (2, 7, 7)


def test_a_bias_by_distance_goes_with_a_backend_named():
    class Named(nn.Module):
        def forward(self, x):
            return attend(x, x, x, bias=limelight.alibi(), backend="streaming")

    model, x = Named(), torch.randn(2, 7, 5)
    with watch(model) as seen:
        model(x)
    same(seen[""][0].dense(), limelight.look(x, x, x, bias=limelight.alibi())[1].dense())


def test_dropout_of_our_layers_is_the_same():
    model, x = GroupedQueryAttention(12, 3, dropout=0.3), torch.randn(2, 7, 12)
    torch.manual_seed(1)
    expected, _ = model(x, *model.keys_values(x))
    torch.manual_seed(1)
    with watch(model):
        same(model(x, *model.keys_values(x))[0], expected)


# layers, nesting, threads


def test_layers_are_chosen_by_pattern():
    model, x = nn.ModuleDict({"encoder": layers(3), "head": layers(1)}), torch.randn(1, 5, 22)

    def run(pattern):
        with watch(model, layers=pattern) as seen:
            model["head"](model["encoder"](x))
        return list(seen)

    assert run("encoder") == run("encoder.*") == ["encoder.0", "encoder.1", "encoder.2"]
    assert run("*.0") == ["encoder.0", "head.0"]
    assert run(["encoder.[12]", "head"]) == ["encoder.1", "encoder.2", "head.0"]
    with pytest.raises(WatchError, match=r"no module of this ModuleDict matches 'encodr\.0'; near it: 'encoder\.0'"):
        watch(model, layers="encodr.0")
    for wrong in ([], 3, ["encoder", 1]):
        with pytest.raises(ArgumentError, match="layers must be None, a pattern"):
            watch(model, layers=wrong)
    with pytest.raises(ArgumentError, match=r"observe: known are .* not 3"):
        watch(model, observe=3)


def test_blocks_nest_and_each_sees_its_own():
    model, other, x = layers(2), layers(1), torch.randn(1, 5, 22)
    with watch(model, layers="1", observe=top(1)) as outer:
        with watch(model, observe=("entropy", top(3)), keep="stats") as inner, watch(other) as foreign:
            other(model(x))
        model(x)
    assert {path: len(calls) for path, calls in outer.items()} == {"1": 2}
    assert {path: len(calls) for path, calls in inner.items()} == {"0": 1, "1": 1}
    assert list(foreign) == ["0"]
    assert torch.equal(outer["1"][0].top(1).indices, inner["1"][0].top(1).indices)
    with pytest.raises(ArgumentError, match="received"):
        inner["1"][0].received()


def test_blocks_may_end_in_any_order():
    model, other, x = layers(1), layers(1), torch.randn(1, 5, 22)

    def watched(one):
        with watch(one) as seen:
            yield seen

    first, second = watched(model), watched(other)
    mine, theirs = next(first), next(second)
    other(model(x))
    first.close()
    other(model(x))
    assert torch.overrides._get_current_function_mode() is not None
    second.close()
    other(model(x))
    assert {path: len(calls) for path, calls in mine.items()} == {"0": 1}
    assert {path: len(calls) for path, calls in theirs.items()} == {"0": 2}
    assert torch.overrides._get_current_function_mode() is None
    assert limelight.listening.listener() is None


def test_threads_do_not_meet():
    model = layers()
    inside, seen = threading.Barrier(3, timeout=20), {}

    def work(length):
        with torch.no_grad(), watch(model) as mine:
            inside.wait()
            for _ in range(5):
                model(torch.randn(1, length, 22))
            inside.wait()
        seen[length] = mine

    threads = [threading.Thread(target=work, args=(length,)) for length in (3, 5)]
    for one in threads:
        one.start()
    inside.wait()
    # A thread without a block of its own is seen by nobody.
    model(torch.randn(1, 11, 22))
    inside.wait()
    for one in threads:
        one.join()
    for length, mine in seen.items():
        assert [view.shape[-1] for view in mine["1"]] == [length] * 5


def test_a_block_leaves_nothing_behind_even_when_the_model_raises():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("on purpose")

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = Fails(), Torch()

        def forward(self, x):
            with contextlib.suppress(ValueError):
                self.bad(x)
            return self.good(x)

    model, x = Catches(), torch.randn(1, 5, 22)
    with watch(model) as seen:
        model(x)
    assert list(seen) == ["good"]
    with pytest.raises(ValueError, match="on purpose"), watch(model):
        model.bad(x)
    # A hook that raises before ours: the module was never entered, and is not left.
    handle = model.bad.register_forward_pre_hook(Fails.forward)
    model.forward = lambda x: (Catches.forward(model, x), F.scaled_dot_product_attention(x, x, x))
    with watch(model) as seen:
        model(x)
    assert list(seen) == ["good", ""]
    handle.remove()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert torch.overrides._get_current_function_mode() is None
    assert limelight.listening.listener() is None


# bad use


def test_a_model_without_attention():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    with watch(model) as seen:
        pass
    with pytest.raises(WatchError, match="no module of the watched model, or of the layers chosen, was run inside"):
        list(seen)
    with watch(model) as seen:
        model(torch.randn(2, 3))
    assert len(seen) == 0
    with pytest.raises(
        WatchError,
        match=r"what was watched ran, and none of the modules watched called F\.scaled_dot",
    ):
        seen["0"]
    with pytest.raises(WatchError, match="what was watched ran"):
        seen.items().__iter__().__next__()


def test_a_path_that_did_not_attend():
    model = nn.Sequential(Torch(), nn.PReLU(), nn.ReLU())
    with watch(model) as seen:
        model(torch.randn(1, 5, 22))
    with pytest.raises(WatchError, match=r"'2' was not seen to attend; near it: '0'"):
        seen["2"]
    with pytest.raises(WatchError, match=r"'1' was not seen to attend; near it: '0'; 1 modules in all"):
        seen["1"]
    assert seen.get("3") is None
    assert "1" not in seen


@pytest.mark.parametrize("compiled", [True, False])
def test_modules_are_hooked_only_where_it_takes_that(monkeypatch, compiled):
    monkeypatch.setattr(places, "_compiled_before", lambda: compiled)
    model = nn.Sequential(Torch(), nn.Linear(22, 3))
    with watch(model):
        assert bool(model._forward_hooks)
        assert bool(model[0]._forward_hooks) is compiled
        assert not model[1]._forward_hooks
    with watch(model, layers="1") as seen:
        model(torch.randn(1, 5, 22))
    assert seen.ran == {"1"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(WatchError, match="No attention call was seen: what was watched ran"):
        list(seen)


@pytest.mark.parametrize(
    "product",
    [
        torch.matmul,
        lambda a, b: a @ b,
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        lambda a, b: torch.matmul(input=a, other=b),
    ],
)
@pytest.mark.parametrize("keep", ["views", "stats"])
def test_a_softmax_of_products_of_query_and_key_is_attention(product, keep):
    class Einsum(nn.Module):
        def forward(self, x):
            return F.softmax(input=product(x, x.mT) + 0.5, dim=-1) @ x

    model, x = nn.Sequential(Torch(), Einsum()), torch.randn(3, 5, 22)
    expected, between = model(x), model[0](x)
    with watch(model, layers="1", observe=ALL, keep=keep) as seen:
        assert torch.equal(model(x), expected)
        model(x[:1])
    assert not seen.unseen
    assert [one.shape for one in seen["1"]] == [(3, 1, 5, 5), (1, 1, 5, 5)]
    weights = (between @ between.mT).softmax(-1).detach().unsqueeze(1)
    one = seen["1"][0]
    same(one.received(), weights.sum(-2))
    same(one.entropy(), torch.special.entr(weights).sum(-1))
    same(one.top(2).weights, weights.topk(2).values)
    if keep == "views":
        same(one.dense(), weights)
        same(one[..., 1:3, [0, 4]], weights[..., 1:3, [0, 4]])
        assert not one.lse.requires_grad


class Heads(nn.Module):
    """Attention by hand with its heads folded into the batch, `extra` logits beside the scores, and dropout."""

    def __init__(self, heads=2, sink=False, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.sink = nn.Parameter(torch.randn(heads)) if sink else None

    def forward(self, x, mask=None):
        folded = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
        scores = torch.bmm(folded, folded.mT)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        if self.sink is not None:
            extra = self.sink.repeat(len(x)).view(-1, 1, 1).expand(-1, x.shape[1], 1)
            scores = torch.cat([scores, extra], -1)
            scores = scores - scores.amax(-1, keepdim=True)
        shares = scores.softmax(-1)
        self.shares = shares.detach().unflatten(0, (-1, self.heads))
        if self.sink is not None:
            shares, self.shares = shares[..., :-1], self.shares[..., :-1]
        shares = F.dropout(shares, self.dropout, self.training)
        return torch.bmm(shares, folded).unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_sinks_and_masks_of_attention_by_hand(sink, masked):
    model, x = nn.Sequential(Heads(2, sink)), torch.randn(3, 7, 8)
    mask = torch.rand(7, 7) < 0.6 if masked else None
    if mask is not None:
        mask[2] = False  # such a row has the same weight everywhere
    with watch(model, observe=("received", "entropy")) as seen:
        model[0](x, mask) if masked else model(x)
        expected = model[0].shares
    with watch(model[0], observe=("received", "entropy")) as alone:
        model[0](x, mask)
    view = alone[""][0]
    assert view.shape == (3, 2, 7, 7)
    same(view.dense(), expected)
    same(view.received(), expected.sum(-2))
    same(view.entropy(), torch.special.entr(expected).sum(-1))
    same(view.top(2).weights, expected.topk(2).values)
    if not masked:
        same(seen["0"][0].dense(), expected)


def test_a_sink_that_cannot_be_told_from_the_scores_is_named():
    class First(nn.Module):
        def forward(self, x):
            scores = (x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)
            return F.pad(scores, (1, 0)).softmax(-1)[..., 1:] @ x

    model, x = nn.Sequential(Torch(), First()), torch.randn(1, 5, 22)
    told = "1: it takes the softmax by itself, and its scores cannot be told"
    with pytest.warns(UserWarning, match=told), watch(model) as seen:
        model(x)
    assert list(seen) == ["0"]
    with pytest.raises(WatchError, match="The attention of 1 cannot be seen: it takes the softmax"):
        seen["1"]


def test_attention_by_hand_in_training_and_in_a_checkpoint():
    torch.manual_seed(5)
    model = nn.Sequential(Heads(2, dropout=0.5), Heads(2)).train()
    x = torch.randn(2, 7, 8, requires_grad=True)
    with watch(model, observe="entropy") as seen:
        model(x).sum().backward()
        first = model[0].shares
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert [len(seen[path]) for path in ("0", "1")] == [2, 2]
    same(seen["0"][0].dense(), first)


def test_attention_by_hand_keeps_what_the_model_writes_over():
    class Again(nn.Module):
        def forward(self, x):
            scores = x @ x.mT
            out = scores.softmax(-1) @ x
            scores.zero_()
            return out

    model, x = nn.Sequential(Again()), torch.randn(2, 7, 8)
    with watch(model, observe="entropy") as seen:
        model(x)
    weights = (x @ x.mT).softmax(-1).unsqueeze(1)
    same(seen["0"][0].entropy(), torch.special.entr(weights).sum(-1))
    with pytest.raises(StaleViewError, match="bias was changed in place"):
        seen["0"][0].dense()
    with torch.inference_mode(), watch(model) as seen:
        model(x)
    same(seen["0"][0].dense(), weights)


def test_two_softmaxes_of_one_module_are_two_calls():
    class Differential(nn.Module):
        def forward(self, x):
            one, other = x.chunk(2, -1)
            return ((one @ one.mT).softmax(-1) - 0.5 * (other @ other.mT).softmax(-1)) @ x

    model, x = nn.Sequential(Differential()), torch.randn(2, 7, 8)
    with watch(model) as seen:
        model(x)
    for view, part in zip(seen["0"], x.chunk(2, -1), strict=True):
        same(view.dense(), (part @ part.mT).softmax(-1).unsqueeze(1))


def test_scores_without_numbers_are_named():
    model = nn.Sequential(Heads(2))
    with pytest.warns(UserWarning, match="0: its attention runs on tensors without numbers"), watch(model):
        model(torch.randn(2, 7, 8, device="meta"))


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_attention_by_hand_inside_compiled_code_is_named():
    model = nn.Sequential(Heads(2))
    compiled = torch.compile(model.forward, backend="eager")
    x = torch.randn(2, 7, 8)
    with (
        pytest.warns(
            UserWarning, match="0: its attention, or a softmax that may be one, is inside a function compiled"
        ),
        watch(model) as seen,
    ):
        compiled(x)
    assert set(seen.unseen) == {"0"}


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


TABLE = nn.Parameter(torch.randn(4, 16, 10))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.einsum("btd,kdv->btkv", x, TABLE).softmax(-1),  # classifiers
        # Experts of each token, an expectation over bins, a gate of features, and class probabilities.
        lambda x: x[..., :4].softmax(-1).unsqueeze(-2) @ torch.einsum("btd,edf->btef", x, TABLE),
        lambda x: x.softmax(-1) @ torch.arange(16.0).view(1, 16, 1),
        lambda x: (x @ x.mT) @ x * x.softmax(-1),
        lambda x: torch.softmax((x @ x.mT).int(), -1, dtype=torch.float32),
        lambda x: torch.softmax(x.to_mkldnn(), -1),
    ],
)
def test_what_is_no_attention_is_neither_seen_nor_named(function):
    with warnings.catch_warnings(), watch(model := Of(function), observe=limelight.rows([7])) as seen:
        warnings.simplefilter("error")
        model(torch.randn(2, 8, 16))
    assert not seen.unseen
    assert not len(seen)


def test_class_probabilities_after_attention_are_no_second_call():
    with watch(model := Of(lambda x: ((x @ x.mT).softmax(-1) @ x).softmax(-1))) as seen:
        model(torch.randn(2, 8, 16))
    assert [view.shape for view in seen[""]] == [(2, 1, 8, 8)]


def _turned(query, key):
    return key.mT @ (key @ query.mT).softmax(-2)


def _letters(query, key, order="bqhk", axis=-1):
    scores = torch.einsum(f"bqhd,bkhd->{order}", query, key)
    return torch.einsum(f"{order},bkhd->bqhd", scores.softmax(axis), key)


def _out(query, key):
    found = torch.empty_like(query)
    return torch.bmm((query @ key.mT).softmax(-1), key, out=found)


def _tuple(query, key):
    return torch.einsum("bij,bjd->bid", ((query @ key.mT).softmax(-1), key))


@pytest.mark.parametrize("function", [_turned, _out, _tuple])
def test_other_ways_to_say_it(function):
    query, key = torch.randn(2, 7, 6), torch.randn(2, 5, 6)
    with torch.no_grad(), watch(model := Of(function)) as seen:
        model(query, key)
    same(seen[""][0].dense(), (query @ key.mT).softmax(-1).unsqueeze(1))


@pytest.mark.parametrize(("order", "axis"), [("bqhk", -1), ("bqkh", 2), ("bhqk", -1), ("kbhq", 0)])
def test_the_letters_of_an_einsum_say_what_its_axes_are(order, axis):
    query, key = torch.randn(2, 7, 3, 6), torch.randn(2, 5, 3, 6)
    with watch(model := Of(lambda q, k: _letters(q, k, order, axis))) as seen:
        model(query, key)
    same(seen[""][0].dense(), torch.einsum("bqhd,bkhd->bhqk", query, key).softmax(-1), atol=1e-5)


def test_scores_written_over_before_the_values_are_named():
    def function(x):
        scores = (x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)
        shares = scores.softmax(-1)
        scores.zero_()
        return shares @ x

    model = nn.Sequential(Of(function))
    with pytest.warns(UserWarning, match="0: it takes the softmax by itself.*written over"), watch(model) as seen:
        model(torch.randn(2, 8, 16))
    assert set(seen.unseen) == {"0"}


def test_what_does_not_fit_is_named_and_stops_no_model():
    model, x = nn.Sequential(Of(lambda x: (x @ x.mT).softmax(-1) @ x)), torch.randn(2, 8, 16)
    expected = model(x)
    weights = limelight.received(torch.rand(2, 9))
    told = "0: it takes the softmax by itself.*does not fit"
    with pytest.warns(UserWarning, match=told), watch(model, observe=weights) as seen:
        assert torch.equal(model(x), expected)
    assert not len(seen)


class Asked(nn.Module):
    @property
    def num_heads(self):
        raise RuntimeError("asked")

    def forward(self, x):
        return (x @ x.mT).softmax(-1) @ x


def test_a_module_is_not_asked_for_what_it_computes():
    with watch(model := Asked()) as seen:
        model(torch.randn(2, 8, 16))
    assert seen[""][0].shape == (2, 1, 8, 8)


class Deeper(nn.Module):
    """A softmax two modules down, and the number of heads one up."""

    def __init__(self):
        super().__init__()
        self.soften = nn.Sequential(Softmax(), nn.Dropout(0.0))

    def forward(self, x):
        return self.soften((x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)) @ x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.num_heads = Deeper(), 2

    def forward(self, x):
        return self.core(x)


def test_parts_of_attention_in_modules_of_their_own():
    x = torch.randn(6, 8, 16)
    with watch(model := Outer()) as seen:
        model(x)
    assert list(seen) == ["core"]
    weights = (0.5 * (x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)).softmax(-1)
    same(seen["core"][0].dense(), weights.unflatten(0, (3, 2)))


def test_attention_by_hand_beside_a_call_that_is_caught():
    model = Of(lambda x: F.scaled_dot_product_attention((x @ x.mT).softmax(-1) @ x, x, x))
    x = torch.randn(2, 8, 16)
    with watch(model) as seen:
        model(x)
        model(x)
    assert [view.shape for view in seen[""]] == [(2, 1, 8, 8), (2, 8, 8)] * 2


def test_a_softmax_that_is_no_attention_is_not_kept():
    head, held = nn.Linear(16, 100), []

    def function(x):
        scores = head(x)
        held.append(weakref.ref(scores))
        for _ in range(40):
            x = x + 1.0
        return scores.softmax(-1).sum() + x.sum()

    with watch(model := Of(function), observe="entropy", keep="stats") as seen:
        for _ in range(4):
            model(torch.randn(2, 8, 16))
        kept = [one for one in gc.get_objects() if type(one) is by_hand._Waiting]
        assert len(kept) <= 2
        assert not any(one.scores.grad_fn for one in kept)
        assert not len(seen)
        del kept
    gc.collect()
    waiting = [one for one in gc.get_objects() if type(one) is by_hand._Waiting]
    assert not waiting
    assert not any(one() is not None for one in held)


def test_a_router_is_no_attention():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return F.softmax(x @ self.weight, -1)

    with warnings.catch_warnings(), watch(model := Router()) as seen:
        warnings.simplefilter("error")
        model(torch.randn(2, 7, 5))
    assert not seen.unseen


class Tutorial(nn.Module):
    """Additive attention of one query, as it is written by hand: no product of query and key."""

    def __init__(self, axis=-1, flat=False):
        super().__init__()
        self.axis, self.flat = axis, flat
        self.query, self.key, self.vector = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x):
        return torch.bmm(F.softmax(self.scores(x), dim=self.axis).squeeze(-1).view(len(x), 1, -1), x)

    def scores(self, x):
        scores = self.vector(torch.tanh(self.query(x[:, -1:]) + self.key(x)))  # [B, S, 1]
        return scores if self.axis == 1 else scores.squeeze(2) if self.flat else scores.mT

    def weights(self, x):
        return F.softmax(self.scores(x), dim=self.axis).view(len(x), 1, -1)


class Softmax(nn.Module):
    def forward(self, scores):
        return torch.softmax(scores * 0.5, -1)


class ByModules(nn.Module):
    """The softmax is a module of its own, and dropout lies between weights and values."""

    def __init__(self, product):
        super().__init__()
        self.softmax, self.product = Softmax(), product

    def forward(self, x):
        return self.product(F.dropout(self.softmax((x.unsqueeze(2) * x.unsqueeze(1)).sum(-1)), 0.1), x)

    def weights(self, x):
        return ((x.unsqueeze(2) * x.unsqueeze(1)).sum(-1) * 0.5).softmax(-1)


@pytest.mark.parametrize(
    "model",
    [
        Tutorial(),
        Tutorial(flat=True),
        Tutorial(axis=1),
        ByModules(torch.matmul),
        ByModules(lambda weights, x: torch.einsum("bts, bsd -> btd", weights, x)),
        ByModules(lambda weights, x: weights @ x),
    ],
)
def test_weights_of_a_softmax_that_meet_values_are_attention(model):
    x = torch.randn(2, 5, 6)
    with watch(nn.Sequential(nn.Identity(), model), observe="received") as seen:
        model(x)
    assert not seen.unseen
    assert list(seen) == ["1"]
    (view,) = seen["1"]
    same(view.dense(), model.weights(x).unsqueeze(1))
    same(view.received(), view.dense().sum(-2))


@pytest.mark.parametrize(
    "use",
    [
        # The mean of a table of embeddings, experts of each token, and a product that has nothing to do with it.
        lambda shares, x: torch.matmul(shares, nn.Parameter(torch.randn(1, 5, 6))),
        lambda shares, x: torch.einsum("bte,bted->btd", shares, torch.randn(2, 5, 5, 6)),
        lambda shares, x: (shares.amax(-1), x.mT @ x),
        lambda shares, x: (F.softmax(shares, 1) + 1) @ torch.randn(2, 4, 6) if shares.shape[-1] == 4 else None,
    ],
)
def test_a_softmax_without_values_is_no_attention(use):
    class Other(nn.Module):
        def forward(self, x):
            return use(torch.softmax((x.unsqueeze(2) * x.unsqueeze(1)).sum(-1), -1), x)

    with warnings.catch_warnings(), watch(model := Other()) as seen:
        warnings.simplefilter("error")
        model(torch.randn(2, 5, 6))
    assert not seen.unseen


ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("call", "causal"),
    [
        (lambda q: ATEN.scaled_dot_product_attention(q, q, q, None, 0.0, True), True),
        (lambda q: ATEN.scaled_dot_product_attention.default(q, q, q, scale=0.25), False),
        (lambda q: ATEN._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.0, True)[0], True),
        (lambda q: ATEN._scaled_dot_product_flash_attention_for_cpu.default(q, key=q, value=q)[0], False),
        (lambda q: ATEN._scaled_dot_product_attention_math(q, q, q, is_causal=True)[0], True),
        (lambda q: torch._scaled_dot_product_attention_math(q, q, q)[0], False),  # pyright: ignore
        (
            lambda q: ATEN._scaled_dot_product_flash_attention_for_cpu(
                q, q, q, attn_mask=torch.full((7, 7), -torch.inf).triu(1)
            )[0],
            True,
        ),
    ],
)
def test_fused_kernels_called_by_their_own_name_are_seen(call, causal):
    class Direct(nn.Module):
        def forward(self, q):
            return call(q)

    model, q = Direct(), torch.randn(3, 2, 7, 16)
    expected = model(q)
    with watch(model, observe=ALL) as seen:
        assert torch.equal(model(q), expected)
    scores = q @ q.mT / 4
    weights = (scores.masked_fill(torch.ones(7, 7).triu(1) > 0, -torch.inf) if causal else scores).softmax(-1)
    (view,) = seen[""]
    same(view.dense(), weights)
    same(view.received(), weights.sum(-2))


def test_an_attention_kernel_that_is_not_understood_is_named():
    @torch.library.custom_op("testing::my_attention_fwd", mutates_args=())
    def kernel(q: Tensor) -> Tensor:
        return q.clone()

    class Direct(nn.Module):
        def forward(self, q):
            return kernel(q)

    model = nn.Sequential(Direct())
    with pytest.warns(UserWarning, match=r"0: it calls torch\.ops\.testing\.my_attention_fwd"), watch(model):
        model(torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_is_named(compiled):
    attention = torch.compile(flex_attention, backend="aot_eager", fullgraph=True) if compiled else flex_attention

    class Flex(nn.Module):
        def forward(self, q):
            return attention(q, q, q)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.flex, self.after = Flex(), nn.PReLU()

        def forward(self, q):
            return self.after(self.flex(q)) * 2

    model, q = Around(), torch.randn(1, 2, 5, 16)
    expected = model(q)
    for _ in range(2):
        # The second time nothing is compiled any more.
        with pytest.warns(UserWarning, match="flex: it calls flex_attention.*tile_score"), watch(model) as seen:
            assert torch.equal(model(q), expected)
        assert set(seen.unseen) == {"flex"}
    with warnings.catch_warnings(), watch(model, layers="after") as seen:
        warnings.simplefilter("error")
        model(q)
    assert not seen.unseen


def test_a_function_that_was_compiled_runs_and_is_seen_as_the_operators_it_calls():
    attention = torch.compile(
        lambda q: F.scaled_dot_product_attention(q + 0, q, q), backend="aot_eager", fullgraph=True
    )

    class Compiled(nn.Module):
        def forward(self, q):
            return attention(q)

    model, q = nn.Sequential(Compiled()), torch.randn(1, 2, 5, 16)
    expected = model(q)
    with watch(model) as seen:
        assert torch.equal(model(q), expected)
    same(seen["0"][0].dense(), (q @ q.mT / 4).softmax(-1))
    hidden = torch.compile(
        lambda q: F.scaled_dot_product_attention(q, q, q), backend=lambda graph, _: lambda *given: given, fullgraph=True
    )
    attention = hidden
    with (
        pytest.warns(
            UserWarning,
            match=r"0: its attention, or a softmax that may be one, is inside a function compiled.*force_eager",
        ),
        watch(model),
    ):
        model(q)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules():
    class Attends(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, q, q)

    class ByHand(nn.Module):
        def forward(self, q):
            return torch.softmax(q @ q.mT, -1) @ q

    class Activation(nn.Module):
        def forward(self, q):
            return torch.relu(q) * 2

    for attention in (Attends(), ByHand()):
        model = nn.Sequential(nn.ReLU(), torch.jit.script(attention))
        with pytest.raises(WatchError, match=r"model: 1 is scripted \(torch\.jit\).*other layers"):
            watch(model)
        with watch(model, layers="0"):
            model(torch.randn(1, 2, 3, 4))
    model = nn.Sequential(Torch(), torch.jit.script(Activation()))
    with watch(model) as seen:
        model(torch.randn(1, 5, 22))
    assert list(seen) == ["0"]


def test_a_compiled_model():
    with pytest.raises(WatchError, match=r"it is compiled.*model\._orig_mod"):
        watch(torch.compile(Torch(), backend="eager"))  # pyright: ignore
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module; it is builtin"):
        watch(torch.relu)  # pyright: ignore
    model = nn.Sequential(Torch(), torch.compile(Torch(), backend="eager"))  # pyright: ignore
    with pytest.raises(WatchError, match="model: 1 is compiled"):
        watch(model, layers="1._orig_mod*")
    with watch(model, layers="0") as seen:
        model[0](torch.randn(1, 5, 22))
    assert list(seen) == ["0"]


def test_torchs_own_errors_stay_torchs():
    model, x = layers(attn_mask=torch.ones(3, 4, dtype=torch.bool)), torch.randn(1, 5, 22)
    with (
        pytest.raises(RuntimeError, match="must match the size of tensor b"),
        watch(model),
    ):
        model(x)


def test_code_without_attention_is_compiled_once_though_others_attend():
    counter = torch._dynamo.testing.CompileCounter()
    attention = Torch()
    rest = torch.compile(nn.Linear(22, 22), backend=counter, fullgraph=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.compile(attention, backend="eager")

        def forward(self, x):
            return rest(self.attention(x))

    model, x = Model(), torch.randn(2, 5, 22)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is compiled is told as unseen
        with watch(model, layers="") as seen:
            for _ in range(10):
                model(x)
    assert counter.frame_count <= 2
    assert seen.unseen


def test_what_the_backward_pass_needs_is_not_the_views():
    model, x = Torch(), torch.randn(2, 20, 22, requires_grad=True)
    with watch(model) as seen:
        out = model(x)
    seen[""][0].lse.add_(1)
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(5, 3, 8), (2, 2, 5, 3, 8)])
@pytest.mark.parametrize("wider", [0, 8])
def test_outputs_lie_as_those_of_torch(shape, wider):
    class Model(nn.Module):
        def forward(self, *inputs):
            return F.scaled_dot_product_attention(*inputs)

    query = torch.randn(*shape).transpose(-3, -2)
    value = torch.randn(*shape[:-1], shape[-1] + wider).transpose(-3, -2)
    for inputs in ((query, query, value), (query.contiguous(), query.contiguous(), value.contiguous())):
        plain = Model()(*inputs)
        model = Model()
        with watch(model, observe=("entropy",)) as seen:
            watched = model(*inputs)
        assert watched.stride() == plain.stride()
        assert len(seen) == 1


def test_a_statistic_is_nobody_elses():
    class Model(nn.Module):
        def forward(self, x):
            return limelight.look(x, x, x, observe=("entropy",))

    model, x = Model(), torch.randn(2, 3, 5, 8)
    with (
        watch(model, observe=("entropy",), keep="stats") as one,
        watch(model, observe=("entropy",), keep="stats") as two,
    ):
        _, view = model(x)
    view.entropy().zero_()
    one[""][0].entropy().mul_(2)
    assert (two[""][0].entropy() > 0).all()
    torch.testing.assert_close(one[""][0].entropy(), 2 * two[""][0].entropy())
