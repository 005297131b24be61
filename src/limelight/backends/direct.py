"""The shortest road: a plain dot product of plain tensors goes to the native kernels without becoming a `Call`.

It takes what needs no word of explanation, and leaves everything else, right or wrong, to the long road, which checks
and says what is wrong. What both compute is the same, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.backends import extension
from limelight.backends.kernels import MOST_WIDTH, TYPES, room
from limelight.contract import exporting
from limelight.masks import Mask
from limelight.masks.causal import Causal
from limelight.masks.form import EVERYTHING
from limelight.masks.lengths import Lengths
from limelight.numerics import forward_mode, has_numbers
from limelight.scores import Score
from limelight.scores.dot import Dot

_PLAIN = Dot()


def attend(query: Any, key: Any, value: Any, score: Score | None, mask: Mask | None) -> Tensor | None:
    """softmax(scale q kᵀ) v where no gradient is wanted, no mask or `causal()` or `lengths`; None for the long road."""
    if torch.compiler.is_compiling() or exporting():
        return None
    if not (_plain(query) and _plain(key) and _plain(value) and query.is_cpu):
        return None
    if query.dtype not in TYPES or value.shape[3] > MOST_WIDTH:
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    score = _PLAIN if score is None else score
    if type(score) is not Dot or score.cap is not None or forward_mode((query, key, value)):
        return None
    high, counts = EVERYTHING.high, None
    if type(mask) is Causal:
        high = key.shape[2] - query.shape[2] if mask.align == "end" else 0
    elif type(mask) is Lengths and mask.longest <= key.shape[2] and mask.count.shape == query.shape[:1]:
        counts = mask.count.to(query.device).contiguous()
    elif mask is not None:
        return None
    module = extension.native()
    if module is None or extension.refusal() is not None:
        return None
    output = room(query, value.shape[3])
    scale = score.plain_scale(query.shape[3])
    lengths = 0 if counts is None else counts.data_ptr()
    done = module.plain_dot(query, key, value, output, scale, high, lengths, torch.get_num_threads())
    return output if done else None


def _plain(tensor: Any) -> bool:
    """Whether it is a tensor of four axes and nothing more."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_nested:
        return False
    return tensor.ndim == 4 and has_numbers(tensor) and not tensor.is_neg()
