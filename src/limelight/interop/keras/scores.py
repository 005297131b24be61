"""What `return_attention_scores` and `return_attention_view` come to: nothing, dense scores, or a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limelight.errors import ArgumentError

VIEW = "view"
"""In place of the True of `return_attention_scores`, which is handed on to where attention is computed."""


def wanted(scores: Any, view: bool) -> Any:
    """False, True (dense scores) or `VIEW`. Errors: ArgumentError if both are asked for."""
    if view and scores:
        raise ArgumentError(
            "return_attention_scores and return_attention_view: only one of them may be True, and both are. "
            "A view gives the scores too: view.dense()."
        )
    return VIEW if view else scores


def changed(layer: type, home: type, names: Sequence[str]) -> bool:
    """Whether a subclass has methods of its own in place of those that `home` has under these names."""
    return any(getattr(layer, name) is not getattr(home, name) for name in names)


def refuse_symbolic(view: bool) -> None:
    """Errors: ArgumentError for a view of a layer that is called to build a model."""
    if view:
        raise ArgumentError(
            "return_attention_view=True needs tensors that have values, and this call builds a model: a view is no "
            "tensor. Call the layer itself on what it attends to, or use return_attention_scores=True."
        )


def refuse_overridden(view: bool, name: str) -> None:
    """Errors: ArgumentError for a view of a subclass that computes attention itself."""
    if view:
        raise ArgumentError(
            f"return_attention_view=True: {name} computes its attention itself, and no view comes of that. "
            f"Use return_attention_scores=True."
        )


def refuse_odd(view: bool, odd: str) -> None:
    """Errors: ArgumentError for a view of a call that is left to Keras."""
    if view:
        raise ArgumentError(f"return_attention_view=True: {odd}")
