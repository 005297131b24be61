from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import Sizes
from tests.support.masks import causal_case, lengths_case, mask_cases, window_case

import limelight
from limelight.errors import ArgumentError
from limelight.masks import Block


def _whole(sizes: Sizes) -> Block:
    n = 1
    for size in sizes.lead:
        n *= size
    return Block(
        sizes.lead, sizes.H, sizes.T, sizes.S, slice(0, n), slice(0, sizes.H), slice(0, sizes.T), slice(0, sizes.S),
        torch.device("cpu"),
    )  # fmt: skip


def _tile(mask, T, S, lead=(1,)):
    return mask.tile(_whole(Sizes(lead=lead, H=1, T=T, S=S))).expand(*lead, 1, T, S)


def test_causal_lines_up_the_ends():
    t, f = True, False
    assert _tile(limelight.causal(), 2, 4)[0, 0].tolist() == [[t, t, t, f], [t, t, t, t]]
    assert _tile(limelight.causal(), 3, 2)[0, 0].tolist() == [[f, f], [t, f], [t, t]]
    assert _tile(limelight.causal("start"), 2, 4)[0, 0].tolist() == [[t, f, f, f], [t, t, f, f]]
    assert _tile(limelight.causal("start"), 3, 2)[0, 0].tolist() == [[t, f], [t, t], [t, t]]


def test_window_is_an_interval_around_the_query():
    t, f = True, False
    assert _tile(limelight.window(1, 0), 3, 3)[0, 0].tolist() == [[t, f, f], [t, t, f], [f, t, t]]
    assert _tile(limelight.window(0, 1), 2, 4)[0, 0].tolist() == [[f, f, t, t], [f, f, f, t]]
    assert _tile(limelight.window(0, 1, align="start"), 2, 4)[0, 0].tolist() == [[t, t, f, f], [f, t, t, f]]
    causal = limelight.causal() & limelight.window(1, 3)
    assert torch.equal(_tile(causal, 4, 5), _tile(limelight.window(1, 0), 4, 5))


def test_lengths_lines_up_with_the_first_leading_axes():
    counts = torch.tensor([1, 3])
    tile = _tile(limelight.lengths(counts), 2, 3, lead=(2,))
    assert tile[:, 0, 1].tolist() == [[True, False, False], [True, True, True]]
    for lead, shape in (((2, 3), (2,)), ((2, 3), (2, 3))):
        case = lengths_case(Sizes(lead=lead, H=1, T=2, S=3), torch.randint(0, 4, shape))
        have = case.mask.tile(_whole(Sizes(lead=lead, H=1, T=2, S=3)))
        assert torch.equal(have.reshape(*lead, 1, 1, 3).expand(*lead, 1, 2, 3), case.truth)


def test_packed_sequences_attend_as_if_alone():
    query, key, value = (torch.randn(1, 2, 11, 4) for _ in range(3))
    ids = torch.tensor([3] * 4 + [1] * 2 + [7] * 5)
    mask = limelight.segments(ids)
    for rule in (None, limelight.causal()):
        for backend in ("reference", "streaming", "auto"):
            packed = limelight.attend(query, key, value, mask=mask if rule is None else mask & rule, backend=backend)
            for start, stop in ((0, 4), (4, 6), (6, 11)):
                alone = (one[:, :, start:stop] for one in (query, key, value))
                expected = limelight.attend(*alone, mask=rule, backend="reference")
                torch.testing.assert_close(packed[:, :, start:stop], expected)


def test_what_segments_skip():
    whole = _whole(Sizes(lead=(2,), H=1, T=6, S=6))
    # The second sequence has one segment, the first three; its last query has an id that no key has.
    queries = torch.tensor([[5, 5, 2, 2, 2, 9], [1, 1, 1, 1, 1, 1]])
    mask = limelight.segments(queries, torch.tensor([[5, 5, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1]]))
    first = whole._replace(batch=slice(0, 1))
    assert mask.rules_out(first._replace(rows=slice(0, 2), columns=slice(2, 6)))
    assert not mask.rules_out(whole._replace(rows=slice(0, 2), columns=slice(2, 6)))
    assert mask.allows_all(first._replace(rows=slice(2, 5), columns=slice(2, 4)))
    assert not mask.allows_all(first._replace(rows=slice(2, 6), columns=slice(2, 4)))
    assert mask.reach(first._replace(rows=slice(2, 6))) == (2, 3)
    assert mask.reach(whole) == (0, 5)
    last = first._replace(rows=slice(5, 6))
    assert mask.rules_out(last)
    assert mask.form(whole).first.tolist() == [[0, 0, 2, 2, 2, 6], [0] * 6]
    assert mask.form(whole).last.tolist() == [[2, 2, 4, 4, 4, 0], [6] * 6]
    mixed = limelight.segments(torch.tensor([0, 1, 0]))
    assert mixed.form(_whole(Sizes(lead=(), H=1, T=3, S=3))) is None


