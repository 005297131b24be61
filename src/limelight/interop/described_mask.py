"""A tensor that is only a description: what a mask function of transformers returns instead of a T x S tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from limelight.errors import ArgumentError
from limelight.masks import Block, Mask

_ATEN = torch.ops.aten
_OF_NUMBERS = frozenset(
    {one.Tensor for one in (_ATEN.add, _ATEN.add_, _ATEN.sub, _ATEN.mul, _ATEN.mul_)}
    | {one.Scalar for one in (_ATEN.add, _ATEN.mul, _ATEN.rsub)}
    | {_ATEN.rsub.Tensor, _ATEN._to_copy.default, _ATEN.select.int}
    | {_ATEN.masked_fill.Scalar, _ATEN.masked_fill.Tensor, _ATEN.masked_fill_.Scalar, _ATEN.masked_fill_.Tensor}
)
"""What a model does with a mask of numbers."""


class DescribedMask(Tensor):
    """A bool tensor [B, 1, T, S], True may attend, without storage; `said` is the mask it stands for, None for all.

    transformers hands it from the model to its layers, and looks at no more than its shape. Who selects by it gets the
    dense tensor. Who adds it to scores, or fills by it, is a model that attends by itself and means a mask of numbers,
    0 where it may attend: ArgumentError.
    """

    said: Mask | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def of(said: Mask | None, shape: tuple[int, int, int, int], device: torch.device) -> DescribedMask:
        """The tensor of that shape that stands for a mask."""
        made = Tensor._make_wrapper_subclass(DescribedMask, shape, dtype=torch.bool, device=device)  # pyright: ignore
        made.said = said
        return made

    def dense(self) -> Tensor:
        """All of it, [B, 1, T, S]."""
        lead, _, queries, keys = self.shape
        if self.said is None:
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        everything = (slice(0, lead), slice(0, 1), slice(0, queries), slice(0, keys))
        block = Block((lead,), 1, queries, keys, *everything, self.device)
        return self.said.tile(block).expand(self.shape).clone()

    def __repr__(self, **_: Any) -> str:  # pyright: ignore
        return f"DescribedMask({list(self.shape)}, {self.said})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        stays_bool = func is _ATEN._to_copy.default and (kwargs or {}).get("dtype", torch.bool) is torch.bool
        if func in _OF_NUMBERS and not stays_bool:
            raise ArgumentError(
                "attn_implementation: this model applies its mask to the scores by itself instead of attending through "
                'the attention interface of transformers, so that it cannot run on "limelight". Use '
                'attn_implementation="eager".'
            )
        args, kwargs = tree_map_only(DescribedMask, DescribedMask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)
