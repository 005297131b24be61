import errno
import os
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch
from torch import nn

from limelight.errors import OutputError, RunFolderError
from limelight.weights import fill_model, model_tensors, read_tensors, write_tensors

TENSORS = {
    "a": torch.tensor([[1.5, -2.0, torch.nan]]),
    "half": torch.tensor([1.0, 3.0]).bfloat16(),
    "step": torch.tensor(7.0),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "none": torch.empty(0, 3),
}
FACTS = {"update": 7, "loss": None, "name": "é", "list": [1, 2]}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, FACTS)
    return tmp_path / "x.safetensors"


def test_what_is_written_comes_back(path):
    tensors, facts = read_tensors(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(tensors[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_every_dtype_is_what_the_format_calls_it(tmp_path):
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    others = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    given = {f"{dtype}": torch.arange(7).to(dtype) for dtype in (*floats, *others)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, given, {})
    found = safetensors.torch.load_file(path)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], one) and found[name].dtype is one.dtype for name, one in given.items())


def test_tensors_are_written_from_their_own_memory(tmp_path):
    tensors = {"a": torch.randn(1 << 20), "b": torch.randn(1 << 20)}
    tracemalloc.start()
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    assert read_tensors(tmp_path / "x.safetensors")[0].keys() == tensors.keys()


def test_any_part_can_be_cut_off_and_is_missed(path):
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            RunFolderError, match=r"x\.safetensors is truncated or not a safetensors file .*train again"
        ):
            read_tensors(path)


def test_any_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    read_tensors(path)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        # White space that fills the header up says nothing.
        if chr(whole[place]) != " ":
            with pytest.raises(RunFolderError, match=r"x\.safetensors .*; restore it from a copy, or train again"):
                read_tensors(path)


def test_files_of_others(path, tmp_path):
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    with pytest.raises(RunFolderError, match="was not written by Limelight; restore it from a copy, or train again"):
        read_tensors(path)
    path.write_bytes(b"PK\x03\x04 not a safetensors file at all")
    with pytest.raises(RunFolderError, match="truncated or not a safetensors file"):
        read_tensors(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(RunFolderError, match="truncated or not a safetensors file"):
        read_tensors(path)
    path.unlink()
    with pytest.raises(RunFolderError, match=r"x\.safetensors is missing; restore"):
        read_tensors(path)
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"x\.safetensors"):
        read_tensors(path)


def test_a_full_disk_leaves_what_was_there(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*x\.safetensors: No space left on device; free some space"):
        write_tensors(path, {"a": torch.zeros(11)}, {})
    assert read_tensors(path)[1] == FACTS
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_a_model_takes_exactly_its_own_weights(tmp_path):
    model, other = nn.Linear(3, 5), nn.Linear(3, 5)
    fill_model(model, model_tensors(other), tmp_path / "w")
    assert torch.equal(model.weight, other.weight)
    weights = dict(model_tensors(model))
    for wrong, name in (
        ({"weight": weights["weight"]}, "bias"),
        (weights | {"more": torch.ones(1)}, "more"),
        (weights | {"weight": torch.ones(5, 4)}, "weight"),
    ):
        with pytest.raises(
            RunFolderError, match=f"w does not fit the model in config.json: 1 tensors .* {name!r}; restore"
        ):
            fill_model(model, wrong, tmp_path / "w")


def test_a_weight_in_two_places_is_saved_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(model_tensors(model)) == ["0.weight", "0.bias", "1.bias"]
