"""A translation model whose probabilities are a table, and searches so plain that they can be checked by eye."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limelight.models import DecodingState, Guided, Teacher, TranslationModel

PAD, BOS, EOS, A, B = range(5)
LETTERS = (A, B)
Table = Callable[[tuple[int, ...], tuple[int, ...]], Tensor]
"""Logits [5] of the next token, given the source's tokens and those produced so far."""


def random_table(seed: int) -> Table:
    """Logits drawn from source and prefix, eos a little less likely than the others."""

    def logits(source: tuple[int, ...], prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, source, prefix)) % 2**31)
        return 1.5 * torch.randn(5, generator=generator, dtype=torch.float64) - torch.tensor([0, 0, 0.5, 0, 0])

    return logits


class Toy(TranslationModel):
    """p(next | source, prefix) from a table. The weights of a step are drawn from the prefix as well, 0 on padding."""

    def __init__(self, table: Table):
        super().__init__()
        self.table = table
        self.output = nn.Linear(5, 5, bias=False)
        nn.init.eye_(self.output.weight)
        self.steps: list[tuple[int, int]] = []  # rows and hypotheses of each call

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor, *, observe: bool = False) -> Teacher:
        """Not needed here."""
        raise NotImplementedError

    def guided(self, source: Tensor, source_lengths: Tensor, target: Tensor, links: Tensor) -> Guided:
        """Not needed here."""
        raise NotImplementedError

    def start(self, source: Tensor, source_lengths: Tensor) -> DecodingState:
        """The beams hold the tokens read so far."""
        return DecodingState((source, source_lengths), (source.new_empty(len(source), 1, 0),))

    def step(
        self, tokens: Tensor, state: DecodingState, *, observe: bool = False
    ) -> tuple[Tensor, Tensor | None, DecodingState]:
        """Look the logits up."""
        self.steps.append((tokens.shape[0], tokens.shape[1]))
        source, lengths = state.memory
        history = torch.cat([state.beams[0], tokens.unsqueeze(-1)], -1)
        sentences = [tuple(row[:count]) for row, count in zip(source.tolist(), lengths.tolist(), strict=True)]
        logits = torch.stack(
            [
                torch.stack([self.table(sentence, tuple(prefix[1:])) for prefix in prefixes])
                for sentence, prefixes in zip(sentences, history.tolist(), strict=True)
            ]
        )
        weights = None
        if observe:
            weights = torch.zeros(*tokens.shape, source.shape[1])
            for b, sentence in enumerate(sentences):
                for k, prefix in enumerate(history[b].tolist()):
                    weights[b, k, : len(sentence)] = toy_weights(sentence, tuple(prefix[1:]))
        return logits.float(), weights, DecodingState(state.memory, (history,), state.position + 1)


def toy_weights(source: tuple[int, ...], prefix: tuple[int, ...]) -> Tensor:
    """The attention [S] of the token that follows `prefix`."""
    generator = torch.Generator().manual_seed(hash((7, source, prefix)) % 2**31)
    return torch.rand(len(source), generator=generator).softmax(0)


def log_probs(table: Table, source: tuple[int, ...], prefix: tuple[int, ...]) -> Tensor:
    """Log probabilities [5] of the next token where padding and bos are banned; those of all five sum to 1 without."""
    logits = table(source, prefix).float().clone()
    logits[[PAD, BOS]] = -torch.inf
    return logits.log_softmax(0)


def every_hypothesis(
    table: Table, source: tuple[int, ...], most: int, alpha: float
) -> list[tuple[float, float, tuple[int, ...]]]:
    """(score, log probability, tokens) of all sentences of less than `most` letters and eos, the best first."""
    found = []
    for length in range(most):
        for tokens in itertools.product(LETTERS, repeat=length):
            total = sum(float(log_probs(table, source, tokens[:i])[token]) for i, token in enumerate((*tokens, EOS)))
            found.append((total / ((5 + length + 1) / 6) ** alpha, total, tokens))
    return sorted(found, reverse=True)


def plain_beam_search(
    table: Table, source: tuple[int, ...], most: int, beam: int, alpha: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search with lists: (score, tokens) of the finished hypotheses, the best first."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, most + 1):
        penalty = ((5 + length) / 6) ** alpha
        grown = sorted(
            (
                (total + float(log_probs(table, source, tokens)[token]), (*tokens, token))
                for total, tokens in live
                for token in (EOS, *LETTERS)
            ),
            reverse=True,
        )[: 2 * beam]
        finished += [(total / penalty, tokens[:-1]) for total, tokens in grown[:beam] if tokens[-1] == EOS]
        finished = sorted(finished, reverse=True)[:beam]
        live = [one for one in grown if one[1][-1] != EOS][:beam]
        hope = live[0][0] / ((5 + length + 1) / 6) ** alpha
        if len(finished) == beam and finished[-1][0] >= hope:
            return finished
    return finished or [(live[0][0] / ((5 + most) / 6) ** alpha, live[0][1])]
