"""Both backends against the oracle: outputs, lse and every gradient, at any block size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import SCORES, Sizes, blocks_of, call, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.oracle import answer
from tests.support.tolerance import assert_near
from torch.autograd import forward_ad

import limelight
from limelight.errors import BackendError

BACKENDS = ("reference", "streaming")
BUDGETS = (1, 40, 300, 5000, 1 << 21)


def _compare(sizes, score, mask, backend, budget, bias=None, dtype=torch.float64, sink=None):
    exact = [leaf.detach().to(dtype).double().requires_grad_() for leaf in tensors(sizes)]
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in exact]
    weights64 = [leaf.detach().to(dtype).double().requires_grad_() for leaf in score.leaves]
    ours = [leaf.detach().to(dtype).requires_grad_() for leaf in weights64]
    given = {"bias": bias, "sink": sink}
    given = {name: one.detach().to(dtype).double().requires_grad_() for name, one in given.items() if one is not None}
    extra64 = list(given.values())
    narrow = {name: one.detach().to(dtype).requires_grad_() for name, one in given.items()}
    extra = list(narrow.values())
    expected = answer(*exact, score.oracle(*weights64), None if mask is None else mask.truth, **given)
    to_output = torch.randn(expected.output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    to_output = to_output.to(dtype).double()
    wanted = [*exact, *weights64, *extra64]
    # Sums of nothing: they tie the output to every leaf where no row may attend to anything.
    tied = expected.output + sum(leaf.flatten()[:0].sum() for leaf in wanted)
    slopes = torch.autograd.grad(tied, wanted, to_output, allow_unused=True)
    with blocks_of(budget):
        output = limelight.attend(
            *leaves,
            score=score.make(*ours),
            mask=None if mask is None else mask.mask,
            backend=backend,
            **narrow,
        )
        grads = torch.autograd.grad(output, [*leaves, *ours, *extra], to_output.to(dtype), allow_unused=True)
    assert output.dtype is dtype
    assert_near(output, expected.output, dtype, sizes.terms, "output: ")
    for place, (grad, slope, leaf) in enumerate(zip(grads, slopes, wanted, strict=True)):
        grad = torch.zeros_like(leaf) if grad is None else grad
        slope = torch.zeros_like(leaf) if slope is None else slope
        assert_near(grad, slope, dtype, sizes.terms, f"gradient {place}: ")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("budget", [40, 1 << 21])
def test_every_score_agrees_with_the_oracle(name, backend, budget):
    sizes = Sizes()
    _compare(sizes, score_case(name, sizes), None, backend, budget)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("name", SCORES)
def test_heads_side_by_side_change_nothing(name, backend):
    sizes = Sizes()
    score = score_case(name, sizes)
    found = []
    for order in (lambda one: one.contiguous(), lambda one: one.transpose(1, 2).contiguous().transpose(1, 2)):
        leaves = [order(one.detach().float()).requires_grad_() for one in tensors(sizes)]
        made = score.make(*(one.detach().float() for one in score.leaves))
        output, view = limelight.look(*leaves, score=made, backend=backend)
        grads = torch.autograd.grad(output.square().sum(), leaves)
        found.append((output, view.dense(), view[:, 1:, ::2, [3, 0]], *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("name", ["dot", "additive"])
def test_values_without_columns(name, queries, backend):
    sizes = Sizes(T=queries, E=0)
    leaves, score = tensors(sizes, dtype=torch.float32), score_case(name, sizes)
    output, view = limelight.look(*leaves, score=score.make(*(one.float() for one in score.leaves)), backend=backend)
    assert output.shape == (2, 3, queries, 0)
    other = limelight.look(leaves[0], leaves[1], leaves[1], score=score.make(*(one.float() for one in score.leaves)))
    for one, want in zip(
        torch.autograd.grad(output.sum() + view.lse.sum(), leaves[:2]),
        torch.autograd.grad(other[1].lse.sum(), leaves[:2]),
        strict=True,
    ):
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_what_torch_negates_lazily_has_its_sign(backend):
    def lazily(*shape):
        return torch.complex(torch.zeros(shape), torch.randn(shape)).conj().imag

    given = [lazily(1, 1, 4, 8), lazily(1, 1, 5, 8), lazily(1, 1, 5, 8)]
    bias, sink, to_output = lazily(4, 5), lazily(1), lazily(1, 1, 4, 8)
    assert all(one.is_neg() for one in (*given, bias, sink, to_output))
    found = []
    for order in (lambda one: one, lambda one: one.resolve_neg()):
        query = order(given[0]).detach().requires_grad_()
        options = {"bias": order(bias), "sink": order(sink), "backend": backend}
        output, view = limelight.look(query, *map(order, given[1:]), **options, observe=("entropy",))
        found.append((output, view.entropy(), view.dense(), *torch.autograd.grad(output, query, order(to_output))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("queries", [4, 200])
def test_a_tangent_of_forward_mode_is_never_lost(queries):
    x = torch.randn(1, 1, queries, 8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        found, want = (
            forward_ad.unpack_dual(limelight.attend(dual, x, x, backend=one)).tangent for one in ("auto", "reference")
        )
        torch.testing.assert_close(found, want)
        for backend in ("native", "torch"):
            with pytest.raises(BackendError, match="a forward-mode derivative is wanted"):
                limelight.attend(dual, x, x, backend=backend)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_score_mask_bias_and_block_size_agree_with_the_oracle(data):
    G = data.draw(st.sampled_from((1, 2)))
    sizes = Sizes(
        lead=data.draw(st.sampled_from(((), (2,), (2, 3)))),
        H=G * data.draw(st.sampled_from((1, 2))),
        G=G,
        T=data.draw(st.sampled_from((1, 2, 5))),
        S=data.draw(st.sampled_from((1, 3, 7))),
        D=3,
        E=5,
    )
    score = score_case(data.draw(st.sampled_from(SCORES)), sizes)
    mask = data.draw(st.none() | mask_cases(sizes))
    bias = None
    if data.draw(st.booleans()):
        shape = [size if data.draw(st.booleans()) else 1 for size in sizes.full[data.draw(st.integers(0, 2)) :]]
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if data.draw(st.booleans()):
            bias = bias.masked_fill(bias > 0.7, -torch.inf)
    sink = None
    if data.draw(st.booleans()):
        shape = (*[size if data.draw(st.booleans()) else 1 for size in sizes.lead], sizes.H)
        sink = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    backend, budget = data.draw(st.sampled_from(BACKENDS)), data.draw(st.sampled_from(BUDGETS))
    _compare(sizes, score, mask, backend, budget, bias, sink=sink)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [100, 1 << 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dot", "additive per head"])
def test_narrow_dtypes_are_storage_only(name, dtype, budget, backend):
    sizes = Sizes(H=2, G=1, D=5, E=3)
    _compare(sizes, score_case(name, sizes), None, backend, budget, dtype=dtype)


def test_bf16_sums_are_kept_in_float32():
    # 4,099 values of 1 and a weight of 1/4099 each: a bf16 running sum would stop at 256.
    query, key = torch.zeros(1, 1, 3, dtype=torch.bfloat16), torch.zeros(1, 4099, 3, dtype=torch.bfloat16)
    for backend in BACKENDS:
        with blocks_of(64):
            output = limelight.attend(query, key, torch.ones_like(key), backend=backend)
        assert torch.equal(output, torch.ones_like(query))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [40, 1 << 21])
def test_large_scores_do_not_overflow(backend, budget):
    sizes = Sizes()
    query, key, value = tensors(sizes, dtype=torch.float32)
    with blocks_of(budget):
        output, view = limelight.look(query * 1000, key * 1000, value, backend=backend)
    assert output.isfinite().all()
    assert view.lse.isfinite().all()


@pytest.mark.parametrize("budget", [40, 1 << 21])
@pytest.mark.parametrize("name", ["dot", "additive per head", "tile"])
def test_gradcheck_of_output_and_lse(name, budget):
    sizes = Sizes(lead=(2,), H=2, G=1, T=3, S=5, D=2, E=3)
    score = score_case(name, sizes)
    mask = limelight.lengths(torch.tensor([5, 0])) & limelight.causal()
    bias = torch.randn(2, 1, 5, dtype=torch.float64, requires_grad=True)
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def both(query, key, value, bias, sink, *leaves):
        score_of = score.make(*leaves)
        extras = {"mask": mask, "bias": bias, "sink": sink, "dropout": 0.2, "seed": 3}
        output, view = limelight.look(query, key, value, score=score_of, **extras)
        return output, view.lse[0, :, :], view[0]

    with blocks_of(budget):
        assert torch.autograd.gradcheck(both, (*tensors(sizes), bias, sink, *score.leaves))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [2, 1 << 21])
def test_sinks_worked_by_hand(backend, budget):
    # Scores 0 and ln 3, a sink of ln 4: weights 1/8 and 3/8. The second row has no keys.
    query, key = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[0.0], [math.log(3)]]])
    value = torch.tensor([[[8.0], [16.0]]])
    sink = torch.tensor([math.log(4)], requires_grad=True)
    mask = limelight.dense(torch.tensor([[True, True], [False, False]]))
    with blocks_of(budget):
        output, view = limelight.look(query, key, value, mask=mask, sink=sink, backend=backend, observe=("entropy",))
        torch.testing.assert_close(output, torch.tensor([[[7.0], [0.0]]]))
        torch.testing.assert_close(view.dense(), torch.tensor([[[0.125, 0.375], [0.0, 0.0]]]))
        torch.testing.assert_close(view.lse, torch.tensor([[math.log(8), math.log(4)]]))
        entropy = 0.125 * math.log(8) + 0.375 * math.log(8 / 3)
        torch.testing.assert_close(view.entropy(), torch.tensor([[entropy, 0.0]]))
        # d output / d sink = -w_sink output, d lse / d sink = w_sink; the row without keys has its lse alone.
        (slope,) = torch.autograd.grad(output, sink, torch.tensor([[[1.0], [math.nan]]]), retain_graph=True)
        torch.testing.assert_close(slope, torch.tensor([-3.5]))
        (slope,) = torch.autograd.grad(view.lse.sum(), sink)
        torch.testing.assert_close(slope, torch.tensor([1.5]))


@pytest.mark.parametrize("budget", [40, 1 << 21])
def test_double_backward_says_that_it_is_not_there(budget):
    query, key, value = tensors(Sizes())
    with blocks_of(budget):
        output = limelight.attend(query, key, value, backend="streaming")
        (grad,) = torch.autograd.grad(output.sum(), query, create_graph=True)
        loss = grad.square().sum() + output.sum()
        with pytest.raises(BackendError, match=r"first derivatives only.*backend='reference'"):
            loss.backward()


@pytest.mark.parametrize("backend", ["native", "streaming"])
def test_double_backward_by_one_input_says_so_too(backend):
    """Autograd goes only where the input is: it must not come back without what it did not find."""
    query, key, value = (one.float().detach().requires_grad_() for one in tensors(Sizes()))
    output = limelight.attend(query, key, value, backend=backend)
    (grad,) = torch.autograd.grad(output.square().sum(), key, create_graph=True)
    for one in (query, key, value):
        with pytest.raises(BackendError, match=r"first derivatives only.*backend='reference'"):
            torch.autograd.grad(grad.square().sum() + one.square().sum(), one, retain_graph=True)


def test_reference_has_second_derivatives():
    query, key, value = tensors(Sizes(lead=(), H=1, G=1, T=2, S=3, D=2, E=2))
    assert torch.autograd.gradgradcheck(lambda *x: limelight.attend(*x, backend="reference"), (query, key, value))


@pytest.mark.parametrize("budget", [3000, 1 << 21])
def test_same_inputs_give_the_same_bits(budget):
    sizes = Sizes(T=31, S=37)
    score = score_case("additive", sizes)
    runs = []
    for _ in range(3):
        leaves = tensors(sizes, dtype=torch.float32)
        with blocks_of(budget):
            output = call(score, *leaves, mask=limelight.causal(), dropout=0.25, seed=7, backend="streaming")
            runs.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    for run in runs[1:]:
        assert all(torch.equal(first, again) for first, again in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_of_size_zero(backend):
    query, key, value = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 0, 7), torch.zeros(2, 3, 0, 11)
    output, view = limelight.look(query, key, value, backend=backend)
    assert torch.equal(output, torch.zeros(2, 3, 5, 11))
    assert torch.equal(view.lse, torch.full((2, 3, 5), -torch.inf))
    for shape in ((0, 3, 5, 7), (2, 3, 0, 7)):
        query = torch.zeros(shape, requires_grad=True)
        other = torch.zeros(shape[0], 3, 4, 7)
        output = limelight.attend(query, other, other, backend=backend)
        assert output.shape == shape
        output.sum().backward()


def test_autocast_narrows_nothing_inside_and_mends_mixed_dtypes():
    sizes = Sizes()
    query, key, value = tensors(sizes, dtype=torch.float32)
    for backend in BACKENDS:
        for budget in (40, 1 << 21):
            with blocks_of(budget):
                plain = limelight.attend(query, key, value, backend=backend)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    assert torch.equal(limelight.attend(query, key, value, backend=backend), plain)
                    mixed = limelight.attend(query.bfloat16(), key, value, backend=backend)
                assert mixed.dtype is torch.float32


def test_additive_is_as_accurate_as_tanh_in_float32():
    query, key = (torch.randn(3, 1, n, 256, generator=torch.Generator().manual_seed(n)) for n in (41, 43))
    vector = torch.randn(256, generator=torch.Generator().manual_seed(1))
    exact = torch.tanh(query.double().unsqueeze(3) + key.double().unsqueeze(2)) @ vector.double()
    plain = torch.tanh(query.unsqueeze(3) + key.unsqueeze(2)) @ vector
    score = limelight.additive(vector)
    ours, _ = score.tile(query, key, score.parameters, None)
    error = (ours - exact).abs()
    assert error.max() < 4 * (plain - exact).abs().max()
    assert error.mean() < 4 * (plain - exact).abs().mean()
