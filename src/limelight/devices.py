"""Which device to compute on."""

from itertools import chain

import torch

from limelight.errors import ArgumentError


def available_devices() -> list[str]:
    """The names of the devices that training can run on here: "cpu", and it may be "cuda", "cuda:0", "mps", "xpu"."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
    }
    numbered = ([kind, *(f"{kind}:{index}" for index in range(count))] for kind, count in counts.items() if count)
    return ["cpu", *chain.from_iterable(numbered)]


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        ArgumentError: the name is none of `available_devices()`, or the device does not answer.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = available_devices()
    if name not in there:
        raise ArgumentError(
            f"device: {name!r} cannot be used here; take 'auto' or one that is here: {', '.join(there)}"
        )
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device: {name!r} cannot be used here ({reason}); take 'auto' or 'cpu'") from error
    return device
