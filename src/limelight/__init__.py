"""Limelight: attention you can look at.

`attend` is one exact attention operation for every mechanism; `look` is the same call and a view of its weights;
`explain` says which backend runs a call and why the others cannot. `train` learns to translate from parallel text,
`Translator` translates and shows what was attended to.

Importing does no work: a name is looked up, and what it needs is imported, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limelight import masks, scores
    from limelight.attend import Explanation, attend, explain, look
    from limelight.masks import causal, dense, lengths, window
    from limelight.scores import additive, concat, dot, general, tile_score
    from limelight.training import resume, train
    from limelight.translator import Translation, Translator
    from limelight.view import AttentionView, Links, top

__version__ = "0.1.0"

_HOMES = {
    "limelight.attend": ("Explanation", "attend", "explain", "look"),
    "limelight.masks": ("causal", "dense", "lengths", "window"),
    "limelight.scores": ("additive", "concat", "dot", "general", "tile_score"),
    "limelight.training": ("resume", "train"),
    "limelight.translator": ("Translation", "Translator"),
    "limelight.view": ("AttentionView", "Links", "top"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("masks", "scores")

__all__ = [
    "AttentionView",
    "Explanation",
    "Links",
    "Translation",
    "Translator",
    "__version__",
    "additive",
    "attend",
    "causal",
    "concat",
    "dense",
    "dot",
    "explain",
    "general",
    "lengths",
    "look",
    "masks",
    "resume",
    "scores",
    "tile_score",
    "top",
    "train",
    "window",
]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"limelight.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'limelight' has no attribute {name!r}")
    # `limelight.attend` is a module as well as a function: the function is what the name means, before and after import.
    found = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
