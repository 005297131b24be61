"""The attention of a Keras layer on the torch backend: `attend` itself."""

from __future__ import annotations

from typing import Any

from limelight.attend import attend, look
from limelight.interop.keras.host import score_of, seed_of
from limelight.interop.keras.masks import mask_of
from limelight.interop.keras.problem import Settings, Tensors


def attention(settings: Settings, tensors: Tensors) -> Any:
    """Output [B, T, H, E]."""
    return attend(*_inputs(tensors), **_options(settings, tensors)).transpose(1, 2)


def view(settings: Settings, tensors: Tensors) -> Any:
    """(output [B, T, H, E], view)."""
    output, seen = look(*_inputs(tensors), **_options(settings, tensors))
    return output.transpose(1, 2), seen


def _inputs(tensors: Tensors) -> tuple[Any, ...]:
    return tuple(one.transpose(1, 2) for one in tensors[:3])


def _options(settings: Settings, tensors: Tensors) -> dict[str, Any]:
    options = {"score": score_of(settings, tensors.vector), "mask": mask_of(settings, tensors)}
    if settings.dropout:
        options |= {"dropout": settings.dropout, "seed": seed_of(tensors.seed)}
    return options
