"""attend(), look(), explain(): check the call, choose a backend, run it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limelight import listening
from limelight.arrays import Array, is_array, tensors_of
from limelight.backends import direct
from limelight.backends.protocol import SOFTMAX, Call, Result
from limelight.backends.select import BACKENDS, choose, with_mean_of_heads
from limelight.biases import Bias
from limelight.contract import accumulation_dtype, check_bias, check_dropout, check_inputs, check_sink, tracing
from limelight.errors import ArgumentError
from limelight.masks import Block, Mask
from limelight.masks.block import fold_lead
from limelight.normalizers import Normalizer
from limelight.scores import Score, dot
from limelight.view import AttentionView, Observation, check_observations, gather_of
from limelight.view.kept import Kept

_DEFAULT_SCORE = dot()


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    score: Score | None = None,
    mask: Mask | None = None,
    bias: Tensor | Bias | None = None,
    sink: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
) -> Array:
    """softmax(score(query, key) + bias, over the keys that mask allows) value, exactly.

    Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) when nothing but query, key and value is
    given; other mechanisms by `score`. A query that may attend to nothing gives output 0 and gradient 0. What stands at
    masked-out keys and values never reaches the result, be it NaN or inf. Accumulation is float32 or wider.

    Arguments:
        query: [..., H, T, D], float16, bfloat16, float32 or float64.
        key: [..., G, S, D], the same dtype and device; G divides H: query head h meets key head h // (H / G).
        value: [..., G, S, E].
        score: how a query meets a key, from `limelight.scores`; None: `dot()`, q·k / sqrt(D).
        mask: who may attend to whom, from `limelight.masks`; None: everyone to everyone.
        bias: added to the scores: float, broadcasts to [..., H, T, S], or one of `limelight.biases`, which takes no
            T x S tensor. Gradients flow to it. -inf forbids.
        sink: one more logit for each row, float, [H] or what broadcasts to [..., H]: it takes its share of the softmax
            and gives no value, so a row's weights sum to less than 1; gradients flow to it. gpt-oss (2025, arXiv
            2508.10925, section 2.2); a sink of 0 is the "softmax plus one" of Miller (2023, Attention Is Off By One).
            The lse counts it. A row without keys gives output 0, and its lse is the sink. -inf: no sink.
        normalizer: how the scores of a row become its weights, from `limelight.normalizers`: `sigmoid()`,
            `sparsemax()`, `entmax15()`; None: `softmax()`.
        dropout: probability in [0, 1) with which a weight is dropped; the others are divided by 1 - dropout.
        seed: integer in [0, 2^63) for dropout; None: drawn from torch's default generator, so `torch.manual_seed` fixes
            it. The same seed drops the same weights, in every backend.
        backend: "auto" (the fastest that can), or a name; see `explain`.

    Result: [..., H, T, E], the dtype of value. NumPy arrays for query, key, value, bias and sink give a NumPy array.

    Errors: ArgumentError for an argument that breaks a rule; BackendError if the named backend cannot run the call.

    Example: `attend(q, k, v, mask=causal())` with q [2, 8, 5, 64], k and v [2, 2, 7, 64] gives [2, 8, 5, 64].
    """
    if is_array(query):
        given = tensors_of(query=query, key=key, value=value, bias=bias, sink=sink)
        rest = {"score": score, "mask": mask, "normalizer": normalizer, "dropout": dropout, "seed": seed}
        return attend(*given[:3], bias=given[3], sink=given[4], **rest, backend=backend).numpy()
    heard: Any = listening.listener()
    if heard is not None:
        options = {"score": score, "mask": mask, "bias": bias, "sink": sink}
        options |= {"normalizer": normalizer, "dropout": dropout, "seed": seed, "backend": backend}
        return heard.attend(query, key, value, options)
    plain = _plain(query, key, value, score, mask, bias, sink, normalizer, dropout, backend)
    found: Any = None if plain is None else direct.attend(plain)
    if found is not None:
        return found
    call = _checked(query, key, value, score, mask, bias, sink, normalizer, dropout, seed, wants_lse=False)
    output: Any = choose(call, backend).run(call).output
    return output if query.ndim == 4 else output.reshape(query.shape[:-1] + output.shape[-1:])


def look(
    query: Array,
    key: Array,
    value: Array,
    *,
    score: Score | None = None,
    mask: Mask | None = None,
    bias: Tensor | Bias | None = None,
    sink: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
    observe: Sequence[str | Observation] = (),
) -> tuple[Array, AttentionView]:
    """As `attend`, and a view of the attention matrix, which is not stored: the view computes what is asked of it.

    Arguments: as `attend`, and
        observe: what is to be gathered at once: "received", "entropy", "distance", `top(k)`, `rows(places)`,
            `pooled(rows, columns)`, `received(weights)`. The view then holds the answers.

    Result: (output, view); arrays give an array for output, and the view answers in tensors. The view's weights are
        those before dropout.

    Errors: as `attend`; ArgumentError for an unknown name in `observe`, or `rows` that are not there; DenseSizeError
        for `rows` of more than 1 GiB.

    Example: `output, view = look(q, k, v, observe=("entropy", top(8)))`; then `view.top(8).indices` is [..., H, T, 8].
    """
    if is_array(query):
        given = tensors_of(query=query, key=key, value=value, bias=bias, sink=sink)
        rest = {"score": score, "mask": mask, "normalizer": normalizer, "dropout": dropout, "seed": seed}
        output, view = look(*given[:3], bias=given[3], sink=given[4], **rest, backend=backend, observe=observe)
        return output.numpy(), view
    observe = check_observations(observe)
    heard: Any = listening.listener()
    if heard is not None:
        options = {"score": score, "mask": mask, "bias": bias, "sink": sink}
        options |= {"normalizer": normalizer, "dropout": dropout, "seed": seed, "backend": backend}
        return heard.look(query, key, value, options, observe)
    plain = _plain(query, key, value, score, mask, bias, sink, normalizer, dropout, backend)
    if plain is not None:
        call = plain.looked_at()
        call.gather = gather_of(observe, call)
        seen: Any = direct.look(plain, call)
        if seen is not None:
            return seen.output, view_of(call, seen, observe)
    call = _checked(query, key, value, score, mask, bias, sink, normalizer, dropout, seed, wants_lse=True)
    call.gather = gather_of(observe, call)
    result = choose(call, backend).run(call)
    output: Any = result.output
    output = output if query.ndim == 4 else output.reshape(query.shape[:-1] + output.shape[-1:])
    return output, view_of(call, result, observe)


def attend_with_mean(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Mask | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """`attend` of [N, H, T, D], and the mean over the heads of the weights, [N, T, S], in one pass of a kernel.

    None where it takes a view: where a gradient is wanted, somebody listens, or another backend is the fastest.

    Errors: as `attend`.
    """
    if tracing() or listening.listener() is not None:
        return None
    return with_mean_of_heads(_checked(query, key, value, None, mask, bias, None, None, 0.0, None, wants_lse=False))


def view_of(call: Call, result: Result, observe: Sequence[Observation]) -> AttentionView:
    """The view of a call that is done; what is to be observed and was not on the way is computed now."""
    assert result.lse is not None
    kept = Kept(call, result.lse, result.weights)
    kept.gather(observe, result.gathered)
    return AttentionView(kept)


def _plain(
    query: Any,
    key: Any,
    value: Any,
    score: Score | None,
    mask: Mask | None,
    bias: Any,
    sink: Any,
    normalizer: Any,
    dropout: float,
    backend: str,
) -> direct.Plain | None:
    """The call for the shortest road, if it can go that way."""
    if bias is None and sink is None and normalizer is None and not dropout and backend in direct.BACKENDS:
        return direct.plain(query, key, value, score, mask)
    return None


@dataclass(frozen=True)
class Explanation:
    """Which backend runs a call, and what each of them says.

    `chosen` is its name; `reasons` maps each backend's name to why it cannot run the call, None if it can.
    """

    chosen: str
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        lines = [f"backend: {self.chosen}"]
        for name, reason in self.reasons.items():
            state = "chosen" if name == self.chosen else "can run" if reason is None else f"cannot: {reason}"
            lines.append(f"  {name:<10} {state}")
        return "\n".join(lines)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    mask: Mask | None = None,
    bias: Tensor | Bias | None = None,
    sink: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
    observe: Sequence[str | Observation] | None = None,
) -> Explanation:
    """Which backend `attend` would run for these arguments and why the others cannot; nothing is computed but checks.

    Arguments: as `attend`; with `observe` (an empty tuple will do) as `look`.

    Errors: as `attend`.

    Example: `print(explain(q, k, v, mask=causal()))`.
    """
    if observe is not None:
        check_observations(observe)
    wants_lse = observe is not None
    call = _checked(query, key, value, score, mask, bias, sink, normalizer, dropout, seed, wants_lse=wants_lse)
    return Explanation(choose(call, backend).name, {one.name: one.refusal(call) for one in BACKENDS})


def _checked(
    query: Any,
    key: Any,
    value: Any,
    score: Score | None,
    mask: Mask | None,
    bias: Tensor | Bias | None,
    sink: Tensor | None,
    normalizer: Normalizer | None,
    dropout: float,
    seed: int | None,
    *,
    wants_lse: bool,
) -> Call:
    """The call, checked, prepared by its score, its leading axes folded into one."""
    query, key, value = check_inputs(query, key, value)
    if score is None:
        score = _DEFAULT_SCORE
    elif not isinstance(score, Score):
        raise ArgumentError(
            f"score must be one of limelight.scores, such as dot(1.0); it is {score!r}. "
            f"For a function use tile_score(fn)."
        )
    score.check(query, key)
    lead = tuple(query.shape[:-3])
    dense_bias = None
    if bias is not None:
        if isinstance(bias, Bias):
            bias.check(query)
        else:
            check_bias(bias, query, (*query.shape[:-1], key.shape[-2]))
            dense_bias = fold_lead(bias.resolve_neg(), lead, 3)
    if sink is not None:
        check_sink(sink, query)
        sink = fold_lead(sink.resolve_neg(), lead, 1)
    normalizer = SOFTMAX if normalizer is None else normalizer
    if not isinstance(normalizer, Normalizer):
        raise ArgumentError(
            f"normalizer must be one of limelight.normalizers, such as sparsemax(); it is {normalizer!r}."
        )
    normalizer.check(sink)
    query, key = score.prepare(query, key)
    if len(lead) != 1:
        size = math.prod(lead)
        query, key, value = (one.reshape(size, *one.shape[-3:]) for one in (query, key, value))
    if dropout:
        check_dropout(dropout)
        dropout, seed = float(dropout), _seed(seed)
    seed = 0 if seed is None else seed
    call = Call(
        query, key, value, score, mask, dense_bias, dropout, seed, lead, wants_lse, sink=sink, normalizer=normalizer
    )
    if bias is not None and isinstance(bias, Bias):
        call.distances = bias.by_distance(call.whole(), accumulation_dtype(call.query.dtype))
    if mask is not None:
        _check_mask(mask, call.whole())
    return call


def _check_mask(mask: Mask, whole: Block) -> None:
    if not isinstance(mask, Mask):
        raise ArgumentError(
            f"mask must be one of limelight.masks, such as causal() & lengths(counts); it is {type(mask).__name__}. "
            f"For a bool tensor (True: may attend) use dense(tensor)."
        )
    mask.check(whole)


def _seed(seed: int | None) -> Any:
    if seed is None:
        fresh = torch.randint(2**63 - 1, ())
        return fresh if torch.compiler.is_compiling() else int(fresh)  # a tensor stays in the compiled graph
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ArgumentError(f"seed must be an integer in [0, 2^63), or None to draw one; it is {seed!r}.")
    return int(seed)
