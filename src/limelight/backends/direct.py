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
from limelight.masks.block import whole_block
from limelight.masks.causal import Causal
from limelight.masks.form import EVERYTHING
from limelight.numerics import forward_mode, no_graph, transformed, wraps_another
from limelight.scores import Score
from limelight.scores.dot import Dot

BACKENDS = frozenset({"auto", "native"})
"""What a call may say of its backend to go this way."""

_DOT = Dot()
_NO_VALUE = {dtype: torch.empty(0, dtype=dtype) for dtype in kernels.TYPES}
_STRIDED = torch.strided


class Plain(NamedTuple):
    """A dot product of plain tensors of four axes and a mask that kernels know, as kernels take it.

    Whether the shapes fit each other, the kernel finds: it refuses what does not. `allowed` says where the mask's
    tensors lie now, and `alive` holds those that were made for it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    score: Dot
    mask: Mask | None
    module: ModuleType
    scale: float
    allowed: tuple[int, ...]
    alive: list[Tensor]

    def wants_gradients(self) -> bool:
        """Whether a backward pass may follow."""
        needed = self.query.requires_grad or self.key.requires_grad or self.value.requires_grad
        return needed and torch.is_grad_enabled()

    def call(self, *, wants_lse: bool) -> Call:
        """The same as a `Call`."""
        lead = tuple(self.query.shape[:1])
        return Call(self.query, self.key, self.value, self.score, self.mask, None, 0.0, 0, lead, wants_lse)

    def looked_at(self) -> Call:
        """The same as a view keeps it: without the value, which takes no part in the weights."""
        query = self.query
        lead = (query.shape[0],)
        return Call(query, self.key, _NO_VALUE[query.dtype], self.score, self.mask, None, 0.0, 0, lead, wants_lse=True)

    def numbers(self) -> tuple[float, tuple[int, ...], int]:
        """Scale, mask and threads as csrc/bindings.cpp reads them."""
        return self.scale, self.allowed, torch.get_num_threads()


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
    module = extension.usable()
    if module is None:
        return None
    alive: list[Tensor] = []
    allowed = () if mask is None else _allowed(query, key, mask, alive)
    if allowed is None:
        return None
    scale = score.plain_scale(query.shape[3])
    assert scale is not None  # there is no cap
    return Plain(query, key, value, score, mask, module, scale, allowed, alive)


def attend(call: Plain) -> Tensor | None:
    """softmax(scale q kᵀ) v, with its backward pass if one may follow; None for the long road."""
    if call.wants_gradients():
        found: Any = _tracked(call, (), looked=False)
        return found
    output = kernels.room(call.query, call.value.shape[3])
    return output if call.module.plain_dot(*call[:3], output, *call.numbers()) else None


def look(plain_call: Plain, call: Call) -> Result | None:
    """Output, lse and what `call.gather` asks for, as `attend` does it; None for the long road.

    call: `plain_call.looked_at()`, with what it is to gather.
    """
    seen, alive, observed = kernels.NOTHING_SEEN, [], ()
    if call.gather is not NOTHING:
        seen = kernels.room_for(call)
        observed = kernels.seen_place(seen, call.gather, alive)
    if plain_call.wants_gradients():
        found: Any = _tracked(plain_call, observed, looked=True)
        if found is None:
            return None
        output, lse = found
    else:
        output = kernels.room(plain_call.query, plain_call.value.shape[3])
        lse = call.query.new_empty(call.query.shape[:3], dtype=torch.float32)
        numbers = plain_call.numbers()
        if not plain_call.module.plain_dot(*plain_call[:3], output, *numbers, lse.data_ptr(), 0, 0, observed):
            return None
    del alive
    kernels.finish(seen, call)
    return Result(output, lse, None, seen)


def _tracked(call: Plain, observed: tuple[int, ...], *, looked: bool) -> Any:
    """The output, and if looked at the lse beside it, with the backward pass set up; None for the long road."""
    query = call.query
    output = kernels.room(query, call.value.shape[3])
    n, heads, queries, _ = query.shape
    kept, exact = output, 0
    if query.dtype is not torch.float32:
        kept = query.new_empty(output.shape, dtype=torch.float32)
        exact = kept.data_ptr()
    rows = query.new_empty((3, n, heads, queries), dtype=torch.float32)
    if not call.module.plain_dot(*call[:3], output, *call.numbers(), *_places_in(rows), exact, observed):
        return None
    return _Differentiable.apply(*call[:3], _Pass(call, output, kept, rows, looked))


class _Pass(NamedTuple):
    """A forward pass that is done: its output, that in fp32, and of its rows the lse, m and 1 / l, [3, N, H, T] in all.

    looked: the lse is wanted beside the output.
    """

    call: Plain
    output: Tensor
    kept: Tensor
    rows: Tensor
    looked: bool


def _places_in(rows: Tensor) -> tuple[int, int]:
    """Where the lse of the rows, and their m and 1 / l in pairs, lie."""
    start = rows.data_ptr()
    return start, start + 4 * (rows.numel() // 3)


class _Differentiable(torch.autograd.Function):
    """(query, key, value) of a pass that is done -> its output, and if looked at its lse."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, done: _Pass) -> Any:
        ctx.save_for_backward(query, key, value, done.kept, done.rows)
        ctx.rest = done.call[3:7]
        ctx.set_materialize_grads(False)
        return (done.output, done.rows[0]) if done.looked else done.output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        query, key, value, kept, rows = ctx.saved_tensors
        rows = rows.contiguous()  # hooks of saved tensors may lay out anew what they give back
        score, mask, module, scale = ctx.rest
        alive: list[Tensor] = []
        allowed = () if mask is None else _allowed(query, key, mask, alive)  # its memory may lie elsewhere by now
        call = Plain(query, key, value, score, mask, module, scale, allowed or (), alive)
        to_output, to_lse = grad_outputs if len(grad_outputs) == 2 else (*grad_outputs, None)
        to_output = value.new_zeros(kept.shape) if to_output is None else to_output.resolve_neg()
        to_lse = None if to_lse is None else to_lse.resolve_neg().contiguous()
        grads: Any = tuple(kernels.room(one, one.shape[3]) for one in call[:3])
        places = (*_places_in(rows), 0 if to_lse is None else to_lse.data_ptr())
        if allowed is None or not module.plain_dot_backward(
            *call[:3], kept, to_output, *grads, *call.numbers(), *places
        ):
            tensors, whole = [query, key, value, None, None, None], call.call(wants_lse=to_lse is not None)
            with no_graph(query):
                grads = kernels.careful_backward(whole, CAREFUL.run, tensors, to_output, to_lse)[:3]
        return *final(grads, "native", anchors=(*call[:3], *grad_outputs)), None


def _allowed(query: Tensor, key: Tensor, mask: Mask, alive: list[Tensor]) -> tuple[int, ...] | None:
    """Where the tensors of a mask lie, which `alive` takes; None if it fits no kernel, or not the call."""
    n, heads, queries, _ = shape = query.shape
    keys = key.shape[2]
    if not (query.numel() and keys):
        return None
    if type(mask) is Causal:
        return EVERYTHING.low, keys - queries if mask.align == "end" else 0, *kernels.UNMASKED[2:]
    if not isinstance(mask, Mask):
        return None
    whole = whole_block(n, heads, queries, keys, query.device)
    try:
        mask.check(whole)
    except Exception:  # whatever it is: the long road says first what else is wrong
        return None
    form = mask.form(whole)
    return None if form is None else kernels.allowed(form, shape, keys, alive)


def _is_plain(tensor: Any) -> bool:
    """Whether it is a tensor of four axes and nothing more."""
    if type(tensor) is not Tensor or tensor.ndim != 4 or tensor.layout is not _STRIDED:
        return False
    return not (tensor.is_nested or tensor.is_neg() or wraps_another(tensor))
