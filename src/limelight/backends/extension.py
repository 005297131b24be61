"""The compiled part of the package, `limelight._native`: the module, or the reason why it is not there."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from functools import cache
from types import ModuleType

# Before the extension: it leaves its OpenMP calls to be resolved by the runtime that torch loads.
import torch

NAME = "limelight._native"

FOLDER = "LIMELIGHT_NATIVE"
"""The environment variable that names a folder with another build of the extension (`make sanitize`)."""

NOT_BUILT = (
    "the native extension was not built when limelight was installed, which needs a C++20 compiler, GCC 11 or newer: "
    "install that, then limelight again; with LIMELIGHT_REQUIRE_NATIVE=1 pip install shows what fails"
)


def native() -> ModuleType | None:
    """The extension, or None where it is not there; `reason` then says why. Never raises.

    That the module is there does not say that its kernels can be called: its functions raise RuntimeError where the
    environment variable LIMELIGHT_ISA names an instruction set that cannot run here; `refusal` asks for both.
    """
    return _load()[0]


def reason() -> str | None:
    """Why the extension is not there; None where it is. Never raises."""
    return _load()[1]


@torch.compiler.assume_constant_result
def refusal() -> str | None:
    """Why no native kernel can be called in this process; None where they can. Never raises."""
    module = native()
    if module is None:
        return reason()
    try:
        module.isa()
    except RuntimeError as error:
        return str(error)
    return None


_usable: ModuleType | None = None


def usable() -> ModuleType | None:
    """The extension, if its kernels can be called; else None. `refusal` says why not; this asks it until they can."""
    global _usable
    module = native()
    if module is not _usable:
        _usable = module if refusal() is None else None
    return _usable


def takes(tensor: torch.Tensor) -> bool:
    """Whether a native kernel can be handed the numbers of this tensor: fp32, on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and refusal() is None


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The extension and None, or None and why it is not there; tried once per process."""
    folder = os.environ.get(FOLDER)
    try:
        return (_load_from(folder) if folder else importlib.import_module(NAME)), None
    except ModuleNotFoundError as error:
        return None, f"{FOLDER} names the folder {folder!r}, which holds no {NAME}" if folder else _missing(error)
    except Exception as error:
        # Whatever a broken or foreign build raises: the other backends work without it.
        return None, f"the native extension was built but cannot be loaded: {error}"


def _missing(error: ModuleNotFoundError) -> str:
    """What a missing module means: the extension itself, or something that it needs."""
    return NOT_BUILT if error.name == NAME else f"the native extension was built but cannot be loaded: {error}"


def _load_from(folder: str) -> ModuleType:
    """The extension that lies in a folder of its own, under its usual name."""
    spec = importlib.machinery.PathFinder.find_spec(NAME, [folder])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name=NAME)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    return module
