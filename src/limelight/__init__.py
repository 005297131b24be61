"""Limelight: attention you can look at.

`attend` is one exact attention operation for every mechanism; `look` is the same call and a view of its weights;
`explain` says which backend runs a call and why the others cannot. `train` learns to translate from parallel text,
`Translator` translates and shows what was attended to. `watch` shows the attention of any other torch model, `convert`
puts ours in its place.

Importing does no work: a name is looked up, and what it needs is imported, when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limelight import biases, functional, layers, masks, normalizers, scores
    from limelight.attend import Explanation, attend, explain, look
    from limelight.biases import alibi, relative, t5_buckets
    from limelight.convert import convert
    from limelight.masks import band, causal, dense, interval, lengths, segments, window
    from limelight.normalizers import entmax15, sigmoid, softmax, sparsemax
    from limelight.scores import additive, concat, cosine, dot, gaussian, general, tile_score
    from limelight.stepwise import Steps, steps
    from limelight.training import resume, train
    from limelight.translator import Translation, Translator
    from limelight.view import AttentionView, Links, pooled, received, rollout, rows, top
    from limelight.watch import Seen, Statistics, watch

__version__ = "0.1.0"

_HOMES = {
    "limelight.attend": ("Explanation", "attend", "explain", "look"),
    "limelight.biases": ("alibi", "relative", "t5_buckets"),
    "limelight.convert": ("convert",),
    "limelight.masks": ("band", "causal", "dense", "interval", "lengths", "segments", "window"),
    "limelight.normalizers": ("entmax15", "sigmoid", "softmax", "sparsemax"),
    "limelight.scores": ("additive", "concat", "cosine", "dot", "gaussian", "general", "tile_score"),
    "limelight.stepwise": ("Steps", "steps"),
    "limelight.training": ("resume", "train"),
    "limelight.translator": ("Translation", "Translator"),
    "limelight.view": ("AttentionView", "Links", "pooled", "received", "rollout", "rows", "top"),
    "limelight.watch": ("Seen", "Statistics", "watch"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("biases", "functional", "layers", "masks", "normalizers", "scores")

__all__ = [
    "AttentionView",
    "Explanation",
    "Links",
    "Seen",
    "Statistics",
    "Steps",
    "Translation",
    "Translator",
    "__version__",
    "additive",
    "alibi",
    "attend",
    "band",
    "biases",
    "causal",
    "concat",
    "convert",
    "cosine",
    "dense",
    "dot",
    "entmax15",
    "explain",
    "functional",
    "gaussian",
    "general",
    "interval",
    "layers",
    "lengths",
    "look",
    "masks",
    "normalizers",
    "pooled",
    "received",
    "relative",
    "resume",
    "rollout",
    "rows",
    "scores",
    "segments",
    "sigmoid",
    "softmax",
    "sparsemax",
    "steps",
    "t5_buckets",
    "tile_score",
    "top",
    "train",
    "watch",
    "window",
]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"limelight.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'limelight' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return found


class _Package(ModuleType):
    """The package itself: `limelight.attend` is a module as well as a function, and the name means the function always.

    The import system binds a submodule's name in its package when the submodule is first imported, by whomever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
