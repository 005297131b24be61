"""The shortest road: a plain dot product of plain tensors goes to the native kernels without the checks of a `Call`.

It takes what needs no word of explanation, and leaves everything else, right or wrong, to the long road, which checks
and says what is wrong. What both compute is the same, bit for bit.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limelight.backends import extension, kernels
from limelight.backends.derivatives import final
from limelight.backends.protocol import NOTHING, Call, Result
from limelight.backends.select import CAREFUL
from limelight.contract import exporting
from limelight.masks import Mask
from limelight.masks.causal import Causal
from limelight.masks.form import EVERYTHING
from limelight.masks.lengths import Lengths
from limelight.numerics import forward_mode, has_numbers, no_graph, transformed
from limelight.scores import Score
from limelight.scores.dot import Dot

BACKENDS = frozenset({"auto", "native"})
"""What a call may say of its backend to go this way."""

_DOT = Dot()


class Plain(NamedTuple):
    """A dot product of plain tensors of four axes, with no mask or `causal()` or `lengths`, and what says so to a kernel.

    Whether the shapes fit each other, the kernel finds: it refuses what does not.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    score: Dot
    mask: Mask | None
    module: ModuleType
    scale: float
    high: int
    counts: Tensor | None

    def wants_gradients(self) -> bool:
        """Whether a backward pass may follow."""
        needed = self.query.requires_grad or self.key.requires_grad or self.value.requires_grad
        return needed and torch.is_grad_enabled()

    def call(self, *, wants_lse: bool) -> Call:
        """The same as a `Call`."""
        lead = tuple(self.query.shape[:1])
        return Call(self.query, self.key, self.value, self.score, self.mask, None, 0.0, 0, lead, wants_lse)

    def numbers(self) -> tuple[float, int, int, int]:
        """Scale, mask and threads as csrc/bindings.cpp reads them."""
        counts = 0 if self.counts is None else self.counts.data_ptr()
        return self.scale, self.high, counts, torch.get_num_threads()


def plain(query: Any, key: Any, value: Any, score: Score | None, mask: Mask | None) -> Plain | None:
    """The call, if it can go this way."""
    if torch.compiler.is_compiling() or exporting() or transformed():
        return None
    if not (_is_plain(query) and _is_plain(key) and _is_plain(value) and query.is_cpu):
        return None
    if query.dtype not in kernels.TYPES or value.shape[3] > kernels.MOST_WIDTH:
        return None
    score = _DOT if score is None else score
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
    return Plain(query, key, value, score, mask, module, score.plain_scale(query.shape[3]), high, counts)


def attend(call: Plain) -> Tensor | None:
    """softmax(scale q kᵀ) v, with its backward pass if one may follow; None for the long road."""
    output = kernels.room(call.query, call.value.shape[3])
    if not call.wants_gradients():
        done = call.module.plain_dot(*call[:3], output, *call.numbers())
        return output if done else None
    query = call.query
    n, heads, queries, _ = query.shape
    kept = output
    if query.dtype is not torch.float32:
        kept = query.new_empty(output.shape, dtype=torch.float32)
    rows = query.new_empty((3, n, heads, queries), dtype=torch.float32)
    lse, m = _places_in(rows)
    exact = 0 if kept is output else kept.data_ptr()
    if not call.module.plain_dot(*call[:3], output, *call.numbers(), lse, m, exact):
        return None
    found: Any = _Differentiable.apply(*call[:3], _Pass(call, output, kept, rows))
    return found


def look(plain_call: Plain, call: Call) -> Result | None:
    """Output, lse and what `call.gather` asks for, of a plain call that wants no gradients; None for the long road."""
    query = call.query
    output = kernels.room(query, call.value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    seen, alive, observed = kernels.NOTHING_SEEN, [], ()
    if call.gather is not NOTHING:
        seen = kernels.room_for(call)
        observed = kernels.seen_place(seen, call.gather, alive)
    numbers = plain_call.numbers()
    if not plain_call.module.plain_dot(*plain_call[:3], output, *numbers, lse.data_ptr(), 0, 0, observed):
        return None
    del alive
    kernels.finish(seen, call)
    return Result(output, lse, None, seen)


class _Pass(NamedTuple):
    """A forward pass that is done: its output, that in fp32, and the lse, m and 1 / l of its rows, [3, N, H, T] in all."""

    call: Plain
    output: Tensor
    kept: Tensor
    rows: Tensor


def _places_in(rows: Tensor) -> tuple[int, int]:
    """Where the lse of the rows, and their m and 1 / l in pairs, lie."""
    start = rows.data_ptr()
    return start, start + 4 * (rows.numel() // 3)


class _Differentiable(torch.autograd.Function):
    """(query, key, value) of a pass that is done -> its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, done: _Pass) -> Tensor:
        ctx.save_for_backward(query, key, value, done.kept, done.rows)
        ctx.numbers = done.call[3:]
        return done.output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        query, key, value, kept, rows = ctx.saved_tensors
        call = Plain(query, key, value, *ctx.numbers)
        to_output = grad_outputs[0].resolve_neg()
        grads: Any = tuple(kernels.room(one, one.shape[3]) for one in call[:3])
        if not call.module.plain_dot_backward(*call[:3], kept, to_output, *grads, *call.numbers(), *_places_in(rows)):
            tensors = [query, key, value, None, None, None]
            with no_graph(query):
                grads = kernels.careful_backward(call.call(wants_lse=False), CAREFUL.run, tensors, to_output, None)[:3]
        return *final(grads, "native", anchors=(*call[:3], *grad_outputs)), None


def _is_plain(tensor: Any) -> bool:
    """Whether it is a tensor of four axes and nothing more."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_nested:
        return False
    return tensor.ndim == 4 and has_numbers(tensor) and not tensor.is_neg()
