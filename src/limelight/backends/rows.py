"""The largest scores of long rows: what a search asks of a vocabulary at each step."""

import torch
from torch import Tensor

from limelight.backends import extension


def strongest(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest scores of each row, the largest first, their columns, and log sum_j e^(s_j) of the row.

    One pass over fp32 scores on the CPU where the native extension is there; torch's `topk` and `logsumexp` elsewhere.
    Of equal scores the native pass takes the lower column first.

    Args:
        scores: [..., V].
        k: in [1, V].

    Returns:
        [..., k] of the dtype of `scores`, int64 [..., k], and [...] of the dtype of `scores`.
    """
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and extension.refusal() is None:
        found = _native(scores.detach().contiguous(), k)
        if found is not None:
            return found
    value, index = scores.topk(k, -1)
    return value, index, scores.logsumexp(-1)


def _native(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    module = extension.native()
    columns, leading = scores.shape[-1], scores.shape[:-1]
    value, lse = scores.new_empty(*leading, k), scores.new_empty(leading)
    index = scores.new_empty(*leading, k, dtype=torch.int64)
    threads = min(torch.get_num_threads(), 1 + scores.numel() // _SMALL)
    call = (scores.data_ptr(), leading.numel(), columns, columns, lse.data_ptr(), value.data_ptr(), index.data_ptr(), k)
    assert module is not None
    return (value, index, lse) if module.strongest_rows((*call, threads)) else None


_SMALL = 50_000  # numbers that a thread takes longer to be woken for than to read