def test_lengths_is_a_copy():
    counts = torch.tensor([1, 3])
    mask = limelight.lengths(counts)
    before = _tile(mask, 2, 3, lead=(2,)).clone()
    counts.zero_()
    assert torch.equal(_tile(mask, 2, 3, lead=(2,)), before)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_block_of_every_mask_is_exact_and_its_short_answers_are_true(data):
    sizes = Sizes(
        lead=data.draw(st.sampled_from(((), (3,), (2, 2)))),
        H=2,
        T=data.draw(st.integers(1, 5)),
        S=data.draw(st.integers(1, 6)),
    )
    case = data.draw(mask_cases(sizes, depth=3))
    whole = _whole(sizes)
    case.mask.check(whole)
    truth = case.truth.reshape(-1, sizes.H, sizes.T, sizes.S)
    wanted, parts = [], []
    for size in truth.shape:
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, size - 1))
            wanted.append(slice(start, data.draw(st.integers(start + 1, size))))
        else:
            wanted.append(torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))))
        parts.append(torch.arange(size)[wanted[-1]])
    # Twice: the second time a remembered tile may be used.
    for block in (whole, whole._replace(batch=wanted[0], head=wanted[1], rows=wanted[2], columns=wanted[3]), whole):
        places = [torch.arange(n) for n in truth.shape] if block is whole else parts
        expected = truth[torch.meshgrid(*places, indexing="ij")]
        assert torch.equal(case.mask.tile(block).expand(expected.shape), expected)
        if case.mask.rules_out(block):
            assert not expected.any()
        if case.mask.allows_all(block):
            assert expected.all()
        first, last = case.mask.reach(block)
        inside = (places[3] >= first) & (places[3] <= last)
        assert not expected[..., ~inside].any()
        if case.mask.per_key():
            assert torch.equal(expected, expected[:, :, :1].expand_as(expected))


def test_the_short_answers_are_given_where_they_matter():
    sizes = Sizes(lead=(4,), H=1, T=8, S=8)
    whole = _whole(sizes)
    above = whole._replace(rows=slice(0, 4), columns=slice(4, 8))
    below = whole._replace(rows=slice(4, 8), columns=slice(0, 4))
    causal, window = causal_case(sizes).mask, window_case(sizes, 1, 1).mask
    assert causal.rules_out(above)
    assert causal.allows_all(below)
    assert (~causal).allows_all(above)
    assert (~causal).rules_out(below)
    assert window.rules_out(whole._replace(rows=slice(0, 2), columns=slice(5, 8)))
    assert window.allows_all(whole._replace(rows=slice(0, 2), columns=slice(0, 2)))
    lengths = limelight.lengths(torch.tensor([8, 2, 3, 8]))
    middle = whole._replace(batch=slice(1, 3), columns=slice(3, 8))
    assert lengths.rules_out(middle)
    assert not lengths.rules_out(middle._replace(batch=slice(1, 4)))
    assert lengths.allows_all(middle._replace(columns=slice(0, 2)))
    assert (causal & lengths).rules_out(middle)
    assert (causal | lengths).rules_out(middle._replace(rows=slice(0, 3)))


