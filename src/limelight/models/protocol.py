"""What training and decoding ask of a translation model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DecodingState:
    """All that a model carries from one step of decoding to the next, as a value.

    Attributes:
        memory: tensors [B, ...], one row a sentence, shared by its hypotheses.
        beams: tensors [B, K, ...], one row a hypothesis.
        position: how many tokens have been read.
    """

    memory: tuple[Tensor, ...]
    beams: tuple[Tensor, ...]
    position: int = 0

    def reorder(self, parents: Tensor) -> "DecodingState":
        """The state in which hypothesis k of sentence b goes on from parents[b, k]; parents is int64 [B, K]."""
        return replace(self, beams=tuple(_chosen(beam, parents) for beam in self.beams))

    def keep(self, rows: Tensor) -> "DecodingState":
        """The state of the sentences `rows` alone; rows is int64 [B']."""
        memory, beams = (tuple(part.index_select(0, rows) for part in parts) for parts in (self.memory, self.beams))
        return replace(self, memory=memory, beams=beams)


def _chosen(beam: Tensor, parents: Tensor) -> Tensor:
    """[B, K', ...] of beam [B, K, ...]: index_select copies whole rows, which indexing by two tensors does not."""
    first = torch.arange(0, len(beam) * beam.shape[1], beam.shape[1], device=parents.device)
    return beam.flatten(0, 1).index_select(0, (first[:, None] + parents).flatten()).unflatten(0, parents.shape)


class Teacher(NamedTuple):
    """What a pass with the reference as input gives.

    Attributes:
        features: [B, T, C], what the output layer reads.
        weights: [B, T, S], the attention of each target position, or None when not asked for or without attention.
    """

    features: Tensor
    weights: Tensor | None


class Guided(NamedTuple):
    """What such a pass gives where attention learns from links.

    Attributes:
        features: as in `Teacher`.
        log_weights: [P], the log weights of the links, differentiable.
    """

    features: Tensor
    log_weights: Tensor


class TranslationModel(nn.Module, ABC):
    """A model p(target | source) that is trained by `forward` and decoded by `start` and `step`.

    `forward` is called once per batch. `start` is called once per batch of sentences, `step` once per produced token; a
    state goes in and a new one comes out, the model itself keeps nothing between calls.
    """

    output: nn.Linear
    """The output layer; logits = output(features)."""

    @abstractmethod
    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor, *, observe: bool = False) -> Teacher:
        """Read the reference (teacher forcing).

        Args:
            source: int64 [B, S], padded.
            source_lengths: int64 [B].
            target: int64 [B, T], the tokens read: bos w_1 ... w_n, padded.
            observe: also return attention weights.
        """

    @abstractmethod
    def guided(self, source: Tensor, source_lengths: Tensor, target: Tensor, links: Tensor) -> Guided:
        """As `forward`, and the log weights of single links of the model's attention, for guided alignment.

        Memory grows with the number of links, not with T x S.

        Args:
            source: int64 [B, S], padded.
            source_lengths: int64 [B].
            target: int64 [B, T], the tokens read, padded.
            links: int64 [P, 3], (row, target position, source position).

        Raises:
            ArgumentError: the model has no attention.
        """

    @abstractmethod
    def start(self, source: Tensor, source_lengths: Tensor) -> DecodingState:
        """Read the source; the state before the first target token, with one hypothesis a sentence."""

    @abstractmethod
    def step(
        self, tokens: Tensor, state: DecodingState, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None, DecodingState]:
        """Read one token for each hypothesis.

        Args:
            tokens: int64 [B, K].
            state: of the step before.
            observe: also return attention weights.

        Returns:
            features [B, K, C], which the output layer reads; weights [B, K, S] or None; the new state.
        """
