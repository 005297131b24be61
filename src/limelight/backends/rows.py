"""Scores W x + b of many rows x: what a search asks of a vocabulary at each step, and what training makes of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from limelight.backends import extension
from limelight.errors import ArgumentError


class Scores:
    """Scores s = W x + b of rows x, asked for their largest and their log-sum-exp.

    In fp32 on the CPU, where the native extension is there, the scores are never stored: one pass makes a block of
    them, takes what is asked and forgets it. It reads a copy of W in an order of its own, made once: an object is of W
    as it was then. Elsewhere torch's product, `topk` and `logsumexp`.

    Args:
        weight: W, [V, C].
        bias: b, fp32 [V]; -inf forbids a column.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias = weight, bias
        native = extension.takes(weight)
        self._packed = _pack(weight.detach(), bias) if native else None

    def strongest(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest scores of each row, the largest first, their columns, and log sum_j e^(s_j).

        Of equal scores the native pass takes the lower column first.

        Args:
            x: [..., C].
            k: in [1, V].

        Returns:
            fp32 [..., k], int64 [..., k], fp32 [...].
        """
        if self._packed is not None and x.dtype == torch.float32:
            found = self._native(x.detach().reshape(-1, x.shape[-1]).contiguous(), k, *self._packed)
            if found is not None:
                value, index, lse = found
                return value.view(*x.shape[:-1], k), index.view(*x.shape[:-1], k), lse.view(x.shape[:-1])
        scores = F.linear(x, self.weight).float() + self.bias
        value, index = scores.topk(k, -1)
        return value, index, scores.logsumexp(-1)

    def _native(self, x: Tensor, k: int, packed: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """See `strongest`; None where a row holds NaN or +inf, or less than k scores above -inf."""
        module, rows = extension.native(), len(x)
        assert module is not None
        value, lse = x.new_empty(rows, k), x.new_empty(rows)
        index = x.new_empty(rows, k, dtype=torch.int64)
        columns, depth = self.weight.shape
        threads = min(torch.get_num_threads(), 1 + rows * columns * depth // _SMALL)
        given = (x.data_ptr(), packed.data_ptr(), bias.data_ptr(), rows, columns, depth, depth)
        good = module.strongest_rows((*given, lse.data_ptr(), value.data_ptr(), index.data_ptr(), k, threads))
        return (value, index, lse) if good else None


def _pack(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """W as the kernel reads it, and b, -inf where that has more columns."""
    module = extension.native()
    assert module is not None
    columns, depth = weight.shape
    room = -(-columns // module.WEIGHT_PANEL) * module.WEIGHT_PANEL
    weight, packed = weight.contiguous(), weight.new_empty(room * depth)
    module.pack_weight((weight.data_ptr(), packed.data_ptr(), columns, depth, depth, torch.get_num_threads()))
    return packed, F.pad(bias, (0, room - columns), value=-torch.inf)


def cross_entropy(logits: Tensor, bias: Tensor, target: Tensor, kept: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient softmax(z + b)_v - kept [v = y] of logits z, its sums over rows, each row's -log softmax(z + b)_y.

    The native pass reads and writes a row while it is in a core's cache.

    Args:
        logits: z, [n, V], without their bias; overwritten.
        bias: b, [V].
        target: y, int64 [n], in [0, V).
        kept: 1 - ε of label smoothing.

    Returns:
        [n, V], in the memory of the logits; [V]; [n].

    Raises:
        ArgumentError: a target is no column.
    """
    rows, columns = logits.shape
    if not (extension.takes(logits) and logits.is_contiguous()):
        z = logits.add_(bias)
        lse = z.logsumexp(1, keepdim=True)
        y = target[:, None]
        likelihood = (lse - z.gather(1, y)).squeeze(1)
        z.sub_(lse).exp_().scatter_add_(1, y, z.new_full((rows, 1), -kept))
        return z, z.sum(0), likelihood
    low, high = (int(target.min()), int(target.max())) if rows else (0, 0)
    if not 0 <= low <= high < columns:
        raise ArgumentError(f"target: must be tokens in [0, {columns}), got {low} to {high}; leave padding out")
    module, threads = extension.native(), torch.get_num_threads()
    assert module is not None
    likelihood, sums = logits.new_empty(rows), logits.new_zeros(threads, columns)
    bias, target = bias.contiguous(), target.contiguous()
    given = (logits.data_ptr(), bias.data_ptr(), target.data_ptr(), rows, columns, kept)
    module.cross_entropy((*given, likelihood.data_ptr(), sums.data_ptr(), threads))
    return logits, sums.sum(0), likelihood


_SMALL = 1_000_000  # multiplications that a thread takes longer to be woken for than to make
