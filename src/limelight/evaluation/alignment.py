"""Word alignments: links from attention weights, and the alignment error rate (AER)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from limelight.errors import ArgumentError, DataError
from limelight.evaluation.weights import Weights, weight_matrix
from limelight.pharaoh import Alignment, Link


@dataclass(frozen=True)
class AlignmentQuality:
    """How well predicted links agree with gold ones, over a corpus.

    Attributes:
        aer: alignment error rate in [0, 1], 0 is best.
        precision: share of predicted links that are possible ones; 0 when nothing was predicted.
        recall: share of sure links that were predicted; 0 when the gold has no sure link.
        links: number of predicted links.
        sentences: number of sentence pairs.

    """

    aer: float
    precision: float
    recall: float
    links: int
    sentences: int


def aer(predicted: Iterable[Iterable[Link]], gold: Iterable[Alignment]) -> AlignmentQuality:
    """Alignment error rate of a corpus.

    AER = 1 - (|A & S| + |A & P|) / (|A| + |S|), precision = |A & P| / |A|, recall = |A & S| / |S|,

    where A are the predicted links, S the sure and P (with S in it) the possible gold links, each counted over the
    whole corpus and not per sentence.
    Och and Ney, "A Systematic Comparison of Various Statistical Alignment Models", Computational Linguistics 29 (2003),
    section 5.1.

    Arguments:
        predicted: for each sentence pair its links `(source, target)`; a link given twice counts once.
        gold: for each sentence pair its gold alignment.

    Raises:
        DataError: the two have different lengths, there is no sentence, or neither side has a link (AER is then 0 / 0).

    Example:
        >>> aer([{(0, 0), (1, 1), (2, 1)}], [parse_pharaoh("0-0 1?1")]).aer
        0.25

    """
    answers = [{(int(i), int(j)) for i, j in links} for links in predicted]
    golds = list(gold)
    if len(answers) != len(golds):
        raise DataError(
            f"predicted, gold: need one alignment per sentence pair on both sides, got {len(answers)} predicted and "
            f"{len(golds)} gold; check that the two come from the same test file"
        )
    if not golds:
        raise DataError("gold: AER needs at least one sentence pair, got none")
    links = sum(len(answer) for answer in answers)
    sure = sum(len(right.sure) for right in golds)
    if links + sure == 0:
        raise DataError(f"gold: AER needs a predicted or a sure link, the {len(golds)} sentence pairs have neither")
    in_sure = sum(len(answer & right.sure) for answer, right in zip(answers, golds, strict=True))
    in_possible = sum(len(answer & right.possible) for answer, right in zip(answers, golds, strict=True))
    return AlignmentQuality(
        aer=1.0 - (in_sure + in_possible) / (links + sure),
        precision=in_possible / links if links else 0.0,
        recall=in_sure / sure if sure else 0.0,
        links=links,
        sentences=len(golds),
    )


def links_from_weights(weights: Weights, *, threshold: float | None = None) -> frozenset[Link]:
    """Links from one attention matrix.

    Without `threshold` every target token is linked to the source token with the largest weight, the first of equals; a
    row of zeros (a query that may attend to nothing) gives no link. With `threshold` every pair with
    weight >= threshold is one.

    Arguments:
        weights: `[T, S]`, target by source.
        threshold: in (0, 1].

    Returns:
        Pairs `(source, target)`: the order of the Pharaoh format, which is the reverse of the matrix's.

    Raises:
        ArgumentError: `weights` is not a matrix of weights, or `threshold` is outside (0, 1].

    """
    matrix = weight_matrix(weights)
    if threshold is None:
        best = matrix.argmax(axis=1)
        return frozenset((int(i), j) for j, i in enumerate(best) if matrix[j, i] > 0)
    if not 0 < threshold <= 1:
        raise ArgumentError(f"threshold: must lie in (0, 1], got {threshold}; leave it out to take each target's best")
    return frozenset((int(i), int(j)) for j, i in np.argwhere(matrix >= threshold))


def word_weights(
    weights: Weights,
    source_words: Sequence[int],
    target_words: Sequence[int],
    *,
    source_count: int | None = None,
    target_count: int | None = None,
) -> np.ndarray:
    """Attention between words from attention between their pieces.

    W[t, s] = mean over pieces j of target word t of the sum over pieces i of source word s of w[j, i]

    What a word receives adds up; what a word gives is averaged over its pieces, so that a row that summed to 1 still
    does.
    Clark, Khandelwal, Levy and Manning, "What Does BERT Look At?", 2019, section 4.1.

    Arguments:
        weights: `[T, S]` between pieces.
        source_words: for each of the S source pieces the number of its word, -1 if it belongs to none (an end mark).
        target_words: the same for the T target pieces.
        source_count: Sw, the number of source words; by default the largest number + 1.
        target_count: Tw, likewise.

    Returns:
        `[Tw, Sw]`, float64. A word without pieces has a row or column of zeros.

    Raises:
        ArgumentError: a list does not fit its axis, or a number is below -1 or not below the count.

    """
    matrix = weight_matrix(weights)
    target = _membership(target_words, matrix.shape[0], target_count, "target_words", "target")
    source = _membership(source_words, matrix.shape[1], source_count, "source_words", "source")
    pieces = target.sum(axis=1, keepdims=True)
    # [Tw, T] @ [T, S] @ [S, Sw]
    return np.clip((target / np.maximum(pieces, 1)) @ matrix @ source.T, 0.0, 1.0)


def _membership(words: Sequence[int], pieces: int, count: int | None, name: str, side: str) -> np.ndarray:
    """`[words, pieces]`: 1 where the piece belongs to the word."""
    numbers = np.asarray(list(words), dtype=np.int64)
    if len(numbers) != pieces:
        raise ArgumentError(
            f"{name}: needs one word number for each of the {pieces} {side} pieces of weights, got {len(numbers)}"
        )
    size = int(numbers.max()) + 1 if count is None else count
    outside = numbers[(numbers < -1) | (numbers >= size)]
    if len(outside):
        raise ArgumentError(
            f"{name}: word numbers must lie in [-1, {size - 1}] for {size} words (-1: in no word), got {outside[0]}"
        )
    return (numbers[None, :] == np.arange(size)[:, None]).astype(np.float64)
