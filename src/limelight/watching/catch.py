"""Catching the attention calls of a thread: torch's by a `TorchFunctionMode`, ours by a listener."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from limelight.attend import attend, look, view_of
from limelight.backends import direct
from limelight.backends.protocol import Gather
from limelight.errors import ArgumentError, BackendError
from limelight.interop.torch_attention import meaning, score_of
from limelight.listening import Listener, listening_to, set_listener
from limelight.masks import causal
from limelight.numerics import has_numbers
from limelight.scores import dot
from limelight.view import AttentionView, Observation
from limelight.view.observations import Answers, answers_of, gather_of
from limelight.watching import by_hand, unseen
from limelight.watching.fused import FUSED, named
from limelight.watching.places import Running

_SDPA = F.scaled_dot_product_attention
_MULTI_HEAD = F.multi_head_attention_forward
_FLEX = torch.ops.higher_order.flex_attention
_PRODUCTS = frozenset({torch.bmm, torch.baddbmm})
_FROM_THE_START = causal("start")
_any_autocast = torch._C._is_any_autocast_enabled  # pyright: ignore
_flash_allowed = torch._C._get_flash_sdp_enabled  # pyright: ignore
_saving_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore
_CAUGHT = frozenset({_SDPA, _MULTI_HEAD, _FLEX, *FUSED}) | by_hand.PRODUCTS | by_hand.SOFTMAXES


def _unguarded(function: Any) -> Callable[..., Any]:
    """Torch's own function, which does not ask again whether a mode wants it.

    Its first line hands the call to the mode that is on; with that question answered "no" its body runs while the mode
    is on, so the attention inside is seen, and every number is torch's.
    """
    body = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


_MULTI_HEAD_BODY = _unguarded(_MULTI_HEAD)
_MULTI_HEAD_ARGUMENTS = inspect.signature(_MULTI_HEAD)


_OPERATORS = unseen.OPERATORS
_COUNTED = (unseen.FLEX, unseen.COMPILED)
"""Why the calls that are counted, `Catcher.flexed` and `Catcher.compiled`, cannot be seen."""

Wanting = list[tuple["Watcher", Running]]
"""Who wants to see a call, and which module makes it there."""


@dataclass(frozen=True)
class Watcher:
    """One `watch` block: which running module it wants to see now, and which lie around it, from the innermost on; what
    it observes, and where it puts what it sees: the path, the view, and whether nobody else has that view.

    gather: where answers are all it keeps, and a pass can give them all, what it asks of one; else None. Then
    `record_answers` takes the path, the shape of the matrix and the answers.
    """

    running: Callable[[], Running | None]
    around: Callable[[], list[Running]]
    observe: tuple[Observation, ...]
    record: Callable[[str, AttentionView, bool], None]
    record_answers: Callable[[str, tuple[int, ...], Answers], None]
    miss: Callable[[str, str], None]
    by_hand: by_hand.ByHand
    gather: Gather | None = None


class Catcher(TorchFunctionMode, Listener):
    """All `watch` blocks of one thread; the mode is on as long as there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[Watcher] = []
        self.on = ExitStack()
        # Numbers, so that a compiler that traces this method has the compiled code count as well.
        self.flexed = 0
        self.compiled = 0
        self._told = (0, 0)
        self.busy = False
        self.calls = 0
        self._inside = False  # torch's multi-head attention
        self._heads: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Not the other way round: a compiler that traces this would have its code depend on the numbers.
        if not is_dynamo_compiling():
            self.calls += 1
            if self._told != (self.flexed, self.compiled):
                # The module that called what was compiled still runs, or the one around it does.
                self.tell_uncaught()
        if func not in _CAUGHT or self.busy:
            if isinstance(func, _OPERATORS) and not self.busy:
                self._operator(func)
            return func(*args, **kwargs)
        if func is _FLEX:
            self.flexed += 1
            return func(*args, **kwargs)
        if func in by_hand.PRODUCTS:
            return self._product(func, args, kwargs)
        if func in by_hand.SOFTMAXES:
            shares = func(*args, **kwargs)
            if is_dynamo_compiling():
                self.compiled += by_hand.may_attend(shares)
            else:
                self._by_hand(True, args, kwargs, shares)
            return shares
        if is_dynamo_compiling():
            # What is done here would be compiled, or refused, with the model's own code.
            self.compiled += 1
            return func(*args, **kwargs)
        wanting = self._wanting()
        if not wanting:
            return func(*args, **kwargs)
        if func is _MULTI_HEAD:
            return self._multi_head(args, kwargs)
        if func is _SDPA:
            return self._torch_attention(wanting, args, kwargs)
        return self._fused(wanting, func, args, kwargs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """As `attend`. In a gradient checkpoint, or with a backend named, the view is made beside the output."""
        wanting = self._wanting()
        with self._silence():
            if not wanting:
                return attend(query, key, value, **options)
            if options["backend"] == "auto" and not _run_again():
                output, view = look(query, key, value, **options, observe=_union(wanting))
            else:
                output = attend(query, key, value, **options)
                names = "score", "mask", "bias", "sink", "normalizer"
                aside = {name: options[name] for name in names}
                view = _view_beside(query, key, aside, _union(wanting))
            _record(wanting, view, sole=True)
        return output

    def look(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
        observe: Sequence[str | Observation],
    ) -> tuple[Tensor, AttentionView]:
        """As `look`; what the blocks observe is gathered as well."""
        wanting = self._wanting()
        with self._silence():
            asked = tuple(one for one in observe if isinstance(one, Observation))
            output, view = look(query, key, value, **options, observe=(*asked, *_union(wanting)))
            _record(wanting, view)
        return output, view

    def _torch_attention(self, wanting: Wanting, args: Any, kwargs: Any) -> Tensor:
        """`F.scaled_dot_product_attention`: by our native kernel where it can, else by torch and seen beside."""
        query = args[0] if args else kwargs["query"]
        with self._silence():
            # Nothing of what follows need pass through the mode, where each call costs as much as a small product.
            with torch._C.DisableTorchFunction():
                wants_torch = _wants_torch(query)
                output = None if wants_torch else _shortly(wanting, *args, **kwargs)
                plain = output is not None or all(map(_plain, _tensors_among(args, kwargs)))
                if plain and output is None and not wants_torch:
                    output = _natively(wanting, args, kwargs)
                if output is not None:
                    if query.ndim != 4 or output.shape[-1] != query.shape[-1]:
                        output = output.contiguous()  # as it is where torch has no kernel of its own
                    return output if query.ndim > 2 else output.squeeze(0)
            output = _SDPA(*args, **kwargs)
            if not plain:
                _miss(wanting, unseen.NO_NUMBERS)
                return output
            try:
                wanted = meaning(*args, **kwargs)
            except ArgumentError as error:
                _miss(wanting, unseen.WITHOUT_MEANING.format(error))
                return output
            # Under autocast torch narrows query and key itself.
            near = (wanted.query.to(output.dtype), wanted.key.to(output.dtype))
            _record(wanting, _view_beside(*near, wanted.options(), _union(wanting)), sole=True)
        return output

    def _multi_head(self, args: Any, kwargs: Any) -> Any:
        """`nn.MultiheadAttention`: torch's own function with the attention inside in sight."""
        bound = _MULTI_HEAD_ARGUMENTS.bind(*args, **kwargs)
        bound.apply_defaults()
        query, heads = bound.arguments["query"], bound.arguments["num_heads"]
        before = self._heads, self._inside
        self._inside = True
        if bound.arguments["need_weights"]:
            # [T, B, C] or, unbatched, [T, C]: the scores inside are [B H, T, S] or [H, T, S].
            self._heads = (query.shape[1], heads) if query.ndim == 3 else (heads,)
        try:
            with self:
                return _MULTI_HEAD_BODY(*args, **kwargs)
        finally:
            self._heads, self._inside = before

    def _scores(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The scores of `nn.MultiheadAttention` that returns weights: the first product after the projections."""
        folded, self._heads = self._heads, None
        assert folded is not None
        bias, query, key = args if func is torch.baddbmm else (None, *args)
        scores = func(*args, **kwargs)
        wanting = self._wanting()
        if not (_plain(query) and _plain(key)):
            _miss(wanting, unseen.NO_NUMBERS)
            return scores
        with self._silence():
            if bias is not None:
                bias = bias.unflatten(0, folded) if bias.shape[0] == query.shape[0] else bias
            options = {"score": dot(1.0), "mask": None, "bias": bias}
            parts = (query.unflatten(0, folded), key.mT.unflatten(0, folded))
            _record(wanting, _view_beside(*parts, options, _union(wanting)), sole=True)
        return scores

    def _fused(self, wanting: Wanting, func: Any, args: Any, kwargs: Any) -> Any:
        """A fused kernel called by its own name: torch computes, and the view is made beside."""
        outputs = func(*args, **kwargs)
        given = named(func, args, kwargs)
        if not all(map(_plain, _tensors_among((), given))):
            _miss(wanting, unseen.NO_NUMBERS)
            return outputs
        with self._silence():
            wanted = meaning(**given)
            view = _view_beside(wanted.query, wanted.key, wanted.options(), _union(wanting))
            _record(wanting, view, sole=True)
        return outputs

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._heads is not None and func in _PRODUCTS:
            return self._scores(func, args, kwargs)
        product = func(*args, **kwargs)
        if not is_dynamo_compiling():
            self._by_hand(False, args, kwargs, product)
        return product

    def _operator(self, func: Any) -> None:
        """An operator that no Python function of torch stands for: told if its name says that it attends."""
        if unseen.attends(func):
            _miss(self._wanting(), unseen.KERNEL.format(func))

    def _by_hand(self, softmax: bool, args: Any, kwargs: Any, result: Any) -> None:
        """One step of what may be attention by hand; the product that makes it certain is where it is seen."""
        if self._inside or torch._C._current_graph_task_id() != -1:
            return  # what a gradient checkpoint runs again is no further call
        for watcher in self.watchers:
            if not softmax and not watcher.by_hand.waits:
                continue  # nobody need walk the stack for it
            around = watcher.around()
            if not around:
                continue
            path = around[0].path
            try:
                if softmax:
                    watcher.by_hand.softmax(around, self.calls, args, kwargs, result)
                    continue
                for found in watcher.by_hand.product(around, self.calls, args, kwargs, result):
                    path = found.around[0].path
                    reason = self._seen_by_hand(watcher, found)
                    if reason is not None:
                        watcher.miss(path, reason)
            except Exception as error:  # what is only recognised must not stop the model
                watcher.miss(path, unseen.MISFIT.format(error))

    def _seen_by_hand(self, watcher: Watcher, found: by_hand.Found) -> str | None:
        """The model goes on with its own weights: the view is made beside. Why it cannot be; None where it was."""
        if found.scores is None:
            return unseen.BY_HAND
        if not _plain(found.scores.scores):
            return unseen.NO_NUMBERS
        with self._silence(), torch.no_grad():
            view = _view_beside(*found.scores.in_our_terms(found.around), watcher.observe)
            watcher.record(found.around[0].path, view, True)
        return None

    def tell_uncaught(self, *, entered: bool = False) -> None:
        """Whatever was counted since the last time, the innermost module did, or if it begins now that around it."""
        before, self._told = self._told, self._counts()
        reasons = [reason for reason, old, new in zip(_COUNTED, before, self._told, strict=True) if new > old]
        for watcher in self.watchers if reasons else ():
            around = watcher.around()[int(entered) :]
            # Compiled code may call the operators of torch, and these are caught.
            if around and not around[0].attended:
                watcher.miss(around[0].path, reasons[0])

    def _counts(self) -> tuple[int, int]:
        return self.flexed, self.compiled

    def _wanting(self) -> Wanting:
        """Who wants to see a call made now: nobody what a gradient checkpoint runs again in a backward pass."""
        found: Wanting = []
        if torch._C._current_graph_task_id() != -1:
            return found
        for watcher in self.watchers:
            running = watcher.running()
            if running is not None:
                found.append((watcher, running))
        return found

    def _silence(self) -> _Silence:
        """What is computed in here is our own, and not the model's."""
        return _Silence(self)


class _Silence:
    """See `Catcher._silence`; a class, which takes a quarter of the time of a generator."""

    __slots__ = ("_before", "_catcher")

    def __init__(self, catcher: Catcher) -> None:
        self._catcher = catcher

    def __enter__(self) -> None:
        self._before = self._catcher.busy, set_listener(None)
        self._catcher.busy = True

    def __exit__(self, *_: object) -> None:
        self._catcher.busy, listener = self._before
        set_listener(listener)


class _Thread(threading.local):
    catcher: Catcher | None = None


_THREAD = _Thread()


@contextmanager
def caught_by(watcher: Watcher) -> Iterator[None]:
    """Inside the block the watcher hears of this thread's attention calls.

    Blocks need not end in the order in which they began, as those of generators: the last to end takes the catcher
    away.
    """
    catcher = _THREAD.catcher
    if catcher is None:
        catcher = _THREAD.catcher = Catcher()
        catcher.on.enter_context(catcher)
        catcher.on.enter_context(listening_to(catcher))
    catcher.watchers.append(watcher)
    try:
        yield
    finally:
        catcher.watchers.remove(watcher)
        if not catcher.watchers and catcher is _THREAD.catcher:
            _THREAD.catcher = None
            catcher.on.close()


def tell_uncaught(*, entered: bool = False) -> None:
    """`Catcher.tell_uncaught` of this thread."""
    if _THREAD.catcher is not None:
        _THREAD.catcher.tell_uncaught(entered=entered)


def _tensors_among(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among the arguments of a call."""
    return [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]


def _plain(tensor: Tensor) -> bool:
    """Whether it is a strided tensor that holds numbers."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    return plain and has_numbers(tensor)


def _wants_torch(query: Tensor) -> bool:
    """Whether what is around a call asks for torch's own attention: autocast, `sdpa_kernel`, a gradient checkpoint."""
    narrow = _any_autocast() and torch.is_autocast_enabled(query.device.type)
    return narrow or not _flash_allowed() or _run_again()


def _run_again() -> bool:
    """Whether a gradient checkpoint will run this again, perhaps unwatched, and wants to find as many tensors saved."""
    return torch.is_grad_enabled() and _saving_hooks(True) is not None


def _shortly(
    wanting: Wanting,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The output of what needs no word of explanation, which is recorded; None of what has to go a longer road.

    Most calls are of this kind. Between two products of a model nothing is in a core's caches: each line of Python that
    is spared here takes microseconds.
    """
    if attn_mask is not None or dropout_p:
        return None
    try:
        score = score_of(scale)
    except ArgumentError:
        return None
    plain = direct.plain(query, key, value, score, _FROM_THE_START if is_causal else None)
    if plain is None or not (enable_gqa or query.shape[1] == key.shape[1]):
        return None
    call = plain.looked_at()
    watcher, running = wanting[0]
    gather = watcher.gather if len(wanting) == 1 else None
    call.gather = gather_of(_union(wanting), call) if gather is None else gather.within(key.shape[2])
    result = direct.look(plain, call)
    if result is None:
        return None
    if gather is not None and result.gathered is not None:
        running.attended = True
        watcher.record_answers(running.path, (*query.shape[:3], key.shape[2]), answers_of(result.gathered))
    else:
        _record(wanting, view_of(call, result, _union(wanting)), sole=True)
    return result.output


def _natively(wanting: Wanting, args: Any, kwargs: Any) -> Tensor | None:
    """The output of our native kernel, which is recorded; None where it cannot run the call."""
    # Of what is wrong, torch may know what it means, or has the better words for it.
    try:
        call = meaning(*args, **kwargs)
    except (RuntimeError, ArgumentError):
        return None
    if call.dropout:
        return None
    try:
        output, view = look(*call[:3], **call.options(), backend="native", observe=_union(wanting))
    except (ArgumentError, BackendError):
        return None
    _record(wanting, view, sole=True)
    return output


@torch.no_grad()
def _view_beside(query: Tensor, key: Tensor, options: dict[str, Any], observe: Sequence[Observation]) -> AttentionView:
    """The view of a call whose output is computed elsewhere: a value of width 1 stands in."""
    bias = options.get("bias")
    options = {**options, "bias": bias.detach() if isinstance(bias, Tensor) else bias}
    nothing = key.new_zeros(1).expand(*key.shape[:-1], 1)
    return look(query.detach(), key.detach(), nothing, **options, observe=observe)[1]


def _miss(wanting: Wanting, reason: str) -> None:
    for watcher, running in wanting:
        watcher.miss(running.path, reason)


def _record(wanting: Wanting, view: AttentionView, *, sole: bool = False) -> None:
    """Everybody who wants it keeps the view; `sole`: it was made for them, and its caller does not have it."""
    sole = sole and len(wanting) == 1
    for watcher, running in wanting:
        running.attended = True
        watcher.record(running.path, view, sole)


def _union(wanting: Wanting) -> tuple[Observation, ...]:
    if len(wanting) == 1:
        return wanting[0][0].observe
    return tuple(one for watcher, _ in wanting for one in watcher.observe)
