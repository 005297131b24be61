"""Translation quality: BLEU and chrF by sacrebleu, with the signatures that make the numbers comparable."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from limelight.errors import ArgumentError, DataError

# sacrebleu's tokenizers that need neither a download nor another package.
TOKENIZERS = ("13a", "intl", "zh", "char", "none")


@dataclass(frozen=True)
class Quality:
    """Corpus scores of a set of translations.

    Attributes:
        bleu: corpus BLEU, 0 to 100.
        chrf: corpus chrF2, 0 to 100.
        bleu_signature: sacrebleu's signature of `bleu`: references, case, tokenizer, smoothing, version.
        chrf_signature: the same for `chrf`.
        exact_match: share of translations, 0 to 1, that equal one of their references.
        sentences: number of translations.

    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    exact_match: float
    sentences: int


@dataclass(frozen=True)
class LengthBin:
    """BLEU of the sentences whose source length is in the interval [low, high] (`high` included)."""

    low: int
    high: int
    sentences: int
    bleu: float


def corpus_quality(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> Quality:
    """BLEU, chrF and exact match of translations against one or more references each.

    BLEU (Papineni et al. 2002) clips n-gram counts by the largest count in any reference and takes the closest
    reference length; chrF2 (Popovic 2015) takes each sentence's best reference. Both as in sacrebleu (Post 2018),
    whose signature says `nrefs:var` when the sentences have different numbers of references.

    Arguments:
        hypotheses: the translations, detokenised.
        references: for each translation the list of its references, at least one. This is sentence by sentence, not
            sacrebleu's one list per reference file.
        lowercase: ignore case, in all three figures (`case:lc` in the signatures).
        tokenize: sacrebleu's name of the tokenizer for BLEU, one of `TOKENIZERS`; Chinese and Japanese want `zh` or
            `char`.

    Raises:
        DataError: no sentence, lengths that differ, a sentence without references.
        ArgumentError: an unknown tokenizer, or `references` holds strings where lists of strings are wanted.

    Example:
        >>> corpus_quality(["good morning"], [["good morning", "good day"]]).exact_match
        1.0

    """
    _check(hypotheses, references, tokenize)
    streams = _streams(references)
    # `force` only silences a log line about tokenised input, which would break progress displays.
    bleu = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    chrf = CHRF(lowercase=lowercase)
    bleu_score = bleu.corpus_score(hypotheses, streams).score
    chrf_score = chrf.corpus_score(hypotheses, streams).score
    return Quality(
        # Rounding takes a perfect score above 100 by 1e-14.
        bleu=min(bleu_score, 100.0),
        chrf=min(chrf_score, 100.0),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        exact_match=_exact_match(hypotheses, references, lowercase),
        sentences=len(hypotheses),
    )


def by_length(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    source_lengths: Sequence[int],
    edges: Sequence[int] = (5, 10, 15, 20, 25, 30, 40, 50),
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> list[LengthBin]:
    """Corpus BLEU for each range of source lengths: the figure of Bahdanau, Cho and Bengio (2014).

    Arguments:
        hypotheses: as in `corpus_quality`.
        references: as in `corpus_quality`.
        source_lengths: the length of each source sentence, 1 or more, in whichever unit the figure shall have.
        edges: upper ends of the intervals, increasing: (5, 10) means [1, 5], [6, 10] and [11, longest].
        lowercase: as in `corpus_quality`.
        tokenize: as in `corpus_quality`.

    Returns:
        One `LengthBin` per interval that has sentences, shortest first.

    Raises:
        DataError: as `corpus_quality`, or `source_lengths` has another length.
        ArgumentError: as `corpus_quality`, edges that do not increase from at least 1, or a length below 1.

    """
    _check(hypotheses, references, tokenize)
    if len(source_lengths) != len(hypotheses):
        raise DataError(
            f"source_lengths: needs one length per translation, got {len(source_lengths)} for {len(hypotheses)}"
        )
    if any(length < 1 for length in source_lengths):
        raise ArgumentError(f"source_lengths: must be 1 or more, got {min(source_lengths)}")
    ends = list(edges)
    if any(low >= high for low, high in zip([0, *ends], ends, strict=False)):
        raise ArgumentError(f"edges: must increase and start at 1 or more, got {tuple(edges)}")
    longest = max(source_lengths)
    if not ends or longest > ends[-1]:
        ends.append(longest)
    bins = []
    for low, high in zip([1, *(end + 1 for end in ends)], ends, strict=False):
        inside = [n for n, length in enumerate(source_lengths) if low <= length <= high]
        if inside:
            bleu = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
            score = bleu.corpus_score([hypotheses[n] for n in inside], _streams([references[n] for n in inside]))
            bins.append(LengthBin(low, high, len(inside), min(score.score, 100.0)))
    return bins


def group_references(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Every distinct source with all its translations.

    Returns:
        `(sources, references)`: sources in the order of their first appearance, and for each its distinct targets, in
        order too.

    Example:
        >>> group_references([("hi", "hola"), ("bye", "adiós"), ("hi", "buenas")])
        (['hi', 'bye'], [['hola', 'buenas'], ['adiós']])

    """
    # A dict keeps the order of insertion and drops repeats at once.
    groups: dict[str, dict[str, None]] = {}
    for source, target in pairs:
        groups.setdefault(source, {})[target] = None
    return list(groups), [list(targets) for targets in groups.values()]


def _streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """The layout of sacrebleu: the n-th list has every sentence's n-th reference, None where a sentence has fewer."""
    count = max(len(some) for some in references)
    # sacrebleu reads None as "no such reference", though its annotations do not say so.
    return [[cast(str, some[n] if n < len(some) else None) for some in references] for n in range(count)]


def _exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool) -> float:
    def plain(text: str) -> str:
        return text.strip().lower() if lowercase else text.strip()

    hits = sum(
        plain(hypothesis) in {plain(reference) for reference in some}
        for hypothesis, some in zip(hypotheses, references, strict=True)
    )
    return hits / len(hypotheses)


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> None:
    if tokenize not in TOKENIZERS:
        raise ArgumentError(f"tokenize: must be one of {', '.join(TOKENIZERS)}, got {tokenize!r}")
    if len(hypotheses) != len(references):
        raise DataError(
            f"hypotheses, references: need one list of references per translation, got {len(hypotheses)} translations "
            f"and {len(references)} lists; references go sentence by sentence"
        )
    if not hypotheses:
        raise DataError("hypotheses: a score needs at least one translation, got none")
    for number, some in enumerate(references, start=1):
        if isinstance(some, str):
            raise ArgumentError(
                f"references: each sentence needs a list of strings, got the string {some[:60]!r} for sentence {number}"
                "; write [[text], ...] for one reference each"
            )
        if not some:
            raise DataError(f"references: sentence {number} has none; drop it, or give at least one")
