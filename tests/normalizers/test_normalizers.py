"""Sigmoid, sparsemax and entmax against rows worked out one by one, in both backends, at any block size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.allocations import Largest
from tests.support.inputs import SCORES, Sizes, blocks_of, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.normalizers import COMPETING, NORMALIZERS
from tests.support.oracle import answer
from tests.support.tolerance import assert_near

import limelight
from limelight.backends.protocol import SOFTMAX
from limelight.errors import ArgumentError, BackendError

BACKENDS = ("reference", "streaming")
BUDGETS = (1, 40, 300, 5000, 1 << 21)
"""Of 1 and 40 numbers no whole row is held."""


def _compare(name, sizes, score, mask, backend, budget, bias=None, sink=None, dtype=torch.float64, scale=1.0):
    """Output, threshold and every gradient against the oracle."""
    normalizer, normalize = NORMALIZERS[name]
    # Huge numbers are integers, so that their scores are exact: a rounding of a score of 10,000 is no small number.
    exact = [leaf.detach() * scale if scale <= 1.0 else (leaf.detach() * scale).round() for leaf in tensors(sizes)]
    exact = [leaf.to(dtype).double().requires_grad_() for leaf in exact]
    weights = [leaf.detach().to(dtype).double().requires_grad_() for leaf in score.leaves]
    given = {name: one for name, one in (("bias", bias), ("sink", sink)) if one is not None}
    given = {name: one.detach().to(dtype).double().requires_grad_() for name, one in given.items()}
    wanted = [*exact, *weights, *given.values()]
    truth = None if mask is None else mask.truth
    expected = answer(*exact, score.oracle(*weights), truth, **given, normalize=normalize)
    shape, maker = expected.output.shape, torch.Generator().manual_seed(5)
    to_output = torch.randn(shape, generator=maker, dtype=torch.float64).to(dtype).double()
    to_threshold = torch.randn(shape[:-1], generator=maker, dtype=torch.float64)
    # Rows without keys have a threshold of -inf.
    to_threshold[expected.lse == -math.inf] = 0.0
    tied = (expected.output * to_output).sum() + sum(leaf.flatten()[:0].sum() for leaf in wanted)
    tied = tied + (expected.lse.masked_fill(expected.lse == -math.inf, 0.0) * to_threshold).sum()
    slopes = torch.autograd.grad(tied, wanted, allow_unused=True)
    ours = [leaf.detach().to(dtype).requires_grad_() for leaf in wanted]
    query, key, value, *rest = ours
    leaves, extras = rest[: len(weights)], dict(zip(given, rest[len(weights) :], strict=True))
    rule = None if mask is None else mask.mask
    options = {"score": score.make(*leaves), "mask": rule, **extras, "normalizer": normalizer, "backend": backend}
    with blocks_of(budget):
        output, view = limelight.look(query, key, value, **options)
        # Sigmoid's threshold depends on no tensor.
        total = (output * to_output.to(dtype)).sum()
        if name in COMPETING:
            threshold = view.threshold.masked_fill(view.threshold == -math.inf, 0.0)
            total = total + (threshold * to_threshold.to(view.dtype)).sum()
        grads = torch.autograd.grad(total, ours, allow_unused=True)
        plain = limelight.attend(*(one.detach() for one in (query, key, value)), **options)
    assert torch.equal(plain, output)
    assert_near(output, expected.output, dtype, sizes.terms, "output: ")
    assert_near(view.threshold, expected.lse, view.dtype, sizes.terms, "threshold: ")
    for place, (grad, slope, leaf) in enumerate(zip(grads, slopes, wanted, strict=True)):
        grad = torch.zeros_like(leaf) if grad is None else grad
        slope = torch.zeros_like(leaf) if slope is None else slope
        assert_near(grad, slope, dtype, sizes.terms, f"gradient {place}: ")
    return view, expected


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_agrees_with_the_oracle(name, backend, score):
    sizes = Sizes()
    _compare(name, sizes, score_case(score, sizes), None, backend, 300)


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
    name = data.draw(st.sampled_from(tuple(NORMALIZERS)))
    score = score_case(data.draw(st.sampled_from(SCORES)), sizes)
    mask = data.draw(st.none() | mask_cases(sizes))
    bias, sink = None, None
    if data.draw(st.booleans()):
        shape = [size if data.draw(st.booleans()) else 1 for size in sizes.full[data.draw(st.integers(0, 2)) :]]
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if data.draw(st.booleans()):
            bias = bias.masked_fill(bias > 0.7, -torch.inf)
    if name in COMPETING and data.draw(st.booleans()):
        shape = (*[size if data.draw(st.booleans()) else 1 for size in sizes.lead], sizes.H)
        sink = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    backend, budget = data.draw(st.sampled_from(BACKENDS)), data.draw(st.sampled_from(BUDGETS))
    _compare(name, sizes, score, mask, backend, budget, bias, sink)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [100, 1 << 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_storage_only(name, dtype, budget, backend):
    sizes = Sizes(H=2, G=1, D=5, E=3)
    _compare(name, sizes, score_case("dot", sizes), None, backend, budget, dtype=dtype)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-6, 0.3, 30.0])
def test_tiny_and_huge_scores(name, backend, scale):
    # 30 makes scores of thousands: one key wins.
    sizes = Sizes()
    _compare(name, sizes, score_case("plain dot", sizes), None, backend, 300, scale=scale)


@pytest.mark.parametrize("name", COMPETING)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [7, 1 << 21])
def test_ties_share_alike(name, backend, budget):
    # Three keys of score 1, two of 1 - 1/3 at which sparsemax has its threshold, and the rest far below.
    scores = torch.tensor([1.0, 2 / 3, 1.0, -50.0, 1.0, 2 / 3, -math.inf], dtype=torch.float64)
    zeros = torch.zeros(1, 2, 7, 1, dtype=torch.float64)
    value = torch.eye(7, dtype=torch.float64).expand(1, 2, 7, 7)
    with blocks_of(budget):
        output, view = limelight.look(
            zeros[:, :, :3], zeros, value, bias=scores, normalizer=NORMALIZERS[name][0], backend=backend
        )
        expected, threshold = NORMALIZERS[name][1](scores[:6])
        torch.testing.assert_close(output[0, 1, 2, :6], expected)
        torch.testing.assert_close(view[0, 0, 1, :6], expected)
        torch.testing.assert_close(view.threshold[0, 0, 0], threshold)
        if name == "sparsemax":
            assert abs(threshold - 2 / 3) < 1e-12


@given(
    scores=st.lists(st.sampled_from((0.0, 0.25, -0.5, 1.0, 3.0, -40.0, 1e4, 0.1, 1e-9)), min_size=1, max_size=40),
    name=st.sampled_from(COMPETING),
    budget=st.sampled_from((7, 1 << 21)),
)
@example(scores=[float(-(2**place)) for place in range(30)], name="sparsemax", budget=1 << 21)
@example(scores=[-(1.5**-place) for place in range(40)], name="entmax15", budget=1 << 21)
@settings(deadline=None)
def test_thresholds_and_supports_are_those_of_sorting(scores, name, budget):
    row = torch.tensor(scores, dtype=torch.float64)
    expected, threshold = NORMALIZERS[name][1](row)
    nothing = torch.zeros(1, 1, len(row), 1, dtype=torch.float64)
    with blocks_of(budget):
        options = {"bias": row, "normalizer": NORMALIZERS[name][0], "backend": "streaming"}
        view = limelight.look(nothing[:, :, :1], nothing, nothing, **options)[1]
        weights = view.dense()[0, 0, 0]
    near = 1e-12 * max(1.0, float(row.abs().max()))
    torch.testing.assert_close(view.threshold[0, 0, 0], threshold, rtol=0.0, atol=near)
    torch.testing.assert_close(weights, expected, rtol=0.0, atol=near)
    assert abs(float(weights.sum()) - 1.0) < near * len(scores)
    apart = (row - threshold).abs() > near
    assert torch.equal((weights == 0.0)[apart], (expected == 0.0)[apart])


def test_long_rows_are_normalized_in_float32():
    # All but equal scores: thousands of keys in the support, of tiny weights.
    for name in COMPETING:
        maker = torch.Generator().manual_seed(2)
        row = 20.0 + 1e-3 * torch.rand(1, 1, 1, 4099, generator=maker)
        query, key = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 4099, 1)
        options = {"bias": row, "normalizer": NORMALIZERS[name][0], "backend": "streaming"}
        # Columns of 68 keys each: a product's own sum of 4,099 numbers would be the less exact.
        value = torch.eye(61)[torch.arange(4099) % 61][None, None]
        output = limelight.attend(query, key, value, **options).double()
        exact = limelight.attend(query.double(), key.double(), value.double(), **options)
        assert abs(exact.sum().item() - 1.0) < 1e-12
        assert abs(output.sum().item() - 1.0) < 4e-6
        torch.testing.assert_close(output, exact, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("score", "budget"), [("dot", 60), ("additive per head", 1 << 21), ("tile", 1 << 21)])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_gradcheck_of_output_threshold_and_weights(name, score, budget):
    sizes = Sizes(lead=(2,), H=2, G=1, T=2, S=5, D=2, E=3)
    case = score_case(score, sizes)
    mask = limelight.lengths(torch.tensor([5, 0])) & limelight.causal()
    extras = [torch.randn(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()]
    if name in COMPETING:
        extras.append(torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True))

    def all_three(query, key, value, bias, *rest):
        sink, leaves = (rest[0], rest[1:]) if name in COMPETING else (None, rest)
        options = {"mask": mask, "bias": bias, "sink": sink, "dropout": 0.2, "seed": 3}
        normalizer = NORMALIZERS[name][0]
        output, view = limelight.look(query, key, value, score=case.make(*leaves), normalizer=normalizer, **options)
        return output, view.threshold[0], view[0]

    with blocks_of(budget):
        assert torch.autograd.gradcheck(all_three, (*tensors(sizes), *extras, *case.leaves))


@pytest.mark.parametrize("name", NORMALIZERS)
def test_reference_has_second_derivatives_and_streaming_says_it_has_none(name):
    normalizer = NORMALIZERS[name][0]
    leaves = tensors(Sizes(lead=(), H=1, G=1, T=2, S=3, D=2, E=2))
    attend = limelight.attend
    assert torch.autograd.gradgradcheck(lambda *x: attend(*x, normalizer=normalizer, backend="reference"), leaves)
    output = attend(*leaves, normalizer=normalizer)
    (grad,) = torch.autograd.grad(output.sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match="first derivatives only"):
        grad.square().sum().backward()


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("budget", [40, 1 << 21])
def test_dropout_drops_the_same_weights_in_both_backends(name, budget):
    leaves, runs = tensors(Sizes()), []
    for backend in BACKENDS:
        with blocks_of(budget):
            options = {"dropout": 0.4, "seed": 11, "normalizer": NORMALIZERS[name][0], "backend": backend}
            output = limelight.attend(*leaves, mask=limelight.causal(), **options)
            runs.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    for have, want in zip(*runs, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [1, 40, 1 << 21])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_padding_of_nan_and_inf_changes_nothing(name, backend, budget, number):
    sizes, mask = Sizes(), limelight.lengths(torch.tensor([4, 0]))

    def run(padding):
        leaves = [leaf.detach() for leaf in tensors(sizes)]
        for leaf in leaves[1:]:
            leaf[0, :, 4:] = padding
        leaves[2][1] = padding
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with blocks_of(budget):
            options = {"mask": mask, "normalizer": NORMALIZERS[name][0], "backend": backend}
            output, view = limelight.look(*leaves, **options)
            to_output = torch.ones_like(output)
            # The gradient of an empty row's output may be anything.
            to_output[1] = math.nan
            return output, *torch.autograd.grad(output, leaves, to_output), view.dense()

    clean, padded = run(0.0), run(number)
    for one, other in zip(clean, padded, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(other, one)
    for one in padded:
        assert torch.equal(one[1], torch.zeros_like(one[1]))


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [1, 40, 1 << 21])
def test_a_nan_that_is_allowed_shows_in_its_row_only(name, backend, budget):
    query, key, value = tensors(Sizes(lead=(1,), H=1, G=1, T=5, S=5))
    with torch.no_grad():
        key[0, 0, 3, 2], value[0, 0, 4, 1] = math.nan, math.inf
    with blocks_of(budget):
        options = {"mask": limelight.causal(), "normalizer": NORMALIZERS[name][0], "backend": backend}
        output, view = limelight.look(query, key, value, **options)
        weights = view.dense()
    assert output[0, 0, :3].isfinite().all()
    assert output[0, 0, 3].isnan().all()
    assert not output[0, 0, 4].isfinite().any()
    assert weights[0, 0, 3, 3].isnan()
    assert (weights[0, 0, 3, 4:] == 0.0).all()


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_of_size_zero(name, backend):
    options = {"normalizer": NORMALIZERS[name][0], "backend": backend}
    query, none = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 0, 7)
    output, view = limelight.look(query, none, none, **options)
    assert torch.equal(output, torch.zeros(2, 3, 5, 7))
    assert torch.equal(view.threshold, torch.full((2, 3, 5), -torch.inf))
    if name in COMPETING:
        sink = torch.ones(3, requires_grad=True)
        output, view = limelight.look(query, none, none, sink=sink, **options)
        assert torch.equal(view.threshold, torch.full((2, 3, 5), 0.0 if name == "sparsemax" else -1.0))
        assert torch.autograd.grad(view.threshold.sum(), sink)[0].tolist() == [10.0] * 3
    for shape in ((0, 3, 5, 7), (2, 3, 0, 7)):
        query, other = torch.zeros(shape, requires_grad=True), torch.zeros(shape[0], 3, 4, 7)
        output = limelight.attend(query, other, other, **options)
        assert output.shape == shape
        output.sum().backward()


LONG = Sizes(lead=(1,), H=2, G=1, T=131, S=137, D=3, E=5)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("budget", [1 << 11, 1 << 13])
@pytest.mark.parametrize("score", ["dot", "additive per head"])
def test_memory_is_that_of_a_block_whether_rows_are_held_or_not(name, budget, score):
    case = score_case(score, LONG)
    leaves = tensors(LONG, dtype=torch.float32)
    weights = [leaf.detach().float().requires_grad_() for leaf in case.leaves]
    mask = limelight.causal() & ~limelight.window(3, 0)
    with blocks_of(budget), Largest() as largest:
        options = {"mask": mask, "normalizer": NORMALIZERS[name][0], "dropout": 0.1, "seed": 1}
        output, view = limelight.look(*leaves, score=case.make(*weights), **options)
        torch.autograd.grad(output.sum(), [*leaves, *weights])
    # Of 137 keys and 2 heads 7 rows fit the smaller budget, too few to be held, and 29 the larger.
    assert largest.numel <= budget < LONG.T * LONG.S
    exact = [leaf.detach().double() for leaf in leaves]
    options["backend"] = "reference"
    score64 = case.make(*(leaf.detach() for leaf in case.leaves))
    expected, truth = limelight.look(*exact, score=score64, **options)
    assert_near(output, expected, torch.float32, LONG.terms)
    assert_near(view[..., :50], truth[..., :50], torch.float32, LONG.terms)


def test_the_general_road_gives_softmax_too():
    from limelight.backends import blocked, thresholds

    query, key, value = (one.detach() for one in tensors(Sizes(), dtype=torch.float64))
    call = limelight.look(query, key, value, mask=limelight.causal(), sink=torch.zeros(3))[1].sound_call()
    call.value = value
    assert call.normalizer is SOFTMAX
    for budget in (40, 1 << 21):
        with blocks_of(budget):
            online, general = blocked.forward(call, ()), thresholds.forward(call, (), True)
        torch.testing.assert_close(general.output, online.output)
        torch.testing.assert_close(general.threshold, online.threshold)
        torch.testing.assert_close(general.centre, online.output)
        torch.testing.assert_close(general.total, torch.ones_like(online.threshold))


def test_sigmoid_by_hand():
    # Scores 0 and log 3; two keys and then one: b = -log 2 and -log 1. sigmoid(log x) = x / (1 + x).
    query, key = torch.ones(1, 2, 1), torch.tensor([[[0.0], [math.log(3)]]])
    value = torch.tensor([[[1.0], [10.0]]])
    mask = limelight.dense(torch.tensor([[True, True], [False, True]]))
    for backend in BACKENDS:
        options = {"mask": mask, "backend": backend}
        output, view = limelight.look(query, key, value, normalizer=limelight.sigmoid(), **options)
        torch.testing.assert_close(view.dense(), torch.tensor([[[1 / 3, 3 / 5], [0.0, 3 / 4]]]))
        torch.testing.assert_close(output, torch.tensor([[[1 / 3 + 6], [7.5]]]))
        torch.testing.assert_close(view.threshold, torch.tensor([[math.log(2), 0.0]]))
        _, view = limelight.look(query, key, value, normalizer=limelight.sigmoid(math.log(2)), **options)
        torch.testing.assert_close(view.dense(), torch.tensor([[[2 / 3, 6 / 7], [0.0, 6 / 7]]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decoder_step_computes_what_the_whole_sequence_gives(backend):
    query, key, value = (one.detach() for one in tensors(Sizes(T=7)))
    for normalizer, _ in NORMALIZERS.values():
        options = {"normalizer": normalizer, "backend": backend}
        whole = limelight.attend(query, key, value, mask=limelight.causal(), **options)
        step = limelight.attend(query[..., 4:5, :], key[..., :5, :], value[..., :5, :], **options)
        torch.testing.assert_close(step, whole[..., 4:5, :])


def test_who_runs_it_and_who_says_that_it_cannot():
    query, key, value = (one.detach() for one in tensors(Sizes(), dtype=torch.float32))
    said = limelight.explain(query, key, value, normalizer=limelight.sparsemax())
    assert said.chosen == "streaming"
    for name in ("native", "torch"):
        assert said.reasons[name] == "the normalizer is sparsemax, not softmax"
        with pytest.raises(BackendError, match=r"the normalizer is entmax-1\.5, not softmax"):
            limelight.attend(query, key, value, normalizer=limelight.entmax15(), backend=name)
    # The default by its name goes where the default goes.
    same = limelight.explain(query, key, value, normalizer=limelight.softmax())
    assert same == limelight.explain(query, key, value)
    plain = limelight.attend(query, key, value)
    assert torch.equal(limelight.attend(query, key, value, normalizer=limelight.softmax()), plain)


def test_wrong_arguments():
    query, key, value = tensors(Sizes())
    with pytest.raises(ArgumentError, match=r"normalizer must be one of limelight.normalizers, such as sparsemax\(\)"):
        limelight.attend(query, key, value, normalizer=limelight.sparsemax)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"sink: with normalizer=sigmoid\(\).*softmax\(\)"):
        limelight.attend(query, key, value, normalizer=limelight.sigmoid(), sink=torch.zeros(3))
    for bias in (math.inf, "1", True):
        with pytest.raises(ArgumentError, match=r"sigmoid\(bias\): bias must be a finite number"):
            limelight.sigmoid(bias)  # type: ignore[arg-type]
