from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import SCORES, Sizes, blocks_of, score_case, tensors
from tests.support.masks import mask_cases
from tests.support.normalizers import COMPETING, NORMALIZERS
from tests.support.oracle import answer, by_softmax
from tests.support.tolerance import assert_near

import limelight
from limelight.errors import ArgumentError, DenseSizeError

BUDGETS = (1, 60, 1 << 21)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_everything_a_view_says_agrees_with_the_oracle(data):
    sizes = Sizes(lead=data.draw(st.sampled_from(((), (2,), (2, 2)))), H=2, G=1, T=3, S=7, D=3, E=2)
    score = score_case(data.draw(st.sampled_from(SCORES)), sizes)
    mask = data.draw(st.none() | mask_cases(sizes))
    name = data.draw(st.sampled_from(("softmax", *NORMALIZERS)))
    normalizer, normalize = NORMALIZERS.get(name, (None, by_softmax))
    sink = None
    if name == "softmax" or name in COMPETING:
        sink = data.draw(st.none() | st.just(torch.tensor([0.5, -1.0], dtype=torch.float64)))
    truth = None if mask is None else mask.truth
    expected = answer(*tensors(sizes), score.oracle(*score.leaves), truth, sink=sink, normalize=normalize)
    weights, terms = expected.weights.detach(), sizes.terms
    backend = data.draw(st.sampled_from(("reference", "streaming")))
    with torch.set_grad_enabled(data.draw(st.booleans())), blocks_of(data.draw(st.sampled_from(BUDGETS))):
        made = score.make(*score.leaves)
        rule = None if mask is None else mask.mask
        options = {"mask": rule, "sink": sink, "normalizer": normalizer, "backend": backend}
        _, view = limelight.look(*tensors(sizes), score=made, **options)
        assert_near(view.threshold, expected.lse, torch.float64, terms)
        assert_near(view.dense(), weights, torch.float64, terms)
        assert_near(view.received(), weights.sum(-2), torch.float64, terms)
        safe = weights.where(weights > 0, 1.0)
        assert_near(view.entropy(), -(safe * safe.log()).sum(-1), torch.float64, terms)
        k = data.draw(st.integers(1, 9))
        links = view.top(k)
        k = min(k, sizes.S)
        assert_near(links.weights, weights.topk(k).values, torch.float64, terms)
        reached = weights.gather(-1, links.indices.clamp(min=0)) * (links.indices >= 0)
        assert_near(reached, links.weights.detach(), torch.float64, terms)
        assert torch.equal(links.indices < 0, torch.arange(k) >= (weights > 0).sum(-1, keepdim=True))
        index = tuple(_index(data, size) for size in sizes.full)
        cut = data.draw(st.integers(1, len(index)))
        index = (*index[:cut], ...) if data.draw(st.booleans()) else (..., *index[-cut:])
        assert_near(view[index], _outer(weights, index), torch.float64, terms)


def _index(data, size):
    kind = data.draw(st.sampled_from(("int", "slice", "list", "bool")))
    if kind == "int":
        return data.draw(st.integers(-size, size - 1))
    if kind == "slice":
        return data.draw(st.slices(size).filter(lambda one: one.step is None or one.step > 0))
    if kind == "list":
        return data.draw(st.lists(st.integers(-size, size - 1), max_size=4))
    return np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))


def _outer(weights, index):
    """The same index, one axis after the other."""
    place = next((place for place, part in enumerate(index) if part is ...), len(index))
    index = [part for part in index if part is not ...]
    full = [*index[:place], *[slice(None)] * (weights.ndim - len(index)), *index[place:]]
    for axis, part in reversed(list(enumerate(full))):
        if isinstance(part, list):
            part = torch.tensor(part, dtype=torch.int64)
        elif isinstance(part, np.ndarray):
            part = torch.from_numpy(part)
        weights = weights[(slice(None),) * axis + (part,)]
    return weights


def test_an_index_array_of_one_position_keeps_its_axis():
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    for index in ([3], np.array([3]), torch.tensor([3])):
        assert torch.equal(view[..., index, :], view.dense()[..., 3:4, :])
    assert torch.equal(view[..., torch.tensor(3), :], view.dense()[..., 3, :])


@pytest.mark.parametrize(
    "index",
    [
        None,
        (0, None),
        (..., None),
        (None, slice(1), ..., [2, 3], None),
        (slice(1), None, ..., None, 0, 3),
        (None, None),
    ],
)
def test_none_is_a_new_axis(index):
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    assert np.array_equal(view[index], view.dense().numpy()[index])
    assert np.array_equal(view.mean()[index], view.mean().dense().numpy()[index])


