"""Views as files."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.inputs import SCORES, Sizes, tensors
from tests.support.tolerance import assert_near
from tests.support.views import view_cases

import limelight
from limelight.errors import ArgumentError, OutputError, ViewFileError
from limelight.masks import Mask
from limelight.view import AttentionView


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_an_opened_view_says_the_same(data, tmp_path_factory):
    view, weights, _, sizes, _ = data.draw(view_cases(scores=tuple(name for name in SCORES if name != "tile")))
    path = tmp_path_factory.mktemp("views") / "one.view"
    more = ("received", limelight.top(2), limelight.rows([-1, 0]), limelight.pooled(2, 3))
    view.gather(limelight.view.check_observations(data.draw(st.sampled_from(((), more)))))
    view.save(path)
    for verify in (False, True):
        again = AttentionView.open(path, verify=verify)
        assert again.shape == view.shape
        assert again.dtype is view.dtype
        assert_near(again[..., 1:, :1], weights[..., 1:, :1], torch.float64, sizes.terms)
        assert_near(again.received(), weights.sum(-2), torch.float64, sizes.terms)
        assert_near(again.top(1).weights, weights.amax(-1, keepdim=True), torch.float64, sizes.terms)
        assert_near(again.map(2, 3), view.map(2, 3), torch.float64, sizes.terms)
        assert_near(again.rows([-1, 0]), weights[..., [-1, 0], :], torch.float64, sizes.terms)
        assert torch.equal(again.threshold, view.threshold)
        assert_near(again.dense(), weights, torch.float64, sizes.terms)
        assert_near(again @ torch.ones(sizes.S), weights.sum(-1), torch.float64, sizes.terms)


def _view(**options):
    sizes = Sizes(T=11, S=13)
    return limelight.look(*(one.detach() for one in tensors(sizes, dtype=torch.float32)), **options)[1]


def test_observed_answers_are_saved(tmp_path):
    more = limelight.rows([-1, 2]), limelight.pooled(4, 3), limelight.pooled(50, 3, "max")
    view = _view(observe=("entropy", limelight.top(3), *more))
    view.save(tmp_path / "one")
    again = AttentionView.open(tmp_path / "one")
    again.sound_call().query.fill_(0.0)
    # Nothing is computed for what is there.
    assert torch.equal(again.entropy(), view.entropy())
    assert torch.equal(again.top(3).weights, view.top(3).weights)
    assert torch.equal(again.rows([2, -1]), view.rows([2, -1]))
    assert torch.equal(again[0, 1, [-1]], view[0, 1, [-1]])
    assert torch.equal(again.map(4, 3), view.map(4, 3))
    assert torch.equal(again.map(11, 3, reduce="max"), view.map(11, 3, reduce="max"))


def test_one_tensor_in_two_places(tmp_path):
    both = torch.randn(2, 3, 11, 4)
    query, key = both.chunk(2)
    for one, other in ((both, both), (query, key)):
        _, view = limelight.look(one, other, other)
        view.save(tmp_path / "one")
        assert torch.equal(AttentionView.open(tmp_path / "one").dense(), view.dense())


def test_opening_reads_no_tensor(tmp_path):
    _, view = limelight.look(*(torch.randn(1, 2, 30_000, 64) for _ in range(3)), mask=limelight.window(3, 0))
    view.save(tmp_path / "long")
    before = _resident()
    again = AttentionView.open(tmp_path / "long")
    block = again[0, 1, 29_000:29_010, :20]
    grown = _resident() - before
    assert torch.equal(block, view[0, 1, 29_000:29_010, :20])
    # Query and key are 15 MB each.
    assert grown < 8 << 20


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_saving_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "one"
    _view().save(path)
    before = path.read_bytes()
    with pytest.raises(ArgumentError):
        _view(score=limelight.tile_score(lambda q, k, **_: q @ k.mT)).save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["one"]
    with pytest.raises(OutputError, match="create it first"):
        _view().save(tmp_path / "missing" / "one")


def test_what_has_code_cannot_be_saved(tmp_path):
    with pytest.raises(ArgumentError, match=r"the score TileScore cannot be written.*limelight.scores can.*tile_score"):
        _view(score=limelight.tile_score(lambda q, k, **_: q @ k.mT)).save(tmp_path / "one")

    class Mine(Mask):
        def tile(self, block):
            return torch.ones(1, 1, dtype=torch.bool)

        def rules_out(self, block):
            return False

        allows_all = rules_out

        def check(self, block):
            pass

        def per_key(self):
            return False

    with pytest.raises(
        ArgumentError, match=r"the mask Mine cannot be written.*limelight.masks can \(band, causal, window"
    ):
        _view(mask=limelight.causal() & ~Mine()).save(tmp_path / "one")
    assert not list(tmp_path.iterdir())


def _facts(path, change):
    """The file with other facts and a seal of nothing."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        parts = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata["facts"])
    facts, parts = change(facts, parts)
    metadata["facts"] = json.dumps(facts)
    safetensors.torch.save_file(parts, path, metadata)


