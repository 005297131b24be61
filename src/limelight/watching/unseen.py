"""What attends without a call that could be caught: how it is recognised, and the words in which it is told."""

from __future__ import annotations

import torch
from torch._ops import OpOverload, OpOverloadPacket

OPERATORS = (OpOverload, OpOverloadPacket)

BY_HAND = (
    "it takes the softmax by itself, and its scores cannot be told from outside: they were written over before the "
    "weights met the values, or there is a logit more of which it is not known which one"
)
MISFIT = "it takes the softmax by itself, and what it makes does not fit what is observed ({})"
WITHOUT_MEANING = "its attention is called with what has no meaning here: {}"
NO_NUMBERS = "its attention runs on tensors without numbers of their own: nested, sparse, meta, fake, or of torch.func"
KERNEL = "it calls torch.ops.{}, a kernel whose arguments are not understood here"
FLEX = (
    "it calls flex_attention, which compiles score_mod and mask_mod into its kernel; limelight.attend takes them as "
    "tile_score and a mask"
)
COMPILED = (
    "its attention, or a softmax that may be one, is inside a function compiled by torch.compile; inside "
    "torch.compiler.set_stance('force_eager') it makes calls that can be seen"
)


def attends(operator: OpOverload | OpOverloadPacket) -> bool:
    """Whether the name of an operator says that it is attention, forward; ours are heard of elsewhere."""
    space, _, name = str(operator).partition(".")
    attention = "attention" in name or "attn" in name
    return attention and space != "limelight" and not any(part in name for part in ("backward", "choice"))


def scripted_attention(module: torch.jit.ScriptModule) -> bool:
    """Whether the code of a scripted module attends: it calls attention, or a softmax and a product."""
    graph = str(module.inlined_graph) if hasattr(module, "forward") else ""
    named = "attention" in graph
    return named or ("aten::softmax" in graph and any(f"aten::{one}(" in graph for one in ("matmul", "bmm", "einsum")))
