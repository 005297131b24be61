from __future__ import annotations

import math

import pytest
import torch
from tests.support.allocations import Largest
from tests.support.inputs import Sizes, tensors
from tests.support.oracle import answer
from tests.support.tolerance import assert_near
from torch._subclasses.fake_tensor import FakeTensorMode

import limelight
from limelight import attend, causal, lengths, look
from limelight.backends import extension
from limelight.errors import ArgumentError, BackendError

SIZES = Sizes(T=7, S=7, D=11, E=11)


def _why(**options):
    sizes = options.pop("sizes", SIZES)
    return limelight.explain(*tensors(sizes), **options).reasons["torch"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"score": limelight.additive(torch.zeros(11, dtype=torch.float64))}, "not a plain dot product"),
        ({"score": limelight.dot(cap=50.0)}, "capped"),
        ({"dropout": 0.1}, "dropout"),
        ({"sink": torch.zeros(3)}, "a sink"),
        ({"bias": torch.zeros(7)}, "bias"),
        ({"observe": ()}, "looked at"),
        ({"sizes": Sizes(D=11, E=13)}, "differ in width"),
        ({"mask": limelight.window(2, 0)}, "T x S"),
        ({"mask": limelight.causal() & limelight.lengths(torch.tensor([3, 7]))}, "T x S"),
        ({"mask": limelight.lengths(torch.tensor([0, 7]))}, "may attend to nothing"),
        ({"sizes": Sizes(T=5, S=7, D=11, E=11), "mask": limelight.causal()}, "lines up the starts"),
    ],
)
def test_torch_says_why_it_cannot(options, reason):
    assert reason in _why(**options)
    if "observe" not in options:
        sizes = options.pop("sizes", SIZES)
        with pytest.raises(
            BackendError, match=rf"backend 'torch' cannot run this call: .*{reason}.*streaming: can run"
        ):
            limelight.attend(*tensors(sizes), backend="torch", **options)


def test_torch_refuses_nan_behind_a_mask():
    query, key, value = (leaf.detach() for leaf in tensors(SIZES))
    value[0, 0, 6] = math.nan
    assert "NaN" in limelight.explain(query, key, value, mask=limelight.lengths(torch.tensor([3, 7]))).reasons["torch"]
    assert limelight.explain(query, key, value).reasons["torch"] is None


@pytest.mark.parametrize(
    ("mask", "allowed"),
    [
        (None, torch.ones(7, 7, dtype=torch.bool)),
        (limelight.causal(), torch.ones(7, 7, dtype=torch.bool).tril()),
        (limelight.lengths(torch.tensor([3, 7])), torch.arange(7) < torch.tensor([3, 7])[:, None, None, None]),
        (~limelight.lengths(torch.tensor([3, 2])), torch.arange(7) >= torch.tensor([3, 2])[:, None, None, None]),
    ],
)
def test_torch_agrees_with_the_oracle(mask, allowed):
    sizes = Sizes(H=4, G=2, T=7, S=7, D=11, E=11)
    leaves, exact = tensors(sizes), tensors(sizes)
    expected = answer(*exact, lambda q, k, h, i, j: (k * q).sum(-1) / math.sqrt(11), allowed).output
    output = limelight.attend(*leaves, mask=mask, backend="torch")
    assert_near(output, expected, torch.float64, sizes.terms)
    to_output = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(output, leaves, to_output), torch.autograd.grad(expected, exact, to_output), strict=True
    )
    for have, want in pairs:
        assert_near(have, want, torch.float64, sizes.terms)


@pytest.mark.parametrize("mask", [None, limelight.causal(), limelight.lengths(torch.tensor([300]))])
def test_torch_stays_linear_in_memory(mask):
    query, key, value = tensors(Sizes(lead=(1,), H=1, G=1, T=521, S=521, D=3, E=3), dtype=torch.float32)
    with Largest() as largest:
        limelight.attend(query, key, value, mask=mask, backend="torch").sum().backward()
    assert largest.numel < 521 * 521


@pytest.mark.skipif(extension.refusal() is not None, reason=f"{extension.refusal()}")
def test_auto_takes_native_on_the_cpu_wherever_it_can_run():
    query = torch.zeros(1, 1, 13, 8)
    assert limelight.explain(query, query, query).chosen == "native"
    assert limelight.explain(query, query, query, score=limelight.additive(torch.zeros(8))).chosen == "native"
    assert limelight.explain(query, query, query, mask=~limelight.causal()).chosen == "streaming"
    assert limelight.explain(query.double(), query.double(), query.double()).chosen == "streaming"


def test_without_native_auto_takes_torch_for_long_plain_calls_and_streaming_for_the_rest(monkeypatch):
    monkeypatch.setattr(extension, "refusal", lambda: "not built")
    short, long = torch.zeros(1, 1, 13, 8), torch.zeros(1, 1, 256, 8)
    assert limelight.explain(short, short, short).chosen == "streaming"
    assert limelight.explain(long, long, long).chosen == "torch"
    assert limelight.explain(long, long, long, observe=()).chosen == "streaming"
    assert limelight.explain(long, long, long, backend="reference").chosen == "reference"


