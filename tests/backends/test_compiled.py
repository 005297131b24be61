"""Under a compiler: one graph, the same numbers and gradients, and an operator that torch's own checks accept."""

from __future__ import annotations

import pytest
import torch

from limelight import (
    additive,
    alibi,
    attend,
    causal,
    dense,
    dot,
    lengths,
    look,
    pooled,
    rows,
    segments,
    top,
    window,
)
from limelight.backends import extension
from limelight.errors import ArgumentError

pytestmark = pytest.mark.skipif(extension.refusal() is not None, reason="no native kernels here")

N, H, T, S, D = 2, 3, 5, 7, 11


@pytest.fixture
def given():
    torch.manual_seed(3)
    shapes = {
        "q": (N, H, T, D), "k": (N, H, S, D), "v": (N, H, S, 13), "vector": (D,), "bias": (1, H, T, S), "sink": (H,),
    }  # fmt: skip
    leaves = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    return leaves | {
        "counts": torch.tensor([4, 7]),
        "allowed": torch.rand(N, 1, T, S) > 0.3,
        "slopes": torch.rand(H),
        "query_ids": torch.tensor([[4, 4, 1, 1, 1], [0, 0, 0, 0, 2]]),
        "key_ids": torch.tensor([[4, 4, 4, 1, 1, 1, 7], [3, 3, 0, 0, 0, 2, 2]]),
    }


CALLS = {
    "plain": lambda q, k, v, **_: attend(q * 1.5, k, v),
    "capped, scaled": lambda q, k, v, **_: attend(q * 1.5, k, v, score=dot(0.3, cap=2.0)),
    "causal, lengths": lambda q, k, v, counts, **_: attend(q * 1.5, k, v, mask=causal() & lengths(counts)),
    "dense, window": lambda q, k, v, allowed, **_: attend(q * 1.5, k, v, mask=dense(allowed) & window(2, 2)),
    "segments": lambda q, k, v, query_ids, key_ids, **_: attend(
        q * 1.5, k, v, mask=segments(query_ids, key_ids) & causal()
    ),
    "additive": lambda q, k, v, vector, counts, **_: attend(q, k, v, score=additive(vector), mask=lengths(counts)),
    "bias, sink": lambda q, k, v, bias, sink, **_: attend(q * 1.5, k, v, bias=bias, sink=sink),
    "by distance": lambda q, k, v, slopes, **_: attend(q * 1.5, k, v, bias=alibi(slopes)),
    "dropout": lambda q, k, v, **_: attend(q * 1.5, k, v, dropout=0.4, seed=5),
}


@pytest.mark.parametrize("name", CALLS)
def test_compiled_in_one_graph(given, name):
    torch.compiler.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    got, want = compiled(**given), CALLS[name](**given)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    leaves = [one for one in given.values() if one.requires_grad]
    found, wanted = (torch.autograd.grad(out.square().sum(), leaves, allow_unused=True) for out in (got, want))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) is (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_ids_that_lie_apart_under_a_compiler(given):
    torch.compiler.reset()
    q, k, v, ids = (given[name].detach() for name in ("q", "k", "v", "key_ids"))
    compiled = torch.compile(lambda ids: attend(q, k, v, mask=segments(ids[:, :T], ids)), backend="aot_eager")
    assert compiled(ids).shape == (*v.shape[:2], T, v.shape[-1])
    with pytest.raises(ArgumentError, match="the keys of every id must lie side by side"):
        compiled(torch.tensor([[4, 1, 4, 1, 1, 1, 7], [3, 3, 0, 0, 0, 2, 2]]))


def test_a_fresh_seed_under_a_compiler(given):
    torch.compiler.reset()
    q, k, v = given["q"], given["k"], given["v"]
    compiled = torch.compile(lambda: attend(q, k, v, dropout=0.5), fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(), compiled())


def test_nan_behind_the_mask_and_in_sight(given):
    torch.compiler.reset()
    q, k, v = (given[name].detach().clone() for name in "qkv")
    k[0, :, 5] = torch.nan
    v[1, 0, 2] = torch.inf
    allowed = torch.ones(N, 1, 1, S, dtype=torch.bool)
    allowed[0, ..., 5] = False
    leaves = [one.requires_grad_() for one in (q, k, v)]

    def call(q, k, v):
        return attend(q, k, v, mask=dense(allowed))

    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves)
    assert want.isfinite()[0].all()
    torch.testing.assert_close(got, want, equal_nan=True)
    found, wanted = (torch.autograd.grad(out[0].sum(), leaves) for out in (got, want))
    torch.testing.assert_close(found, wanted, equal_nan=True)