def test_a_mesh_of_numpy_is_the_block_of_all_combinations():
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    mesh = np.ix_([1, 0], [2], [4, 0, 1], [6, 3])
    assert np.array_equal(view[mesh], view.dense().numpy()[mesh])
    assert np.array_equal(view[(..., *np.ix_([4, 0], [6, 3]))], view.dense().numpy()[..., [[4], [0]], [[6, 3]]])
    with pytest.raises(ArgumentError, match=r"as from numpy\.ix_"):
        view[..., np.array([[1, 2], [3, 4]]), :]


def test_numpys_integers_are_counts():
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    assert torch.equal(view.top(np.int64(3)).indices, view.top(3).indices)
    assert torch.equal(view.map(np.int32(2), np.int64(3)), view.map(2, 3))


def test_steps_may_run_backwards():
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    assert torch.equal(view[..., ::-2, :], view.dense()[..., [4, 2, 0], :])
    assert torch.equal(view[0, ..., range(2, 6, 3)], view.dense()[0][..., [2, 5]])


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_block_is_all_that_is_computed(budget):
    asked = []

    def spy(q, k, *, query_index, key_index):
        asked.extend((int(i), int(j)) for i in query_index for j in key_index)
        return q @ k.mT

    with blocks_of(budget):
        _, view = limelight.look(*tensors(Sizes()), score=limelight.tile_score(spy))
        asked.clear()
        _ = view[1, 2, 3:5, [6, 0]]
        assert sorted(asked) == [(3, 0), (3, 6), (4, 0), (4, 6)]


def test_equal_weights_are_ranked_by_place_at_every_block_size():
    query, key = torch.zeros(1, 2, 3), torch.zeros(1, 11, 3)
    for budget in BUDGETS:
        with blocks_of(budget):
            _, view = limelight.look(query, key, key, mask=~limelight.dense(torch.arange(11) == 1))
            assert view.top(4).indices.tolist() == [[[0, 2, 3, 4]] * 2]
            torch.testing.assert_close(view.entropy(), torch.full((1, 2), math.log(10)))
            # Enough of them that an unstable sort would mix them up.
            _, view = limelight.look(query, torch.zeros(1, 97, 3), torch.zeros(1, 97, 3))
            assert view.top(61).indices.tolist() == [[list(range(61))] * 2]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_nan_row_stays_one_row(budget):
    query, key = torch.zeros(1, 3, 2), torch.zeros(1, 4, 2)
    key[0, 3] = math.nan
    with blocks_of(budget):
        _, view = limelight.look(query, key, torch.zeros_like(key), mask=limelight.causal())
        assert view.dense().isnan().sum(-1).tolist() == [[0, 0, 4]]
        assert view.entropy().isnan().tolist() == [[False, False, True]]
        links = view.top(2)
        assert links.weights.isnan().all(-1).tolist() == [[False, False, True]]
        assert links.indices.tolist()[0][0] == [0, 1]


def test_what_is_observed_is_computed_once_and_kept():
    calls = []

    def spy(q, k, **_):
        calls.append(1)
        return q @ k.mT

    observe = ("received", "entropy", limelight.top(3))
    _, view = limelight.look(*tensors(Sizes()), score=limelight.tile_score(spy), observe=observe)
    _, fresh = limelight.look(*tensors(Sizes()), score=limelight.tile_score(spy))
    calls.clear()
    answers = view.received(), view.entropy(), *view.top(3), *view.top(2)
    assert not calls
    for have, want in zip(answers, (fresh.received(), fresh.entropy(), *fresh.top(3), *fresh.top(2)), strict=True):
        assert torch.equal(have, want)
    assert view.top(4).indices.shape[-1] == 4


def test_views_are_differentiable_until_detached():
    query, key, value = tensors(Sizes())
    for budget in BUDGETS:
        with blocks_of(budget):
            _, view = limelight.look(query, key, value, mask=limelight.causal())
            (have,) = torch.autograd.grad(view[0, 1, 2:4, [1, 3]].log().sum(), query)
        weights = torch.softmax(
            (query[0, 1] @ key[0, 1].T / math.sqrt(11)).masked_fill(~torch.ones(5, 7).tril(2).bool(), -math.inf), -1
        )
        (want,) = torch.autograd.grad(weights[2:4][:, [1, 3]].log().sum(), query)
        torch.testing.assert_close(have, want)
        assert not view.detach().dense().requires_grad
        assert not view.entropy().requires_grad
        torch.testing.assert_close(view.detach().dense(), view.dense().detach())


