"""Which device to compute on."""

import torch

from limelight.errors import ArgumentError


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        ArgumentError: the name is no device, or this machine has none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device: {name!r} cannot be used here ({reason}); take 'auto' or 'cpu'") from error
    return device
