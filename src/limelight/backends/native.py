"""The native backend: the C++ kernels of csrc/, for calls on the CPU, with what they have no road for and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.backends import extension, kernels, operator
from limelight.backends.derivatives import final
from limelight.backends.protocol import OWN_TENSORS, Backend, Call, Result
from limelight.numerics import forward_mode, has_numbers, no_graph, transformed


class Native(Backend):
    """The C++ kernels. Where they meet NaN or inf they give the call to `careful`, which keeps them behind the mask."""

    __slots__ = ("_careful",)

    def __init__(self, careful: Backend):
        self._careful = careful
        operator.set_careful(careful.run)

    @property
    def name(self) -> str:
        """Its name."""
        return "native"

    def refusal(self, call: Call) -> str | None:
        """It takes dot and additive scores on the CPU, masks that are a band, lengths, runs and a dense pattern."""
        query, keys, dtype = call.query, call.key.shape[2], call.query.dtype
        if not query.is_cpu:
            return f"it runs on the CPU, and query is on {query.device}"
        if not torch.compiler.is_compiling():
            for name, one in (("query", query), ("key", call.key), ("value", call.value)):
                if not has_numbers(one):
                    return f"{name} is a {type(one).__name__} without numbers of its own: fake, or of torch.func"
            if transformed():
                return "a transformation of torch.func runs, or fake tensors are made"
        if forward_mode(call.tensors()):
            return "a forward-mode derivative is wanted"
        if dtype not in kernels.TYPES or not dtype is call.key.dtype is call.value.dtype:
            return f"it takes float32, bfloat16 and float16, and query is {dtype}"
        if not (query.numel() and keys and call.value.shape[3]):
            return "there is nothing to attend to"
        if max(query.shape[3], call.value.shape[3]) > kernels.MOST_WIDTH:
            return f"it takes widths up to {kernels.MOST_WIDTH}; they are {query.shape[3]} and {call.value.shape[3]}"
        if keys > kernels.MOST_KEYS:
            return f"it numbers at most {kernels.MOST_KEYS} keys, and there are {keys}"
        if not call.normalizer.is_softmax:
            return f"the normalizer is {call.normalizer.name}, not softmax"
        if call.score.plain_scale(query.shape[3]) is None and call.score.tanh_vector() is None:
            return "the score is neither a dot product nor additive"
        if call.mask is not None and call.form() is None:
            return "the mask is not a band, lengths, runs of keys and one dense pattern"
        return extension.refusal()

    def fastest(self, call: Call) -> bool:
        """Wherever it can run."""
        return True

    def gathers(self) -> bool:
        """It does."""
        return True

    def with_mean_of_heads(self, call: Call) -> tuple[Tensor, Tensor] | None:
        """The output and the mean over the heads of the weights, [N, T, S], without a graph; None where it has no road
        for that.
        """
        if call.score.tanh_vector() is not None or self.refusal(call) is not None:
            return None
        return kernels.with_mean_of_heads(call)

    def run(self, call: Call) -> Result:
        """Forward; the backward pass is set up in autograd."""
        if torch.compiler.is_compiling():
            return operator.run(call)
        if torch.is_grad_enabled():
            tensors = call.tensors()
            if any(one is not None and one.requires_grad for one in tensors):
                results: list[Result] = []
                output, lse = _Attention.apply(call, self._careful, results, *tensors)
                return Result(output, lse, None, results[0].gathered)
        done = kernels.forward(call, False)
        return kernels.careful_forward(call, self._careful.run) if done is None else done[0]


class _Attention(torch.autograd.Function):
    """The call's tensors -> (output, lse)."""

    @staticmethod
    def forward(ctx: Any, call: Call, careful: Backend, results: list[Result], *tensors: Any) -> tuple[Tensor, Tensor]:
        done = kernels.forward(call, True)
        if done is None:
            done = kernels.careful_forward(call.changed(wants_lse=True), careful.run), None
        result, kept = done
        results.append(result)
        rows, exact = (None, None) if kept is None else kept
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, rows, exact, result.lse)
        ctx.call, ctx.careful = call.without_tensors(), careful
        assert result.lse is not None
        return result.output, result.lse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, rows, exact, lse = ctx.saved_tensors
        call = ctx.call.with_tensors(*tensors[:OWN_TENSORS])
        to_output, to_lse = (None if one is None else one.resolve_neg() for one in grad_outputs)
        wanted = ctx.needs_input_grad[-len(tensors) :]
        with no_graph(call.query):
            if to_output is None:
                to_output = tensors[2].new_zeros(*lse.shape, tensors[2].shape[3])
            # Hooks of saved tensors may lay out anew what they give back.
            kept = None if rows is None else kernels.Kept(rows.contiguous(), exact)
            grads = None if kept is None else kernels.backward(call, kept, lse.contiguous(), to_output, to_lse, wanted)
        if grads is None:
            grads = kernels.careful_backward(call, ctx.careful.run, tensors, to_output, to_lse)
        return (None, None, None, *final(grads, "native", anchors=(*tensors, *grad_outputs)))