def test_a_view_may_be_copied_and_pickled():
    query, key, value = (one.detach() for one in tensors(Sizes()))
    query.add_(1.0)  # the tensors of a copy have other versions
    _, view = limelight.look(query, key, value, mask=limelight.lengths(torch.tensor([7, 3])), observe=("entropy",))
    for again in (copy.copy(view), copy.deepcopy(view), pickle.loads(pickle.dumps(view)), view.copy()):
        assert_near(again.dense(), view.dense(), torch.float64, 100)
        assert torch.equal(again.entropy(), view.entropy())


def test_a_copy_keeps_no_matrix():
    query, key, value = (one.detach() for one in tensors(Sizes()))
    _, view = limelight.look(query, key, value, mask=limelight.causal(), backend="streaming")
    rows, columns = 2 * 3 * 5, 2 * 3 * 7
    assert view.kept_bytes == 8 * (rows * 11 + columns * 11 + rows + rows * 7)
    assert view.copy().kept_bytes == 8 * (rows * 11 + columns * 11 + rows)


def test_what_is_kept_counts_once():
    both, allowed = torch.randn(1, 2, 50, 4), torch.rand(50, 50) < 0.9
    bias = torch.randn(1, 2, 1, 50).expand(1, 2, 50, 50)
    _, view = limelight.look(both, both, both, mask=limelight.dense(allowed) & limelight.causal(), bias=bias)
    assert view.copy().kept_bytes - 4 * 2 * 50 * 4 == 4 * (2 * 50 * 4 + 2 * 50 + 2 * 50) + 50 * 50
    assert view.detach().kept_bytes - (0 if view.kept_bytes < 4 * 2 * 50 * 50 else 4 * 2 * 50 * 50) == (
        4 * (2 * 50 * 4 + 2 * 50 + 2 * 50) + 50 * 50
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_bias_of_another_dtype_leaves_the_view_its_own(dtype):
    query, key, value = (one.detach().float() for one in tensors(Sizes()))
    bias = torch.linspace(-1, 1, 35).view(5, 7).to(dtype)
    for backend in ("auto", "streaming", "reference"):
        _, view = limelight.look(query, key, value, bias=bias, backend=backend)
        wide = limelight.look(query, key, value, bias=bias.float(), backend="reference")[1].dense()
        for have, want in (
            (view.dense(), wide),
            (view[..., 2, :], wide[..., 2, :]),
            (torch.ones(5) @ view, wide.sum(-2)),
            (view @ torch.ones(7), wide.sum(-1)),
            (view.map(1, 1)[..., 0, 0], wide.mean((-2, -1))),
        ):
            assert have.dtype is torch.float32
            assert_near(have, want, torch.float32, 200)


def test_writing_into_an_answer_changes_no_view():
    _, view = limelight.look(*(x.detach() for x in tensors(Sizes())))
    before = view.dense().clone()
    view.dense().zero_()
    view[0].zero_()
    assert torch.equal(view.dense(), before)


def test_dense_has_a_guard_that_names_the_bytes():
    _, view = limelight.look(*(x.detach().float() for x in tensors(Sizes(lead=(2,), H=3, T=5, S=7))))
    with pytest.raises(DenseSizeError, match=r"take 840 bytes .*limit is 839.*view.top.*limit=840"):
        view.dense(limit=839)
    assert view.dense(limit=840).shape == (2, 3, 5, 7)
    assert view.dense(limit=None).shape == (2, 3, 5, 7)


def test_indexing_has_the_same_guard():
    query, key = torch.zeros(1, 40_000, 1), torch.zeros(1, 40_000, 1)
    with torch.no_grad():
        _, view = limelight.look(query[:, :1], key, key)
        view.sound_call().query = query[None]
        with pytest.raises(DenseSizeError, match=r"6,400,000,000 bytes \(6.0 GiB\)"):
            view.dense()
        with pytest.raises(DenseSizeError, match=r"view\[..., rows, columns\]"):
            _ = view[0]


def test_a_view_shows_its_size_not_its_numbers():
    _, view = limelight.look(*(x.detach().float() for x in tensors(Sizes(T=31, S=7))))
    assert repr(view).startswith("AttentionView(shape=[2, 3, 31, 7], keeps ")
    assert repr(view).endswith("dense would be 5.1 KiB)")
    assert len(view) == 2
    assert [tuple(one.shape) for one in view] == [(3, 31, 7)] * 2
    assert view.dtype is torch.float32


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((0, 0, 0, 0, 0), r"there are 4 axes, \[2, 3, 5, 7\], and 5 indices"),
        ((..., ...), r"one Ellipsis at most"),
        (2, r"axis 0 has positions \[0, 2\); 2 is out of range"),
        ((0, 0, [5]), r"axis 2 has positions \[0, 5\); 5 is out of range"),
        ((0, 0, [-6]), r"-6 is out of range"),
        (True, r"not True"),
        ("a", r"not 'a'"),
        ((0, 0, 0, 1.5), r"not 1.5"),
        ((0, 0, 0, [0.5]), r"holds integers; the one for axis 3 is torch.float32"),
        ((0, 0, 0, [[1]]), r"an index array has one axis; the one for axis 3 has 2"),
        ((0, 0, 0, [True]), r"axis 3 has 7 positions; the bool index has 1"),
        ((0, 0, 0, slice(0, 2.5)), r"axis 3: slice\(0, 2.5, None\) names no positions: slice indices must be integers"),
        ((0, 0, 0, slice(None, None, 0)), r"names no positions: slice step cannot be zero"),
        ((0, 0, 0, ["a"]), r"axis 3 takes integers, slices, and sequences of integers; not \['a'\]"),
        ((0, 0, 0, {1}), r"not \{1\}"),
        ((0, 0, 0, [2**70]), r"axis 3 takes integers"),
        ((0, 0, 0, 2**70), r"positions \[0, 7\); 1180591620717411303424 is out of range"),
    ],
)
def test_an_index_that_does_not_fit(index, message):
    _, view = limelight.look(*tensors(Sizes()))
    with pytest.raises(ArgumentError, match=message):
        _ = view[index]


