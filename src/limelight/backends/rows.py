"""The largest scores of long rows: what a search asks of a vocabulary at each step."""

import torch
from torch import Tensor

from limelight.backends import extension


def strongest(scores: Tensor, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of scores s + b of each row, the largest first, their columns, and log sum_j e^(s_j + b_j).

    One pass over fp32 scores on the CPU where the native extension is there; torch's `topk` and `logsumexp` elsewhere.
    Of equal scores the native pass takes the lower column first.

    Args:
        scores: [..., V].
        k: in [1, V].
        bias: fp32 [V], added to each row.

    Returns:
        [..., k] of the dtype of `scores`, int64 [..., k], and [...] of the dtype of `scores`.
    """
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and extension.refusal() is None:
        found = _native(scores.detach().contiguous(), k, bias)
        if found is not None:
            return found
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    value, index = scores.topk(k, -1)
    return value, index, scores.logsumexp(-1)


def _native(scores: Tensor, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor] | None:
    module = extension.native()
    columns, leading = scores.shape[-1], scores.shape[:-1]
    value, lse = scores.new_empty(*leading, k), scores.new_empty(leading)
    index = scores.new_empty(*leading, k, dtype=torch.int64)
    threads = min(torch.get_num_threads(), 1 + scores.numel() // _SMALL)
    sizes = (leading.numel(), columns, columns)
    results = (lse.data_ptr(), value.data_ptr(), index.data_ptr())
    given = (scores.data_ptr(), 0 if bias is None else bias.data_ptr())
    assert module is not None
    return (value, index, lse) if module.strongest_rows((*given, *sizes, *results, k, threads)) else None


_SMALL = 50_000  # numbers that a thread takes longer to be woken for than to read