def test_what_a_run_of_rows_can_reach():
    whole = _whole(Sizes(lead=(1,), H=1, T=7, S=11))
    rows = whole._replace(rows=slice(2, 4))
    # Query i lies at key i + 4.
    assert limelight.causal().reach(rows) == (0, 7)
    assert limelight.causal("start").reach(rows) == (0, 3)
    assert limelight.window(2, 1).reach(rows) == (4, 8)
    assert limelight.window(9, 9).reach(rows) == (0, 10)
    assert (limelight.window(2, 1) & limelight.causal()).reach(rows) == (4, 7)
    assert (limelight.window(2, 1) | limelight.causal("start")).reach(rows) == (0, 8)
    assert (~limelight.causal()).reach(rows) == (0, 10)
    assert limelight.causal().reach(rows._replace(columns=slice(3, 6))) == (3, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: limelight.causal("middle"), r"align must be one of 'end', 'start'; it is 'middle'"),
        (lambda: limelight.window(-1, 0), r"before must be an integer of at least 0; it is -1"),
        (lambda: limelight.window(1, 1.5), r"after must be an integer of at least 0; it is 1.5"),
        (lambda: limelight.window(1, 1, align=""), r"align must be one of"),
        (lambda: limelight.lengths(torch.tensor([1.0])), r"must hold integers.*torch.float32.*count.long\(\)"),
        (lambda: limelight.lengths(torch.tensor([True])), r"must hold integers.*torch.bool.*dense"),
        (lambda: limelight.lengths(torch.tensor([3, -2])), r"must be in \[0, S\]; the smallest is -2"),
        (lambda: limelight.lengths(torch.tensor(3)), r"one axis at least, \[B\]; it is a scalar"),
        (
            lambda: limelight.segments(torch.zeros(3)),
            r"query_ids must hold integers.*torch.float32.*dense",
        ),
        (lambda: limelight.segments(torch.tensor(3)), r"query_ids must have one axis at least.*it is a scalar"),
        (
            lambda: limelight.segments(torch.zeros(2, 3).long(), torch.zeros(3).long()),
            r"both must have the same axes in front of the last; their shapes are \[2, 3\] and \[3\]",
        ),
        (lambda: limelight.dense(torch.zeros(3)), r"must be a bool tensor.*torch.float32.*bias"),
        (lambda: limelight.dense([[True]]), r"must be a bool tensor.*it is list"),
    ],
)
def test_mistakes_when_a_mask_is_made(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            limelight.lengths(torch.tensor([3, 8])),
            r"every length must be in \[0, S\] with S = 7 keys; the largest is 8",
        ),
        (limelight.lengths(torch.tensor([3])), r"lengths.*it is \[1\] and the leading axes are \[2\]"),
        (limelight.lengths(torch.zeros(2, 1, dtype=torch.int32)), r"it is \[2, 1\]"),
        (limelight.segments(torch.zeros(5).long()), r"segments.*key_ids must have one id for each of S = 7.*it has 5"),
        (
            limelight.segments(torch.zeros(7).long()),
            r"query_ids must have one id for each of T = 5.*it has 7",
        ),
        (
            limelight.segments(torch.zeros(3, 5).long(), torch.zeros(3, 7).long()),
            r"they are \[3\] and .*\[2\]",
        ),
        (
            limelight.dense(torch.ones(5, 6, dtype=torch.bool)),
            r"dense\(...\): its shape must broadcast .*\[2, 3, 5, 7\]",
        ),
        (~(limelight.causal() & limelight.lengths(torch.tensor([3, 9]))), r"the largest is 9"),
        (limelight.causal() | limelight.lengths(torch.tensor([3, 9])), r"the largest is 9"),
    ],
)
def test_masks_that_do_not_fit_the_call(mask, message):
    query, key = torch.zeros(2, 3, 5, 11), torch.zeros(2, 3, 7, 11)
    with pytest.raises(ArgumentError, match=message):
        limelight.attend(query, key, key, mask=mask)


def test_masks_combine_with_masks_only():
    for sign in ("__and__", "__or__"):
        assert getattr(limelight.causal(), sign)(torch.ones(3)) is NotImplemented


def test_dense_follows_its_tensor():
    allowed = torch.ones(2, 3, dtype=torch.bool)
    query, key = torch.zeros(1, 2, 5), torch.zeros(1, 3, 5)
    mask = limelight.dense(allowed)
    limelight.attend(query, key, key, mask=mask)
    allowed[:, 1:] = False
    assert limelight.look(query, key, key, mask=mask)[1].dense()[0].tolist() == [[1.0, 0, 0], [1, 0, 0]]
