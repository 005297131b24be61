"""Catching the attention calls of a thread: torch's by a `TorchFunctionMode`, ours by a listener."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from limelight.attend import attend, look
from limelight.backends.numerics import has_numbers
from limelight.errors import ArgumentError, BackendError
from limelight.interop.torch_attention import Meaning, meaning
from limelight.listening import Listener, listening_to
from limelight.scores import dot
from limelight.view import AttentionView, Observation
from limelight.watching.places import Running

_SDPA = F.scaled_dot_product_attention
_MULTI_HEAD = F.multi_head_attention_forward
_PRODUCTS = frozenset({torch.bmm, torch.baddbmm})
_ALL_PRODUCTS = _PRODUCTS | {torch.matmul, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm}
_SOFTMAXES = frozenset({F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})
_CAUGHT = frozenset({_SDPA, _MULTI_HEAD}) | _ALL_PRODUCTS | _SOFTMAXES
_EAGER = "it multiplies query and key and takes the softmax itself, and no function is called that could be caught"
_NO_NUMBERS = "its attention runs on tensors without numbers of their own: nested, sparse, meta, fake, or of torch.func"


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


@dataclass(frozen=True)
class Watcher:
    """One `watch` block: which running module it wants to see now, what it observes, and where it puts what it sees."""

    running: Callable[[], Running | None]
    observe: tuple[Observation, ...]
    record: Callable[[str, AttentionView], None]
    miss: Callable[[str, str], None]


class Catcher(TorchFunctionMode, Listener):
    """All `watch` blocks of one thread; the mode is on as long as there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[Watcher] = []
        self._busy = False
        self._heads: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _CAUGHT or self._busy:
            return func(*args, **kwargs)
        if func is _SDPA:
            wanting = self._wanting()
            return self._torch_attention(wanting, args, kwargs) if wanting else func(*args, **kwargs)
        if func is _MULTI_HEAD:
            return self._multi_head(args, kwargs) if self._wanting() else func(*args, **kwargs)
        if func in _ALL_PRODUCTS:
            if self._heads is not None and func in _PRODUCTS:
                return self._scores(func, args, kwargs)
            product = func(*args, **kwargs)
            self._multiplied((*args, *kwargs.values()), product)
            return product
        scores = args[0] if args else kwargs.get("input")
        if func in _SOFTMAXES and isinstance(scores, Tensor):
            self._softmax(scores)
        return func(*args, **kwargs)

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
            _record(wanting, view)
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
            output, view = look(query, key, value, **options, observe=_merged((*asked, *_union(wanting))))
            _record(wanting, view)
        return output, view

    def _torch_attention(self, wanting: list[tuple[Watcher, str]], args: Any, kwargs: Any) -> Tensor:
        """`F.scaled_dot_product_attention`: by our native kernel where it can, else by torch and seen beside."""
        observe = _union(wanting)
        query = args[0] if args else kwargs["query"]
        plain = all(_plain(one) for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        with self._silence():
            if plain and not _wants_torch(query.device):
                wanted = meaning(*args, **kwargs)
                found = None if wanted.dropout else _natively(wanted, observe)
                if found is not None:
                    output, view = found
                    _record(wanting, view)
                    return output if query.ndim > 2 else output.squeeze(0)
            output = _SDPA(*args, **kwargs)
            if not plain:
                _miss(wanting)
                return output
            wanted = meaning(*args, **kwargs)
            # Under autocast torch narrows query and key itself.
            near = (wanted.query.to(output.dtype), wanted.key.to(output.dtype))
            _record(wanting, _view_beside(*near, wanted.options(), observe))
        return output

    def _multi_head(self, args: Any, kwargs: Any) -> Any:
        """`nn.MultiheadAttention`: torch's own function with the attention inside in sight."""
        bound = _MULTI_HEAD_ARGUMENTS.bind(*args, **kwargs)
        bound.apply_defaults()
        query, heads = bound.arguments["query"], bound.arguments["num_heads"]
        before = self._heads
        if bound.arguments["need_weights"]:
            # [T, B, C] or, unbatched, [T, C]: the scores inside are [B H, T, S] or [H, T, S].
            self._heads = (query.shape[1], heads) if query.ndim == 3 else (heads,)
        try:
            with self:
                return _MULTI_HEAD_BODY(*args, **kwargs)
        finally:
            self._heads = before

    def _scores(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The scores of `nn.MultiheadAttention` that returns weights: the first product after the projections."""
        folded, self._heads = self._heads, None
        assert folded is not None
        bias, query, key = args if func is torch.baddbmm else (None, *args)
        scores = func(*args, **kwargs)
        wanting = self._wanting()
        if not (_plain(query) and _plain(key)):
            _miss(wanting)
            return scores
        with self._silence():
            if bias is not None:
                bias = bias.unflatten(0, folded) if bias.shape[0] == query.shape[0] else bias
            options = {"score": dot(1.0), "mask": None, "bias": bias}
            parts = (query.unflatten(0, folded), key.mT.unflatten(0, folded))
            _record(wanting, _view_beside(*parts, options, _union(wanting)))
        return scores

    def _multiplied(self, args: Any, product: Any) -> None:
        """Remember the shapes of products of two batches of matrices, for `_softmax`."""
        factors = [one for one in args if isinstance(one, Tensor)]
        if isinstance(product, Tensor) and product.ndim >= 3 and all(one.ndim >= 3 for one in factors):
            for watcher in self.watchers:
                running = watcher.running()
                if running is not None:
                    running.products.add(_extent(product))

    def _softmax(self, scores: Tensor) -> None:
        """A softmax of something shaped like such a product is attention that cannot be caught."""
        if scores.ndim >= 3:
            for watcher in self.watchers:
                running = watcher.running()
                if running is not None and _extent(scores) in running.products:
                    watcher.miss(running.path, _EAGER)

    def _wanting(self) -> list[tuple[Watcher, str]]:
        """Who wants to see a call made now: nobody what a gradient checkpoint runs again in a backward pass."""
        found = []
        if torch._C._current_graph_task_id() != -1:
            return found
        for watcher in self.watchers:
            running = watcher.running()
            if running is not None:
                found.append((watcher, running.path))
        return found

    @contextmanager
    def _silence(self) -> Iterator[None]:
        """What is computed in here is our own, and not the model's."""
        before, self._busy = self._busy, True
        try:
            with listening_to(None):
                yield
        finally:
            self._busy = before


class _Thread(threading.local):
    catcher: Catcher | None = None


_THREAD = _Thread()


@contextmanager
def caught_by(watcher: Watcher) -> Iterator[None]:
    """Inside the block the watcher hears of this thread's attention calls."""
    catcher = _THREAD.catcher
    if catcher is not None:
        catcher.watchers.append(watcher)
        try:
            yield
        finally:
            catcher.watchers.remove(watcher)
        return
    _THREAD.catcher = catcher = Catcher()
    catcher.watchers.append(watcher)
    try:
        with catcher, listening_to(catcher):
            yield
    finally:
        _THREAD.catcher = None


def _plain(tensor: Tensor) -> bool:
    """Whether it is a strided tensor that holds numbers."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    return plain and has_numbers(tensor)


def _wants_torch(device: torch.device) -> bool:
    """Whether what is around a call asks for torch's own attention: autocast, `sdpa_kernel`, a gradient checkpoint."""
    return torch.is_autocast_enabled(device.type) or not torch.backends.cuda.flash_sdp_enabled() or _run_again()


def _run_again() -> bool:
    """Whether a gradient checkpoint will run this again, perhaps unwatched, and wants to find as many tensors saved."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore
    return torch.is_grad_enabled() and hooks is not None


def _natively(call: Meaning, observe: Sequence[Observation]) -> tuple[Tensor, AttentionView] | None:
    """Output and view from our native kernel, or None where it cannot run the call."""
    try:
        return look(*call[:3], **call.options(), backend="native", observe=observe)
    except (ArgumentError, BackendError):
        # Of what is wrong, torch may know what it means, or has the better words for it.
        return None


@torch.no_grad()
def _view_beside(query: Tensor, key: Tensor, options: dict[str, Any], observe: Sequence[Observation]) -> AttentionView:
    """The view of a call whose output is computed elsewhere: a value of width 1 stands in."""
    bias = options.get("bias")
    options = {**options, "bias": bias.detach() if isinstance(bias, Tensor) else bias}
    nothing = key.new_zeros(1).expand(*key.shape[:-1], 1)
    return look(query.detach(), key.detach(), nothing, **options, observe=observe)[1]


def _miss(wanting: list[tuple[Watcher, str]]) -> None:
    for watcher, path in wanting:
        watcher.miss(path, _NO_NUMBERS)


def _record(wanting: list[tuple[Watcher, str]], view: AttentionView) -> None:
    for watcher, path in wanting:
        watcher.record(path, view)


def _union(wanting: list[tuple[Watcher, str]]) -> tuple[Observation, ...]:
    return _merged([one for watcher, _ in wanting for one in watcher.observe])


def _merged(observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """Each once, of several `top` the largest."""
    most: dict[str, Observation] = {}
    for one in observations:
        if one.name not in most or one.k > most[one.name].k:
            most[one.name] = one
    return tuple(most.values())


def _extent(scores: Tensor) -> tuple[int, int, int]:
    """What reshaping the leading axes leaves as it is."""
    return scores.numel(), scores.shape[-2], scores.shape[-1]
