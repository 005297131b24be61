"""Sums in which a weight of zero for what may not be attended to is a true zero, even against NaN and inf."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_innermost_transformation = torch._C._functorch.peek_interpreter_stack  # pyright: ignore
_dispatch_mode, _FAKE = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore
_is_functorch_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore


def all_finite(*tensors: Tensor | None) -> bool:
    """Whether every number is finite, by one sum each; may say False when a sum of finite numbers overflows."""
    return all(
        tensor is None
        or math.isfinite(float(tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32))))
        for tensor in tensors
    )


def has_numbers(tensor: Tensor) -> bool:
    """Whether it holds its numbers itself: does not wrap another tensor, is not fake and not a tensor of torch.func."""
    kind = type(tensor)
    if kind is not Tensor and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:  # pyright: ignore
        return False
    return not wraps_another(tensor)


def wraps_another(tensor: Tensor) -> bool:
    """Whether a tensor of no class of its own wraps another one, as those of torch.func, or stands for zeros."""
    return _is_functorch_wrapped(tensor) or tensor._is_zerotensor()


def transformed() -> bool:
    """Whether a transformation of `torch.func` runs, or a mode that makes fake tensors: what is made has no numbers.

    Nor can it be told then whether gradients are wanted: a tensor may wrap another one that wants them.
    """
    if torch.compiler.is_compiling():
        return False
    return _innermost_transformation() is not None or _dispatch_mode(_FAKE) is not None


def forward_mode(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one of them carries a tangent, of `torch.autograd.forward_ad`."""
    if forward_ad._current_level < 0:
        return False
    return any(one is not None and forward_ad.unpack_dual(one).tangent is not None for one in tensors)


def no_graph(tensor: Tensor) -> AbstractContextManager[Any]:
    """Neither autograd nor autocast, in a backward pass: autograd is off there, except with create_graph=True."""
    device = tensor.device.type
    if not (torch.is_grad_enabled() or torch.is_autocast_enabled(device)):
        return nullcontext()
    both = ExitStack()
    both.enter_context(torch.no_grad())
    both.enter_context(torch.autocast(device, enabled=False))
    return both


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Backends choose their dtypes themselves; autocast would narrow their products."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def nonfinite(tensor: Tensor) -> Tensor:
    """Where it is NaN or inf."""
    return ~tensor.isfinite()


def without_nonfinite(tensor: Tensor) -> Tensor:
    """The tensor with NaN and inf replaced by 0."""
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)


def excess(scores: Tensor, threshold: Tensor, rest: Tensor | None = None) -> Tensor:
    """The scores less the threshold, a fresh tensor in the dtype of the scores; the threshold may be in a wider one.

    What a score has above its threshold may be a small part of both. Where that counts, the first difference is exact,
    and what rounding took from the threshold, or the `rest` that it took from an lse, is taken off the small number: of
    a row whose scores are all -3e38, as masks that are added have it, nothing of log l is in the lse.
    """
    near = threshold.to(scores.dtype)
    if near.dtype is threshold.dtype:
        return scores - near if rest is None else (scores - near).sub_(rest)
    rest = (threshold.detach() - near.detach()).to(scores.dtype).nan_to_num_(nan=0.0)  # inf - inf
    return (scores - near).sub_(rest)


class Strays:
    """NaN and inf that allowed pairs let through: flags [n, H, t, E], gathered over the blocks of a row piece."""

    __slots__ = ("minus", "nan", "plus")

    def __init__(self) -> None:
        self.nan: Tensor | None = None
        self.plus: Tensor | None = None
        self.minus: Tensor | None = None

    def add(self, allowed: Tensor, value: Tensor) -> None:
        """Note what `value` [n, H, s, E] holds where `allowed` [n, H, t, s] is True."""
        weight = allowed.to(value.dtype)
        for name, found in (("nan", value.isnan()), ("plus", value.isposinf()), ("minus", value.isneginf())):
            flag = torch.matmul(weight, found.to(value.dtype)) > 0
            have = getattr(self, name)
            setattr(self, name, flag if have is None else have | flag)

    def apply(self, total: Tensor) -> Tensor:
        """Put them into the sum of the finite part: NaN, or inf of the sign that came."""
        if self.nan is None or self.plus is None or self.minus is None:
            return total
        total = total + torch.where(self.plus, math.inf, 0.0).to(total.dtype)
        total = total - torch.where(self.minus, math.inf, 0.0).to(total.dtype)
        return total.masked_fill(self.nan, math.nan)


def weighted_sum(weights: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Σ over allowed pairs of weight · value, for weights [n, H, t, s] of at least 0 and value [n, H, s, E]."""
    strays = Strays()
    strays.add(allowed, value)
    return strays.apply(torch.matmul(weights, without_nonfinite(value)))
