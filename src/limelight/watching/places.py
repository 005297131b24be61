"""Where in a model a call is made: module paths, patterns over them, and which module runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from limelight.errors import ArgumentError, WatchError

# Every call of a module passes through here; a hook on each would cost more than a small attention.
_CALL = nn.Module._call_impl.__code__

# Torch's layers that hold no other and attend to nothing: what such a one calls, the module around it does.
_PLAIN = frozenset({nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.Identity, nn.Softmax})


def named(model: nn.Module) -> tuple[dict[str, str], dict[str, nn.Module]]:
    """Each path in the model -> the first path of its module, in the order of `named_modules`; that path -> the module.

    In two thirds of the time of `named_modules`, which hands each module through all those around it.
    """
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    modules: dict[str, nn.Module] = {}

    def visit(path: str, module: nn.Module) -> None:
        name = first.get(id(module))
        if name is None:
            first[id(module)] = name = path
            modules[path] = module
        names[path] = name
        if module._modules:
            before = f"{path}." if path else ""
            for own, one in module._modules.items():
                if one is not None:
                    visit(before + own, one)

    visit("", model)
    return names, modules


def chosen(model: nn.Module, names: Mapping[str, str], layers: str | Sequence[str] | None) -> set[str]:
    """The paths of the modules that a pattern, or one of several, names: the module itself or one it lies in.

    `*`, `?` and `[...]` as in file names; `*` also crosses dots. None: all. `names`: every path -> the first one of its
    module, which is the one that is meant by the result.

    Errors: WatchError, with near misses, for a pattern that names no module.
    """
    paths = list(names)
    if layers is None:
        return set(names.values())
    patterns = [layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
    if not patterns or not all(isinstance(one, str) for one in patterns):
        raise ArgumentError(f"layers must be None, a pattern of module paths, or several; it is {layers!r}.")
    found: set[str] = set()
    for pattern in patterns:
        named = {path for path in paths if fnmatchcase(path, pattern)}
        if not named:
            near = get_close_matches(pattern, paths, n=3, cutoff=0.4) or paths[1:4]
            raise WatchError(
                f"layers: no module of this {type(model).__name__} matches {pattern!r}; near it: "
                f"{', '.join(map(repr, near))}. `*` stands for anything, dots as well."
            )
        found |= {names[path] for path in paths if any(inside in named for inside in _around(path))}
    return found


def _around(path: str) -> list[str]:
    """The path and those of the modules around it, but for the model itself, which "*" and "" name."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


@dataclass(slots=True)
class Running:
    """A module that was found running, its path, and whether a call of it was caught."""

    module: nn.Module
    path: str
    attended: bool = False


class _Hook:
    """A hook of a module that stays with it: a copy of the module, or a pickled one, has a hook that does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        if self._call is not None:
            self._call(*arguments)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class Place:
    """Which modules of one model run, in the thread that asks.

    Python's own stack says it, when it is asked, so that nothing is done while no call is made. Hooked are the
    outermost modules chosen, so that it is known which of them were run, and all where code was compiled in this
    process: what that calls is known only when it has ended.

    Args:
        modules: those of the model, by path.
        wanted: the paths of those chosen.
        ran: where the paths of the outermost that were run are put.
        entered: called when a hooked module begins, and `left` when it ends.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        wanted: set[str],
        ran: set[str],
        entered: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        self._paths = {id(module): path for path, module in modules.items() if type(module) not in _PLAIN}
        self._modules, self._wanted, self._ran = modules, wanted, ran
        self._entered, self._left = entered, left
        self._found: dict[str, Running] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Place:
        thread = threading.get_ident()

        def begins(path: str, module: nn.Module, inputs: object) -> None:
            if threading.get_ident() == thread:
                self._entered()
                if path in outermost:
                    self._ran.add(path)

        def ends(module: nn.Module, inputs: object, output: object) -> None:
            if threading.get_ident() == thread:
                self._left()

        wanted = self._wanted
        outermost = {path for path in wanted if not path or path.rpartition(".")[0] not in wanted}
        hooked = {path for path in wanted if type(self._modules[path]) not in _PLAIN} if _compiled_before() else set()
        for path in outermost | hooked:
            module = self._modules[path]
            # A scripted module takes no hooks; `watch` refuses those that attend.
            if not isinstance(module, torch.jit.ScriptModule):
                self._hooks.append(module.register_forward_pre_hook(_Hook(partial(begins, path))))
                self._hooks.append(module.register_forward_hook(_Hook(ends), always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def innermost(self) -> Running | None:
        """The innermost running module, if it was chosen."""
        return self._found_from(sys._getframe(1))[0]

    def around(self) -> list[Running]:
        """The innermost running module and those that it runs in, as far as they were chosen."""
        found: list[Running] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            running, frame = self._found_from(frame)
            if running is None:
                break
            found.append(running)
        return found

    def _found_from(self, frame: FrameType | None) -> tuple[Running | None, FrameType | None]:
        """The innermost module that runs at this frame or around it, if it was chosen, and the frame beyond."""
        while frame is not None:
            if frame.f_code is _CALL:
                module = frame.f_locals["self"]
                path = self._paths.get(id(module))
                if path is not None:
                    if path not in self._wanted:
                        return None, None
                    found = self._found.get(path)
                    if found is None:
                        found = self._found[path] = Running(module, path)
                    return found, frame.f_back
            frame = frame.f_back
        return None, None


def _compiled_before() -> bool:
    """Whether torch.compile has compiled anything in this process."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return frames is not None and frames.FRAME_COUNTER > 0
