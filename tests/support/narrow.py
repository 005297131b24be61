"""How far results may lie from the exact ones where the machine multiplies pairs of bf16 numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight import look
from limelight.backends import extension

UNIT = torch.finfo(torch.bfloat16).eps / 2  # of one rounding to the nearest


def pairs() -> bool:
    """Whether the kernels in use multiply bf16 numbers in pairs."""
    return extension.refusal() is None and extension.native().isa() == "avx512bf16"


def product_roundings(inputs: list[Tensor], arguments: dict, to_output: Tensor, to_lse: Tensor) -> list[Tensor]:
    """What rounding the weights and the scores' gradients to bf16 before they are multiplied may change, at most.

    In the order of results: output, lse, the gradients of query, key, value and those of bias and sink, where given.
    All is float64 and of the default scale. With u the unit of a rounding and P the weights: the output errs by
    u P |v|, the gradient of the value by u Pᵀ |g|; the row sums delta of output and its gradient g by what the output
    errs, and so the scores' gradients, P (grad p - delta), by P times that, beside u of themselves.
    """
    query, key, value = inputs
    shape = (*query.shape[:3], key.shape[2])
    arguments = dict(arguments)
    bias, sink = arguments.pop("bias", None), arguments.get("sink")
    whole = torch.zeros(shape, dtype=query.dtype) if bias is None else bias.expand(shape).clone()
    whole.requires_grad_()
    output, view = look(query, key, value, bias=whole, backend="reference", **arguments)
    lse = view.lse.masked_fill(view.lse == -torch.inf, 0)
    (weights,) = torch.autograd.grad(lse.sum(), whole, retain_graph=True)
    (slopes,) = torch.autograd.grad((output * to_output).sum() + (lse * to_lse).sum(), whole)
    size = value.detach().abs().requires_grad_()
    sizes, _ = look(query, key, size, bias=whole, backend="reference", **arguments)
    of_output = UNIT * sizes.detach()
    (of_value,) = torch.autograd.grad((sizes * to_output.abs()).sum(), size)
    of_delta = (of_output * to_output.abs()).sum(-1, keepdim=True)
    indirect = weights * of_delta
    of_slopes = (UNIT * slopes.abs() + indirect) / query.shape[-1] ** 0.5
    shared = query.shape[1] // key.shape[1]
    of_query = of_slopes @ key.abs().repeat_interleave(shared, 1)
    of_key = (of_slopes.mT @ query.abs()).unflatten(1, (-1, shared)).sum(2)
    found = [of_output, torch.zeros_like(lse), of_query, of_key, UNIT * of_value]
    if bias is not None:
        found.append(indirect.sum_to_size(bias.shape))
    if sink is not None:
        of_sink = ((1 - weights.sum(-1, keepdim=True)) * of_delta).sum((2, 3))
        found.append(of_sink.sum_to_size(sink.shape) if sink.dim() == 2 else of_sink.sum(0))
    return [1.01 * one.detach() for one in found]
