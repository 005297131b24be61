"""What a normalizer is: how the scores of a row become its weights, by one number per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor


class Rows(ABC):
    """The scores of some rows, less what they were shifted by; a normalizer goes through them as often as it must."""

    __slots__ = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Tensor]:
        """Tiles [n, H, t, s], each key in one, -inf where forbidden; a sink is one more tile, [n or 1, H or 1, 1, 1].

        They must not be written into.
        """

    @abstractmethod
    def filled(self, number: float) -> Tensor:
        """That number for each row, [n, H, t, 1]."""

    @abstractmethod
    def shift(self, base: Tensor) -> None:
        """From now on the scores are less by `base` [n, H, t, 1], a finite number per row (or NaN). At most once."""


class Normalizer(ABC):
    """Interface of all normalizers. To add one, add a file with a frozen dataclass that implements these methods.

    A normalizer is a rising function f and, for each row, one number τ, its threshold: the weight of a pair is
    f(score - τ), and 0 where the pair is forbidden. f reads one number and depends on nothing else, so that any block
    of weights can be computed from its scores and the thresholds of its rows; τ is kept the way softmax keeps its lse,
    which is its τ. A row that may attend to nothing has the threshold -inf, or that of its sink.

    When and how often: `check` once per call; `textbook` once, by the reference alone; `threshold` once for each piece
    of rows in the forward pass; the others once per block, forward, backward and in views.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, as messages say it."""

    @property
    def is_softmax(self) -> bool:
        """Whether it is the softmax: what the other kernels compute."""
        return False

    @property
    @abstractmethod
    def competes(self) -> bool:
        """Whether τ depends on the scores, so that what one key wins another loses; else the pairs are independent."""

    @property
    @abstractmethod
    def sparse(self) -> bool:
        """Whether f is 0 from some place downwards, so that an allowed pair may have no link at all."""

    @abstractmethod
    def check(self, sink: Tensor | None) -> None:
        """Raise ArgumentError if a sink has no meaning."""

    @abstractmethod
    def weights(self, excess: Tensor) -> Tensor:
        """f(excess), a fresh tensor, in ordinary autograd; 0 for -inf."""

    @abstractmethod
    def log_weights(self, excess: Tensor) -> Tensor:
        """The log of f(excess), in ordinary autograd; -inf, with gradient 0, where f is 0."""

    @abstractmethod
    def slopes(self, weights: Tensor) -> Tensor:
        """The derivative of f, from its value."""

    @abstractmethod
    def threshold(self, rows: Rows) -> Tensor:
        """τ, less what it shifted the rows by, [n, H, t, 1]; -inf for a row without keys and sink. No autograd."""

    @abstractmethod
    def textbook(self, scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights [n, H, t, S] and τ [n, H, t] of whole rows as the papers have them, in ordinary autograd.

        Scores [n, H, t, S], S at least 1, -inf where forbidden; sink, broadcasts to [n, H, t, 1], or None.
        """


def peaks(row: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest number of each row [..., 1], without a graph, 0 for a row of -inf; and which rows those are."""
    peak = row.detach().amax(-1, keepdim=True)
    empty = peak == -torch.inf
    return peak.masked_fill(empty, 0.0), empty


def threshold_dtype(like: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What thresholds are kept in: float64, where the device of that tensor has it, or else the dtype of the scores.

    A threshold of 20 is off by 1e-6 in float32, and sparsemax takes it off each of thousands of keys.
    """
    return dtype if like.device.type == "mps" else torch.float64


def joined(base: Tensor, offset: Tensor) -> Tensor:
    """Their sum: the threshold of scores that less `base` have the threshold `offset`."""
    wide = threshold_dtype(base, offset.dtype)
    return base.to(wide) + offset.to(wide)


def with_sink(scores: Tensor, sink: Tensor | None) -> Tensor:
    """The rows with their sink as one more key, [n, H, t, S or S + 1]."""
    return scores if sink is None else torch.cat((scores, sink.expand(*scores.shape[:-1], 1)), -1)
