"""What a translator gives: the text, and what was attended to for each token of it."""

from dataclasses import dataclass

from torch import Tensor

from limelight.evaluation.alignment import links_from_weights, word_weights
from limelight.pharaoh import Link

END = "</s>"
"""How the end of the source, which can be attended to, is named in pictures."""


@dataclass(frozen=True)
class Translation:
    """One translation of one sentence.

    Attributes:
        source: the sentence that was given.
        text: its translation.
        log_prob: log p(text | source) in nats; of a text that decoding wrote, among the texts without unknown tokens.
        score: what the n best are ranked by; log_prob over the length penalty.
        source_tokens: the S tokens that the model read, the end mark last.
        target_tokens: the T tokens that it produced, without the end mark.
        weights: fp32 [T, S]: how much each produced token attended to each source token; None when not asked for,
            without attention, or when nothing was produced.
        source_words: for each source token its word in `source.split()`; -1 for none.
        target_words: for each target token its word in `text.split()`; -1 for none.
        unknown: pieces of the source that the vocabulary lacks.
        truncated: how many source tokens were left out because the sentence is longer than `Translator.longest`; in
            forced decoding those of the translation are counted too.
    """

    source: str
    text: str
    log_prob: float
    score: float
    source_tokens: list[str]
    target_tokens: list[str]
    weights: Tensor | None
    source_words: list[int]
    target_words: list[int]
    unknown: list[str]
    truncated: int

    def links(self) -> frozenset[Link]:
        """Word alignment (source word, target word): each target word with the source word it attends to most."""
        return _word_links(self.weights, self.source_words, self.target_words)


def _word_links(weights: Tensor | None, source_words: list[int], target_words: list[int]) -> frozenset[Link]:
    if weights is None or max(source_words) < 0 or max(target_words, default=-1) < 0:
        return frozenset()
    return links_from_weights(word_weights(weights, source_words, target_words))
