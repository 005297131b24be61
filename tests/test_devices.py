import pytest
import torch

from limelight.devices import available_devices, find_device
from limelight.errors import ArgumentError


@pytest.fixture
def bare(monkeypatch):
    """A machine with nothing but its CPU."""
    for owner in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(owner, "is_available", lambda: False)


@pytest.fixture
def two_cards(bare, monkeypatch):
    """A machine that says that it has two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_cpu_is_always_there(bare):
    assert available_devices() == ["cpu"]
    assert find_device("cpu") == find_device() == torch.device("cpu")


# "meta" holds no numbers; the others are names that torch knows and training does not.
@pytest.mark.parametrize("name", ["foo", "meta", "", "cuda", "cuda:0", "mps", "xpu", "mkldnn", "vulkan", "cuda:x"])
def test_what_is_not_there_is_refused_and_what_is_there_is_named(bare, name):
    with pytest.raises(ArgumentError) as caught:
        find_device(name)
    assert str(caught.value) == f"device: {name!r} cannot be used here; take 'auto' or one that is here: cpu"


def test_cards_by_number(two_cards, monkeypatch):
    assert find_device() == torch.device("cuda")
    with pytest.raises(ArgumentError, match=r"device: 'cuda:2' cannot be used here; .*: cpu, cuda, cuda:0, cuda:1$"):
        find_device("cuda:2")
    tried = []
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device))
    assert [find_device(name) for name in ("cuda", "cuda:1")] == tried == [torch.device("cuda"), torch.device("cuda:1")]


def test_the_other_kinds(bare, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    assert available_devices() == ["cpu", "mps", "mps:0", "xpu", "xpu:0"]


def test_a_device_that_does_not_answer(two_cards, monkeypatch):
    def broken(size, device):
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "empty", broken)
    message = r"device: 'cuda:1' cannot be used here \(CUDA error: unspecified launch failure\); take 'auto' or 'cpu'"
    with pytest.raises(ArgumentError, match=message):
        find_device("cuda:1")