def test_an_explanation_lists_every_backend(monkeypatch):
    monkeypatch.setattr(extension, "refusal", lambda: "not built")
    query = torch.zeros(1, 1, 13, 8)
    text = str(limelight.explain(query, query, query, dropout=0.5))
    assert text.splitlines()[0] == "backend: streaming"
    assert "native     cannot: not built" in text
    assert "torch      cannot: its dropout is not the counter-based one" in text
    assert "streaming  chosen" in text
    assert "reference  can run" in text


def test_an_unknown_backend_names_the_known_ones():
    query = torch.zeros(1, 1, 13, 8)
    with pytest.raises(
        ArgumentError, match=r"one of 'auto', 'native', 'torch', 'streaming', 'reference'; it is 'cuda'"
    ):
        limelight.attend(query, query, query, backend="cuda")


def test_tensors_without_numbers_are_not_given_to_the_kernels():
    shape = (2, 3, 5, 8)
    with FakeTensorMode():
        query = torch.randn(shape)
        assert "FakeTensor without numbers" in str(limelight.explain(query, query, query).reasons["native"])
        assert limelight.attend(query, query, query).shape == shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("mask", [None, causal(), lengths(torch.tensor([1, 2, 4]))])
@pytest.mark.parametrize("derivative", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian])
def test_the_derivatives_of_torch_func_are_those_of_the_reference(mask, derivative):
    query, key, value = (torch.randn(3, 2, 4, 8, dtype=torch.float64) for _ in range(3))

    def total(backend):
        return lambda query: attend(query, key, value, mask=mask, backend=backend).sin().sum()

    torch.testing.assert_close(derivative(total("auto"))(query), derivative(total("reference"))(query))


def test_torch_func_takes_gradients_beside_those_of_autograd():
    query, key, value = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    factor = torch.func.grad(lambda factor: (attend(query, key, value) * factor).sum())(torch.tensor(2.0))
    torch.testing.assert_close(factor, attend(query, key, value).sum())
    assert factor.requires_grad
    view_slope = torch.func.grad(lambda query: look(query, key, value)[1].dense()[0, 0, 0, 1])(query)
    assert view_slope[0, 0, 0].abs().sum() > 0
    assert view_slope[0, 1].abs().sum() == 0


_MASKS = [None, causal(), lengths(torch.tensor([3])), limelight.dense(torch.ones(4, 4).tril() > 0)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("mask", _MASKS)
def test_transformations_inside_one_another(mask):
    drawn = torch.Generator().manual_seed(6)
    query, key, value = (torch.randn(1, 2, 4, 3, generator=drawn, dtype=torch.float64) for _ in range(3))
    several = torch.randn(5, 1, 2, 4, 3, generator=drawn, dtype=torch.float64)
    allowed = torch.ones(4, 4, dtype=torch.bool)
    if mask is not None:
        attend(query, key, value, mask=mask)  # what a mask remembers of itself is no wrapper later
        allowed = look(query, key, value, mask=mask)[1].dense()[0, 0] > 0

    def textbook(query, key, value):
        return (query @ key.mT / 3**0.5).masked_fill(~allowed, -torch.inf).softmax(-1) @ value

    def results(attention):
        def total(query):
            return attention(query, key, value).sin().sum()

        def mapped(several):
            return torch.vmap(lambda query: attention(query, key, value))(several).sin().sum()

        yield torch.func.grad(mapped)(several)
        yield torch.func.vmap(torch.func.grad(total))(several)
        yield torch.func.jacrev(torch.func.jacfwd(total))(query)
        yield torch.func.grad(lambda query: (attention(key, key, value) * query).sum())(query)
        leaf = query.clone().requires_grad_()
        yield torch.autograd.grad(torch.vmap(lambda one: attention(leaf + one, key, value))(several).sin().sum(), leaf)[
            0
        ]

    mine = results(lambda *given: attend(*given, mask=mask))
    for found, expected in zip(mine, results(textbook), strict=True):
        assert found.abs().sum() > 0
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(attend(query, key, value, mask=mask), textbook(query, key, value))


def test_views_under_vmap():
    key, value = (torch.randn(1, 2, 4, 3) for _ in range(2))
    several = torch.randn(5, 1, 2, 4, 3)
    dense = torch.vmap(lambda query: look(query, key, value)[1].dense())(several)
    torch.testing.assert_close(dense[3], look(several[3], key, value)[1].dense())
    entropy = torch.vmap(lambda query: look(query, key, value, observe=("entropy",))[1].entropy())(several)
    torch.testing.assert_close(entropy[3], look(several[3], key, value)[1].entropy())


def test_numbers_that_are_not_there_are_not_read():
    query = torch.randn(1, 1, 3, 8)
    zero = torch._efficientzerotensor((1, 1, 3, 8))
    torch.testing.assert_close(attend(zero, query, query), attend(torch.zeros(1, 1, 3, 8), query, query))
    torch.testing.assert_close(attend(query, query, zero), torch.zeros(1, 1, 3, 8))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert attend(query, query, query, mask=causal()).shape == query.shape
        assert look(query, query, query)[0].shape == query.shape
