"""Where in a model a call is made: module paths, patterns over them, and hooks that tell which module runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from limelight.errors import ArgumentError, WatchError
from limelight.watching.unseen import Steps

# Layers that hold no other and attend to nothing: most modules of a model, so that not hooking them is worth it.
_PLAIN = frozenset(
    {nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.Dropout, nn.Identity, nn.Conv1d, nn.Conv2d}
    | {nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softmax}
)


def chosen(model: nn.Module, layers: str | Sequence[str] | None) -> set[str]:
    """The paths of the modules that a pattern, or one of several, names: the module itself or one it lies in.

    `*`, `?` and `[...]` as in file names; `*` also crosses dots. None: all.

    Errors: WatchError, with near misses, for a pattern that names no module.
    """
    paths = [path for path, _ in model.named_modules()]
    if layers is None:
        return set(paths)
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
        found |= {path for path in paths if any(inside in named for inside in _around(path))}
    return found


def _around(path: str) -> list[str]:
    """The path and those of the modules around it, but for the model itself, which "*" and "" name."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


@dataclass(slots=True)
class Running:
    """A module that is running: its path, whether it was chosen, whether a call of it was caught, and other steps."""

    path: str
    chosen: bool
    attended: bool = False
    steps: Steps = field(default_factory=Steps)


class Place:
    """The stack of running modules of one model in the thread that made this object.

    `uncaught` counts calls that cannot be seen, by the reason; `miss` hears which module made them.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: set[str],
        ran: set[str],
        uncaught: Callable[[], dict[str, int]],
        miss: Callable[[str, str], None],
    ) -> None:
        self._model, self._wanted, self._ran = model, wanted, ran
        self._uncaught, self._miss, self._counted = uncaught, miss, uncaught()
        self._thread = threading.get_ident()
        self._stack: list[Running] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Place:
        for path, module in self._model.named_modules():
            # A plain layer that was chosen without what it lies in is hooked, to be known to have run.
            alone = not path or (path in self._wanted and path.rpartition(".")[0] not in self._wanted)
            # Scripted modules take no hooks; `watch` refuses those that attend.
            if (type(module) in _PLAIN and not alone) or isinstance(module, torch.jit.ScriptModule):
                continue
            self._hooks.append(module.register_forward_pre_hook(self._entering(path, path in self._wanted)))
            self._hooks.append(module.register_forward_hook(self._leaving(path), always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def innermost(self) -> Running | None:
        """The innermost running module, if it was chosen."""
        return self._stack[-1] if self._stack and self._stack[-1].chosen else None

    def _tell(self) -> None:
        """Whatever was counted since the last time, the innermost module did."""
        before, self._counted = self._counted, self._uncaught()
        running = self.innermost()
        # Compiled code may call the operators of torch, and these are caught.
        if running is not None and not running.attended:
            for reason, count in self._counted.items():
                if count > before.get(reason, 0):
                    self._miss(running.path, reason)

    def _entering(self, path: str, wanted: bool) -> Any:
        def hook(module: nn.Module, inputs: object) -> None:
            if threading.get_ident() == self._thread:
                self._tell()
                self._stack.append(Running(path, wanted))
                if wanted:
                    self._ran.add(path)

        return hook

    def _leaving(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            # Another hook that raises before ours leaves a module that was never entered.
            if self._stack and self._stack[-1].path == path and threading.get_ident() == self._thread:
                self._tell()
                ended = self._stack.pop()
                if self._stack and not ended.attended:
                    # A module that makes weights for the one around it, such as a softmax with a scale.
                    self._stack[-1].steps.shares |= ended.steps.shares

        return hook
