"""convert(): a model that stands on torch's multi-head attention, onto ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from torch import nn

from limelight.errors import ArgumentError
from limelight.layers.multihead import MultiHeadAttention

Model = TypeVar("Model", bound=nn.Module)

_SHOWN = 4


def convert(model: Model, *, say: Callable[[str], Any] | None = print) -> Model:
    """Make every `nn.MultiheadAttention` of a model a `limelight.layers.MultiHeadAttention`, in place.

    Each layer stays the object that it is, with another class: parameters (shared ones stay shared), hooks, dtype,
    device, training flag, the optimizer's references and the state dict are as before, and the outputs are the same
    within rounding. `nn.Transformer` and its encoder and decoder layers are included: their own fast path and nested
    tensors in evaluation are off for them, as both would go past the layer. What that path writes at padded positions,
    which no other position sees, is not 0 then but what the layer writes in training.

    A subclass of `nn.MultiheadAttention` that has a forward of its own is left alone, and named. One without keeps its
    class's other methods, but can no longer be pickled whole; its state dict can. There is no way back by a function:
    a state dict loads both ways.

    Arguments:
        model: any module that is not compiled.
        say: called with one line that names what was swapped and what was not; None: nobody is told.

    Result: the model.

    Errors: ArgumentError if there is nothing to convert, with what was left alone.

    Example: `limelight.convert(nn.Transformer(64, 4))` prints
    "limelight.convert: 18 layers now attend with limelight: encoder.layers.0.self_attn, ... and 14 more".
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; it is {type(model).__name__}.")
    found = {path: one for path, one in model.named_modules() if isinstance(one, nn.MultiheadAttention)}
    ours = [path for path, one in found.items() if isinstance(one, MultiHeadAttention)]
    swapped = [path for path, one in found.items() if path not in ours and _forwards_as_torch(one)]
    alone = [
        f"{path or 'the model'} ({type(one).__name__})"
        for path, one in found.items()
        if path not in ours and path not in swapped
    ]
    if not swapped and not ours:
        left = f"; left alone, as their forward is their own: {', '.join(alone)}" if alone else ""
        raise ArgumentError(
            f"model must have an nn.MultiheadAttention somewhere; {type(model).__name__} has none that can be swapped"
            f"{left}. What calls F.scaled_dot_product_attention can call limelight.functional's; for Hugging Face "
            f"models see limelight.interop.transformers."
        )
    for path in swapped:
        _swap(found[path])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(part, MultiHeadAttention) for part in module.modules()
        ):
            module.use_nested_tensor = False
    if say is not None:
        say(_told(swapped, ours, alone))
    return model


def _forwards_as_torch(layer: nn.Module) -> bool:
    return type(layer).forward is nn.MultiheadAttention.forward and "forward" not in vars(layer)


def _swap(layer: nn.Module) -> None:
    layer.__class__ = _counterpart(type(layer))
    assert isinstance(layer, MultiHeadAttention)
    layer.keep_off_fast_path()


@cache
def _counterpart(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a swapped layer: ours, in front of the subclass that it is of."""
    if kind is nn.MultiheadAttention:
        return MultiHeadAttention
    return type(kind.__name__, (MultiHeadAttention, kind), {"__module__": kind.__module__})


def _told(swapped: list[str], ours: list[str], alone: list[str]) -> str:
    parts = [f"{_count(swapped)} now attend{'s' if len(swapped) == 1 else ''} with limelight" + _named(swapped)]
    if ours:
        parts.append(f"{_count(ours)} did already")
    if alone:
        parts.append(f"left alone, as their forward is their own: {', '.join(alone)}")
    return "limelight.convert: " + "; ".join(parts)


def _count(paths: list[str]) -> str:
    return f"{len(paths)} layer{'' if len(paths) == 1 else 's'}"


def _named(paths: list[str]) -> str:
    if not paths:
        return ""
    more = len(paths) - _SHOWN
    return f": {', '.join(path or 'the model' for path in paths[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")
