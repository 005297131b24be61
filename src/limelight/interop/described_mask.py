"""A tensor that is only a description: what a mask function of transformers returns instead of a T x S tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from limelight.errors import ArgumentError
from limelight.masks import Mask
from limelight.masks.block import whole_block

_ATEN = torch.ops.aten
_MOVES = frozenset(
    {_ATEN.alias, _ATEN.cat, _ATEN.clone, _ATEN.constant_pad_nd, _ATEN.expand, _ATEN.index, _ATEN.index_select}
    | {_ATEN.permute, _ATEN.repeat, _ATEN.select, _ATEN.slice, _ATEN.squeeze, _ATEN.stack, _ATEN.transpose}
    | {_ATEN._to_copy, _ATEN._unsafe_view, _ATEN.unsqueeze, _ATEN.view}
)
"""What takes parts of a mask, or puts parts together: the result is such a mask again."""
_ASKS = frozenset(
    {_ATEN.all, _ATEN.any, _ATEN.bitwise_and, _ATEN.bitwise_not, _ATEN.bitwise_or, _ATEN.bitwise_xor, _ATEN.equal}
    | {_ATEN.logical_and, _ATEN.logical_not, _ATEN.logical_or, _ATEN.logical_xor, _ATEN.where}
    | {_ATEN.empty_like, _ATEN.full_like, _ATEN.ones_like, _ATEN.zeros_like}
    | {_ATEN._fused_sdp_choice, _ATEN._scaled_dot_product_efficient_attention, _ATEN._scaled_dot_product_attention_math}
    | {_ATEN._scaled_dot_product_cudnn_attention, _ATEN._scaled_dot_product_flash_attention_for_cpu}
)
"""What takes True and False for what they are."""
_ORDINARY = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
"""What torch does with a call outside of `__torch_dispatch__`, where vmap does not work."""


class DescribedMask(Tensor):
    """A bool tensor [B, 1, T, S], True may attend, without storage; `said` is the mask it stands for, None for all.

    transformers hands it from the model to its layers, and looks at no more than its shape. Who selects by it gets the
    dense tensor; who takes a part of it gets one of these that holds the `part`, and no description. Who does anything
    else with it, such as adding it to scores, is a model that attends by itself and means a mask of numbers, 0 where it
    may attend: ArgumentError.
    """

    said: Mask | None
    part: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def of(said: Mask | None, shape: Sequence[int], device: torch.device) -> DescribedMask:
        """The tensor of that shape that stands for a mask."""
        made = Tensor._make_wrapper_subclass(DescribedMask, shape, dtype=torch.bool, device=device)  # pyright: ignore
        made.said, made.part = said, None
        return made

    @staticmethod
    def holding(part: Tensor) -> DescribedMask:
        """The tensor that stands for a part of a mask."""
        made = DescribedMask.of(None, part.shape, part.device)
        made.part = part
        return made

    def dense(self) -> Tensor:
        """All of it."""
        if self.part is not None:
            return self.part
        if self.said is None:
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        lead, _, queries, keys = self.shape
        block = whole_block(lead, 1, queries, keys, self.device)
        with torch._C._ForceDispatchKeyGuard(*_ORDINARY):
            return self.said.tile(block).expand(self.shape).clone()

    def __repr__(self, **_: Any) -> str:  # pyright: ignore
        return f"DescribedMask({list(self.shape)}, {self.said if self.part is None else 'a part'})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operator = kwargs or {}, func.overloadpacket
        if operator is _ATEN.detach:
            return args[0]
        moves = operator in _MOVES and kwargs.get("dtype", torch.bool) is torch.bool
        if not moves and operator not in _ASKS:
            raise ArgumentError(
                "attn_implementation: this model applies its mask to the scores by itself instead of attending through "
                f"the attention interface of transformers ({operator} of its mask), so that it cannot run on "
                '"limelight". Use attn_implementation="eager".'
            )
        args, kwargs = tree_map_only(DescribedMask, DescribedMask.dense, (args, kwargs))
        result = func(*args, **kwargs)
        return DescribedMask.holding(result) if moves and result.dtype is torch.bool else result
