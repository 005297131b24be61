"""watch(): see every attention call of a torch model, unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import nn

from limelight.contract import require_choice
from limelight.errors import ArgumentError, WatchError
from limelight.view import AttentionView, Observation, check_observations
from limelight.view.observations import Answers, simple_gather
from limelight.view.shared import Shared
from limelight.watching.by_hand import ByHand
from limelight.watching.catch import Watcher, caught_by, tell_uncaught
from limelight.watching.places import Place, chosen, named
from limelight.watching.seen import Seen, Statistics, statistics
from limelight.watching.unseen import scripted_attention

__all__ = ["Seen", "Statistics", "watch"]

Observe = str | Observation | Sequence[str | Observation]


@overload
def watch(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    observe: Observe = (),
    keep: Literal["views"] = "views",
    offload: Literal["cpu"] | None = None,
) -> AbstractContextManager[Seen[AttentionView]]: ...


@overload
def watch(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    observe: Observe = (),
    *,
    keep: Literal["stats"],
    offload: Literal["cpu"] | None = None,
) -> AbstractContextManager[Seen[Statistics]]: ...


def watch(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    observe: Observe = (),
    keep: Literal["views", "stats"] = "views",
    offload: Literal["cpu"] | None = None,
) -> AbstractContextManager[Any]:
    """Inside the block, every attention call of the model is seen; the mapping it yields says what each showed.

    Seen are the calls of `F.scaled_dot_product_attention` and of the fused operators below it, of
    `nn.MultiheadAttention` and what is built on it (its fast path in C++ is off inside the block), and of
    `limelight.attend` and `look`, made while a module of the model runs, by the thread that entered the block; and
    attention by hand, a softmax whose result weights values soon after, in a product that sums over the keys. A call
    belongs to the innermost module running; its path is the key, and the calls of one module are in order. Blocks nest,
    of one model or several: each sees its own. Blocks of different threads do not meet.

    The model computes what it would compute: where our native kernel can run the call (CPU, no dropout, no autocast, no
    gradient checkpoint, fused kernels not ruled out by `sdpa_kernel`) it gives output and observations in one pass,
    equal to torch's within rounding. Everywhere else torch computes the output, bit for bit, and the view is made
    beside it. Nothing kept has a graph. What a gradient checkpoint runs again in a backward pass is no further call.

    Arguments:
        model: any module that is not compiled or scripted.
        layers: pattern of module paths, or several: "encoder.layer.*" names these modules and all inside them, "*"
            crossing dots. None: all. A module that stands under several paths has the first of them as its key, and
            may be asked for by any.
        observe: as in `look`: "received", "entropy", "distance", `top(k)`, `rows(places)`, `pooled(rows, columns)`,
            `received(weights)`, gathered at once. `rows` must be there in every call that is seen, and `weights` must
            fit it.
        keep: "views": an `AttentionView` per call, with its own copy of query and key and one number per row, so that
            memory grows with T + S, and with mask and bias as the model made them (in `torch.inference_mode`, where
            torch does not tell whether they were changed since, copies of them), of attention by hand with its scores,
            T x S; "stats": `Statistics`, only what `observe` names.
        offload: "cpu" moves what is kept there.

    Result: a context manager that gives `Seen`.

    Errors: ArgumentError for an argument that breaks a rule; WatchError for a pattern that matches nothing (with near
    misses), a compiled model, and, when the mapping is asked, for a path or a model without attention calls. A warning
    when the block ends and a module attended in a way that cannot be seen, such as `flex_attention`.

    Example: `with watch(model, observe=("entropy",)) as seen: model(x)`; then
    `seen["layers.0.self_attn"][0].entropy()` is [B, H, T].
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; it is {type(model).__name__}.")
    require_choice("keep", keep, ("views", "stats"))
    if offload is not None:
        require_choice("offload", offload, ("cpu",))
    wanted = check_observations(observe)
    if keep == "stats" and not wanted:
        raise ArgumentError("observe: keep='stats' keeps only what observe names, and it names nothing; keep='views'?")
    names, modules = named(model)
    paths = chosen(model, names, layers)
    _refuse_compiled(modules, paths)
    device = None if offload is None else torch.device(offload)
    return _watching(Seen(_hint(model), names), modules, paths, wanted, keep == "stats", device)


@contextmanager
def _watching(
    seen: Seen[Any],
    modules: Mapping[str, nn.Module],
    paths: set[str],
    observe: tuple[Observation, ...],
    stats: bool,
    device: torch.device | None,
) -> Iterator[Seen[Any]]:
    shared = Shared()

    def record(path: str, view: AttentionView, sole: bool) -> None:
        if stats:
            seen.add(path, statistics(view, observe, device, sole=sole))
        else:
            seen.add(path, view.taken_over(device, shared, sole=sole))

    def record_answers(path: str, shape: tuple[int, ...], answers: Answers) -> None:
        seen.add(path, Statistics(shape, answers))

    def miss(path: str, reason: str) -> None:
        seen.unseen.setdefault(path, reason)

    place = Place(modules, paths, seen.ran, partial(tell_uncaught, entered=True), tell_uncaught)
    gather = simple_gather(observe) if stats and device is None else None
    watcher = Watcher(place.innermost, place.around, observe, record, record_answers, miss, ByHand(), gather)
    with place, caught_by(watcher):
        yield seen
    if seen.unseen:
        # From the caller's `with`: past this generator and contextlib.
        warnings.warn(f"watch: attention that cannot be seen: {seen.unseen_text()}{seen.hint}", stacklevel=3)


def _refuse_compiled(modules: Mapping[str, nn.Module], paths: set[str]) -> None:
    """WatchError where a module that is to be watched, or one around it, makes no calls."""
    scripted = torch.jit.ScriptModule
    for path, module in modules.items():
        if path not in paths and not any(one.startswith(path + "." if path else "") for one in paths):
            continue
        if isinstance(module, scripted):
            if scripted_attention(module):
                raise WatchError(
                    f"model: {path or 'it'} is scripted (torch.jit), and its attention makes no calls that could be "
                    f"seen. Watch the model that it was scripted from, or choose other layers."
                )
        elif "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise WatchError(
                f"model: {path or 'it'} is compiled, and compiled code makes no calls that could be seen. Watch the "
                f"model it was compiled from (model._orig_mod, for torch.compile)."
            )


def _hint(model: nn.Module) -> str:
    """What would make the attention of a Hugging Face model visible, if that is what it lacks."""
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation in (None, "sdpa", "limelight"):
        return ""
    return f' The model runs on {implementation!r} attention: model.set_attn_implementation("sdpa") makes it visible.'
