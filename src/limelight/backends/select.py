"""Which backend runs a call."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.backends.exported import Exported
from limelight.backends.fused import Fused
from limelight.backends.native import Native
from limelight.backends.protocol import NOTHING, Backend, Call, Gather, Gathered
from limelight.backends.reference import Reference
from limelight.backends.streaming import Streaming
from limelight.contract import exporting
from limelight.errors import ArgumentError, BackendError
from limelight.numerics import transformed

CAREFUL = Streaming()
"""Who keeps NaN and inf behind the mask, where the kernels meet them."""

_EXPORTED = Exported()

_REFERENCE = Reference()

_NATIVE = Native(CAREFUL)

BACKENDS: tuple[Backend, ...] = (_NATIVE, Fused(), CAREFUL, _REFERENCE)
"""Every backend, in the order in which `auto` asks: it takes the first that is fastest for the call and can run it."""

_BY_NAME = {backend.name: backend for backend in BACKENDS}


def choose(call: Call, name: str) -> Backend:
    """The backend of that name, or the fastest that can for "auto".

    Errors: ArgumentError for an unknown name; BackendError with the reasons when the one asked for, or none, can run.
    """
    if name == "auto" and exporting():
        return _EXPORTED
    if name == "auto" and transformed():
        return _REFERENCE  # plain operators, which torch.func can differentiate and map, again and again
    if name == "auto":
        for backend in BACKENDS:
            if backend.fastest(call) and backend.refusal(call) is None:
                return backend
        raise BackendError(f"No backend can run this call: {reasons(call)}.")
    backend = _BY_NAME.get(name)
    if backend is None:
        known = ", ".join(repr(known) for known in ("auto", *_BY_NAME))
        raise ArgumentError(f"backend must be one of {known}; it is {name!r}.")
    refusal = backend.refusal(call)
    if refusal is not None:
        raise BackendError(
            f"backend {name!r} cannot run this call: {refusal}. Use backend='auto'; the others: {reasons(call)}."
        )
    return backend


def observed(call: Call, gather: Gather) -> Gathered:
    """What is to be gathered of a finished call, by a pass of a backend that does it on the way; none where none can.

    The pass has a value of one column, the least that a backend takes: only the scores cost anything.
    """
    call = _with_least_value(call, gather)
    for backend in BACKENDS:
        if backend.gathers() and backend.refusal(call) is None:
            return backend.run(call).gathered or Gathered()
    return Gathered()


def mean_of_heads(call: Call) -> Tensor | None:
    """The mean over the heads of a finished call's weights, [N, T, S], by such a pass; None where there is none."""
    found = _NATIVE.with_mean_of_heads(_with_least_value(call, NOTHING))
    return None if found is None else found[1]


def with_mean_of_heads(call: Call) -> tuple[Tensor, Tensor] | None:
    """The output of a call from which no gradient is wanted and that mean, by one pass; None where there is none."""
    wanted = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in call.tensors())
    return None if wanted or choose(call, "auto") is not _NATIVE else _NATIVE.with_mean_of_heads(call)


def _with_least_value(call: Call, gather: Gather) -> Call:
    n, groups, keys, _ = call.key.shape
    value = call.key.new_zeros(n, groups, keys, 1)
    return call.changed(value=value, dropout=0.0, wants_lse=False, gather=gather)


def reasons(call: Call) -> str:
    """What each backend says to the call, on one line."""
    return "; ".join(f"{backend.name}: {backend.refusal(call) or 'can run'}" for backend in BACKENDS)