def _resealed(path, change):
    from limelight.view.storage import _seal

    def both(facts, parts):
        change(facts, parts)
        facts.pop("seal")
        facts["seal"] = _seal(facts, {name: (str(one.dtype), list(one.shape)) for name, one in parts.items()})
        return facts, parts

    _facts(path, both)


def _rows(places):
    return {"answer.rows.places": torch.tensor(places), "answer.rows.weights": torch.zeros(2, 3, 2, 13)}


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "one"
    with pytest.raises(ViewFileError, match="one is missing"):
        AttentionView.open(path)
    _view(mask=limelight.lengths(torch.tensor([13, 5]))).save(path)
    good = path.read_bytes()
    for size in (0, 5, 100, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ViewFileError, match="truncated or not a safetensors file"):
            AttentionView.open(path)
    path.write_bytes(good + b"x")
    with pytest.raises(ViewFileError, match="truncated or not"):
        AttentionView.open(path)
    # A header that promises more than any memory holds.
    path.write_bytes(struct.pack("<Q", 1 << 62) + good[8:])
    with pytest.raises(ViewFileError, match="truncated or not"):
        AttentionView.open(path)
    path.write_bytes(pickle.dumps({"query": 1}))
    with pytest.raises(ViewFileError, match="truncated or not"):
        AttentionView.open(path)
    safetensors.torch.save_file({"query": torch.zeros(2)}, path)
    with pytest.raises(ViewFileError, match="not written by Limelight"):
        AttentionView.open(path)
    from limelight.weights import write_tensors

    write_tensors(path, {"query": torch.zeros(2)}, {"format": "another"})
    with pytest.raises(ViewFileError, match="is no limelight-view/1 file"):
        AttentionView.open(path)