def test_other_mistakes():
    query, key, value = tensors(Sizes())
    _, view = limelight.look(query, key, value)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="k must be an integer of at least 1"):
            view.top(k)
        with pytest.raises(ArgumentError, match="k must be an integer of at least 1"):
            limelight.top(k)
    with pytest.raises(ArgumentError, match=r"heads must be one or several of the 3 heads, from 0 to 2; it is 5"):
        view.mean(5)
    with pytest.raises(ArgumentError, match=r"known are 'received', 'entropy', 'distance' and top\(k\).*not 'weights'"):
        limelight.look(query, key, value, observe=("weights",))
    with pytest.raises(ArgumentError, match="not 3"):
        limelight.explain(query, key, value, observe=(3,))


@pytest.mark.parametrize("heads", [[0, 0], slice(2, 1), [], [-1], slice(None)])
def test_heads_are_chosen_where_there_is_one(heads):
    score = limelight.tile_score(lambda q, k, query_index, key_index: torch.sin(q @ k.mT))
    _, view = limelight.look(*tensors(Sizes(H=1, G=1)), score=score, backend="streaming")
    # What `look` kept of a small matrix would answer for the score.
    view = view.copy()
    assert_near(view[:, heads], view.dense()[:, heads], torch.float64, 40)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_nan_behind_the_mask_reaches_no_gradient_of_a_block(name, budget):
    sizes = Sizes(T=5, S=5)
    score = score_case(name, sizes)
    # Those that are no projection: the gradient of one that met NaN is NaN in `attend` already.
    leaves = score.leaves if name in ("additive per head", "gaussian", "tile") else ()
    # Nobody sees key 4, and query 0 sees nothing; query 1 sees less than others.
    mask = limelight.lengths(torch.tensor([4, 4])) & limelight.band(high=-1)
    clean, dirty = tensors(sizes), tensors(sizes)
    with torch.no_grad():
        dirty[1][:, :, 4] = math.nan
        dirty[0][:, :, 0] = math.nan if name != "dot" else math.inf
        dirty[2][:, :, 4] = math.inf
    found = []
    with blocks_of(budget):
        for query, key, value in (clean, dirty):
            _, view = limelight.look(query, key, value, score=score.make(*score.leaves), mask=mask)
            out = view[..., 1:4, [0, 4]].square().sum() + view.dense().sin().sum() + view.mean()[..., 2].sum()
            found.append((out, *torch.autograd.grad(out, (query, key, *leaves))))
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        assert_near(other, one, torch.float64, 400)


def test_a_nan_that_is_allowed_shows_in_a_block_and_its_gradient():
    query, key, value = tensors(Sizes(T=5, S=5))
    with torch.no_grad():
        key[:, :, 4] = math.nan
    _, view = limelight.look(query, key, value, mask=limelight.causal())
    block = view[..., 3:, :]
    assert block.isnan().tolist() == [[[[False] * 5, [True] * 5]] * 3] * 2
    (slope,) = torch.autograd.grad(block.sum(), query)
    assert slope[..., 4, :].isnan().all()
