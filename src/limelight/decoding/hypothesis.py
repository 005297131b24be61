"""What decoding gives, and the limits it works in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.errors import ArgumentError


@dataclass(frozen=True)
class Hypothesis:
    """One translation.

    Attributes:
        tokens: the tokens produced, without bos and eos.
        log_prob: log p(tokens, eos | source) in nats; of the tokens alone where the length limit cut it off.
        score: what hypotheses are ranked by: log_prob, divided by the length penalty.
        weights: fp32 [len(tokens), S], the attention of each token, on the CPU; None when not asked for or
            without attention.
    """

    tokens: list[int]
    log_prob: float
    score: float
    weights: Tensor | None


@dataclass(frozen=True)
class SearchLimits:
    """Which tokens begin and end a sentence, which are never produced, and how long a translation may be.

    A source of S tokens is given at most `ratio` · S + `extra` tokens.
    """

    bos: int
    eos: int
    banned: tuple[int, ...] = ()
    ratio: float = 2.0
    extra: int = 10

    def __post_init__(self) -> None:
        if self.ratio < 0 or self.extra < 1:
            raise ArgumentError(
                f"limits: a translation needs room for a token, got ratio={self.ratio} and extra={self.extra}; "
                "take ratio >= 0 and extra >= 1"
            )

    def most(self, source_lengths: Tensor) -> Tensor:
        """The most tokens each translation may have, eos among them: int64 [B]."""
        return (source_lengths * self.ratio).to(torch.int64) + self.extra