def test_changed_files(tmp_path):
    path = tmp_path / "one"
    _view(mask=limelight.lengths(torch.tensor([13, 5]))).save(path)
    good = path.read_bytes()
    _facts(path, lambda facts, parts: ({**facts, "score": {"kind": "dot", "scale": 3.0}}, parts))
    with pytest.raises(ViewFileError, match="seal differs"):
        AttentionView.open(path)
    path.write_bytes(good)
    _facts(path, lambda facts, parts: (facts, {**parts, "query": torch.zeros(2, 3, 11, 5)}))
    with pytest.raises(ViewFileError, match="seal differs"):
        AttentionView.open(path)
    # One bit of a number: the sizes fit, so that only reading all of it can tell.
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 64]) + good[-4:])
    AttentionView.open(path)
    with pytest.raises(
        ViewFileError, match=r"one was changed after it was written \(the checksum differs\); save the view again$"
    ):
        AttentionView.open(path, verify=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, parts: parts.update(lse=torch.zeros(2, 3, 7)),
        lambda facts, parts: parts.update(lse=torch.zeros(2, 3, 11, dtype=torch.float64)),
        lambda facts, parts: parts.update(key=torch.zeros(2, 2, 13, 11)),
        lambda facts, parts: parts.update(key=torch.zeros(2, 3, 13, 7)),
        lambda facts, parts: parts.update(query=torch.zeros(2, 3, 11, 11, dtype=torch.int32)),
        lambda facts, parts: parts.update(bias=torch.zeros(2, 3, 11, 7)),
        lambda facts, parts: parts.update(bias=torch.zeros(3)),
        lambda facts, parts: parts.pop("query"),
        lambda facts, parts: facts.update(lead=[3]),
        lambda facts, parts: facts.update(lead="x"),
        lambda facts, parts: facts.update(lead=[math.inf]),
        lambda facts, parts: facts.update(lead=[-1, -2]),
        lambda facts, parts: facts.update(lead=[1] * 300 + [2]),
        lambda facts, parts: parts.update(bias=torch.zeros(2, 3, 11, 13, dtype=torch.int64)),
        lambda facts, parts: parts.update(query=torch.zeros(2, 3, 11, 0), key=torch.zeros(2, 3, 13, 0)),
        lambda facts, parts: facts["more"].update(sink=[]),
        lambda facts, parts: facts.update(mask={"kind": "not", "inner": None}),
        lambda facts, parts: facts.update(score={"kind": "system"}),
        lambda facts, parts: facts.update(score={"kind": "dot", "scale": "x"}),
        lambda facts, parts: facts.update(score={"kind": "dot", "other": 1}),
        lambda facts, parts: facts.update(mask={"kind": "lengths", "count": {"tensor": "query"}}),
        lambda facts, parts: facts.update(mask={"kind": "window", "before": -1, "after": 0}),
        lambda facts, parts: parts.update({"answer.entropy": torch.zeros(3)}),
        lambda facts, parts: parts.update({"answer.received": torch.zeros(2, 3, 11)}),
        lambda facts, parts: parts.update({"answer.received": torch.zeros(2, 3, 13, dtype=torch.int8)}),
        lambda facts, parts: parts.update({"answer.other": torch.zeros(2, 3, 11)}),
        lambda facts, parts: parts.update(
            {"answer.weighted 0.weights": torch.ones(5), "answer.weighted 0.received": torch.zeros(2, 3, 13)}
        ),
        lambda facts, parts: parts.update({"answer.top.indices": torch.zeros(2, 3, 11, 2)}),
        lambda facts, parts: parts.update(
            {"answer.top.indices": torch.zeros(2, 3, 11, 2), "answer.top.weights": torch.zeros(2, 3, 11, 2)}
        ),
        lambda facts, parts: parts.update({"answer.map mean 2 5": torch.zeros(2, 3, 2, 4)}),
        lambda facts, parts: parts.update({"answer.map mean 12 5": torch.zeros(2, 3, 12, 5)}),
        lambda facts, parts: parts.update({"answer.map": torch.zeros(2, 3, 2, 4)}),
        lambda facts, parts: parts.update({"answer.rows.places": torch.tensor([0, 2])}),
        lambda facts, parts: parts.update(_rows([0, 11])),
        lambda facts, parts: parts.update(_rows([2, 0])),
        lambda facts, parts: parts.update(_rows([0, 2, 3])),
    ],
)
def test_parts_that_do_not_fit_are_told_though_sealed(tmp_path, change):
    path = tmp_path / "one"
    _view(mask=limelight.lengths(torch.tensor([13, 5]))).save(path)
    _resealed(path, change)
    with pytest.raises(ViewFileError, match="one: its parts do not fit one another"):
        AttentionView.open(path)


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ViewFileError, match="is no file"):
            AttentionView.open(path)


def test_a_device_may_be_one_of_torchs(tmp_path):
    _view().save(tmp_path / "one")
    assert AttentionView.open(tmp_path / "one", device=torch.device("cpu")).device == torch.device("cpu")


def test_a_device_that_is_not_there(tmp_path):
    _view().save(tmp_path / "one")
    with pytest.raises(ArgumentError, match=r"device: 'cuda:7' cannot be used here"):
        AttentionView.open(tmp_path / "one", device="cuda:7")