LOOKS = {
    "causal": {"mask": causal()},
    "sink": {"sink": torch.tensor([0.5, -1.0, 2.0])},
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_in_one_graph(given, name):
    """The view answers inside the graph what was observed, and outside of it everything."""
    torch.compiler.reset()
    observe = ("received", "entropy", "distance", top(3), rows([-1, 1]), pooled(2, 3, "max"))

    def call(q, k, v):
        output, view = look(q * 1.5, k, v, observe=observe, **LOOKS[name])
        seen = view.received(), view.entropy(), view.distance(), *view.top(3)
        return output, view.lse, *seen, view.rows([1, -1]), view.map(2, 3, reduce="max")

    inputs = [given[one] for one in "qkv"]
    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs), call(*inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    found, wanted = (torch.autograd.grad(out[0].square().sum() + out[1].sum(), inputs) for out in (got, want))
    torch.testing.assert_close(found, wanted)


def test_what_is_observed_where_nan_stands(given):
    torch.compiler.reset()
    q, k, v = (given[name].detach().clone() for name in "qkv")
    k[0, :, 6] = torch.nan  # the last query alone sees it
    observe = ("received", "entropy", "distance", top(2), rows([0, -1]), pooled(2, 3))

    def call(q, k, v):
        output, view = look(q, k, v, mask=causal(), observe=observe)
        seen = view.received(), view.entropy(), view.distance(), *view.top(2)
        return output, *seen, view.rows([0, -1]), view.map(2, 3)

    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), call(q, k, v)
    assert want[2].isnan().any()
    assert want[2][1].isfinite().all()
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize(
    "gather",
    [
        (False, False, 0, False, None, (), (), "mean"),
        (True, True, 3, True, torch.rand(N, H, T), [0, 2], [2, 3], "mean"),
        (False, False, 0, False, None, (), [3, 2], "max"),
    ],
)
def test_what_torch_asks_of_an_operator(given, gather):
    q, k, v, sink = (given[name] for name in ("q", "k", "v", "sink"))
    none, far = None, 1 << 40
    arguments = (
        q,
        k,
        v,
        none,
        sink,
        none,
        none,
        given["counts"],
        none,
        none,
        none,
        -far,
        2,
        0.3,
        0.0,
        0.0,
        torch.tensor(0),
        *gather,
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.limelight.attend.default, arguments, test_utils=checks)


def test_what_torch_asks_of_the_operator_of_gradients(given):
    q, k, v, sink, vector = (given[name].detach() for name in ("q", "k", "v", "sink", "vector"))
    none, far = None, 1 << 40
    tensors = (q, k, v, none, sink, none, vector, given["counts"], none, none, none)
    call = (*tensors, -far, 2, 1.0, 0.0, 0.0, torch.tensor(0))
    output, lse, rows, *_ = torch.ops.limelight.attend(*call, False, False, 0, False, None, [], [], "mean")
    arguments = (*call, output, lse, rows, torch.ones_like(output), torch.ones_like(lse))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.limelight.attend_backward.default, arguments, test_utils=checks)


def _flat(**parts):
    query, key, value = torch.randn(2, 2, 5, 8), torch.randn(2, 1, 7, 8), torch.randn(2, 1, 7, 3)
    rest = dict.fromkeys(("bias", "sink", "distances", "vector", "lengths", "dense", "first", "last"))
    numbers = {"low": -99, "high": 99, "scale": 1.0, "cap": 0.0, "dropout": 0.0, "seed": torch.tensor(0)}
    seen = {"received": True, "entropy": True, "top": 2, "distance": True, "row_weight": None, "rows": [1, 3]}
    seen |= {"cells": [2, 3], "reduce": "mean"}
    return list(({"query": query, "key": key, "value": value} | rest | numbers | seen | parts).values())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"first": torch.zeros(2, 5, dtype=torch.int32)}, "both ends"),
        ({"key": torch.randn(2, 1, 7, 8).half()}, "key must have the dtype of query"),
        ({"key": torch.randn(2, 1, 7, 2)}, "key must be of the width of query, 8"),
        ({"distances": torch.zeros(1, 3)}, "distances must be"),
        ({"vector": torch.zeros(2)}, "vector must be"),
        ({"lengths": torch.zeros(2, dtype=torch.int32)}, "lengths must be torch.int64"),
        ({"lengths": torch.tensor([-1, 8])}, r"in \[0, S\], S = 7; they are in \[-1, 8\]"),
        ({"key": torch.randn(2, 3, 7, 8), "value": torch.randn(2, 3, 7, 3)}, "must divide the heads"),
        ({"cells": [9, 9]}, r"cells: two numbers in \[1, 5\] and \[1, 7\]"),
        ({"reduce": "foo"}, "reduce must be one of"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\)"),
        ({"rows": [3, 1]}, "ascending, each once"),
        ({"top": 9}, r"top: it must be in \[0, 7\]"),
        ({"dense": torch.ones(5, 6, dtype=torch.bool)}, "dense: its shape must broadcast"),
        ({"bias": torch.ones(2, 2, 4, 7)}, "bias: its shape must broadcast"),
        ({"sink": torch.ones(3)}, "sink: its shape must broadcast"),
    ],
)
def test_the_operator_checks_what_it_is_given(parts, message):
    with pytest.raises(ArgumentError, match=message):
        torch.ops.limelight.attend(*_flat(**parts))


def test_the_operator_of_the_backward_pass_checks_what_it_is_given():
    given = _flat()
    output, lse, rows, *_ = torch.ops.limelight.attend(*given)
    kept = {"output": output, "lse": lse, "rows": rows, "to_output": output, "to_lse": lse}
    torch.ops.limelight.attend_backward(*given[:17], *kept.values())
    for name in kept:
        spoilt = (kept | {name: torch.zeros(1)}).values()
        with pytest.raises(ArgumentError, match=f"{name} must be"):
            torch.ops.limelight.attend_backward(*given[:17], *spoilt)


def test_lengths_that_do_not_fit_are_told_by_compiled_code_too():
    query, key = torch.randn(2, 1, 5, 8), torch.randn(2, 1, 7, 8)
    compiled = torch.compile(lambda n: attend(query, key, key, mask=lengths(n)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.tensor([3, 7])), attend(query, key, key, mask=lengths([3, 7])))
    with pytest.raises(ArgumentError, match=r"every length must be in \[0, S\], S = 7; they are in \[-5, 99\]"):
        compiled(torch.tensor([-5, 99]))
