"""Greedy search: the most probable token at each step."""

import torch
from torch import Tensor

from limelight.decoding.hypothesis import Hypothesis, SearchLimits
from limelight.decoding.vocabulary import Vocabulary
from limelight.models.protocol import TranslationModel


@torch.inference_mode()
def greedy_search(
    model: TranslationModel, source: Tensor, source_lengths: Tensor, limits: SearchLimits, *, observe: bool = False
) -> list[Hypothesis]:
    """Translate a batch greedily. Sentences that have ended leave the batch once a quarter of it has.

    Args:
        model: in evaluation mode.
        source: int64 [B, S], padded.
        source_lengths: int64 [B].
        limits: special tokens and lengths.
        observe: also keep the attention of each produced token.

    Returns:
        one hypothesis per sentence, in the order given; its score is its log probability.
    """
    count, device = len(source), source.device
    most = limits.most(source_lengths)
    longest = int(most.max()) if count else 0
    tokens = torch.full((count, longest), limits.eos, device=device)
    log_prob = torch.zeros(count, device=device)
    seen: Tensor | None = None

    rows = torch.arange(count, device=device)  # the sentences still in the batch
    live = torch.ones(count, dtype=torch.bool, device=device)  # of those, which have not ended
    vocabulary = Vocabulary(model.output, limits.banned)
    state = model.start(source, source_lengths)
    last = torch.full((count, 1), limits.bos, device=device)
    for t in range(longest):
        features, weights, state = model.step(last, state, observe=observe)
        choice, best = (part[:, 0, 0] for part in vocabulary.best(features, 1))
        log_prob[rows] += torch.where(live, best, 0.0)
        tokens[rows, t] = torch.where(live, choice, limits.eos)
        if weights is not None:
            if seen is None:
                seen = torch.zeros(count, longest, source.shape[1], device=device)
            seen[rows, t] = weights.squeeze(1).float()
        live = live & (choice != limits.eos) & (t + 1 < most[rows])
        last = choice.unsqueeze(1)
        alive = int(live.sum())
        if alive == 0:
            break
        if alive <= 0.75 * len(rows):
            keep = live.nonzero().squeeze(1)
            rows, last, live, state = rows[keep], last[keep], live[keep], state.keep(keep)
    return _hypotheses(tokens.cpu(), log_prob.cpu(), None if seen is None else seen.cpu(), source_lengths, limits.eos)


def _hypotheses(
    tokens: Tensor, log_prob: Tensor, seen: Tensor | None, source_lengths: Tensor, eos: int
) -> list[Hypothesis]:
    result = []
    for b, (sentence, total) in enumerate(zip(tokens.tolist(), log_prob.tolist(), strict=True)):
        length = sentence.index(eos) if eos in sentence else len(sentence)
        weights = None if seen is None else seen[b, :length, : int(source_lengths[b])].clone()
        result.append(Hypothesis(sentence[:length], total, total, weights))
    return result
