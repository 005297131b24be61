"""The settings of a training run, with the checks of each."""

import math
from dataclasses import dataclass
from typing import Literal

from limelight.errors import ArgumentError
from limelight.training.schedules import SCHEDULES, Schedule

MOST_THREADS = 1024
"""More crash the OpenMP library instead of raising."""


@dataclass(frozen=True)
class DataConfig:
    """How text becomes training data.

    Attributes:
        tokens: "bpe", "word" or "char".
        vocabulary: the most tokens of a vocabulary.
        joint: one vocabulary for both sides.
        lowercase: lower-case all text, in training and in translation.
        dev: how many source sentences to hold out for validation, when no dev file is given.
        test: how many source sentences to hold out for a test, when no dev file is given.
        max_words: longer sentences, in whitespace words, are skipped.
        max_tokens: longer sentences, in tokens, are skipped.
        loose_ends: training pairs of up to so many source words are learned a second time, without their closing
            punctuation, so that "hello" is known where the corpus has only "Hello!"; 0 for none.

    Raises:
        ArgumentError: a value breaks a rule.
    """

    tokens: Literal["bpe", "word", "char"] = "bpe"
    vocabulary: int = 8000
    joint: bool = False
    lowercase: bool = False
    dev: int = 1000
    test: int = 2000
    max_words: int = 250
    max_tokens: int = 256
    loose_ends: int = 3

    def __post_init__(self) -> None:
        if self.tokens not in ("bpe", "word", "char"):
            raise ArgumentError(f"tokens: must be 'bpe', 'word' or 'char', got {self.tokens!r}")
        for name, least in (("vocabulary", 16), ("dev", 1), ("test", 0), ("max_words", 1), ("max_tokens", 4)):
            _whole(name, getattr(self, name), least)
        _whole("loose_ends", self.loose_ends, 0)


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found.

    Attributes:
        epochs: passes over the training part; the last one is whole.
        updates: stop after this many updates instead; None counts epochs.
        minutes: stop after this time at the latest; the schedule then comes to its end with the time. None for no
            limit.
        batch_tokens: the most tokens, padding included, of a batch, on its longer side.
        optimizer: "adam" (Kingma and Ba 2015) or "adamw" (Loshchilov and Hutter 2019).
        rate: the peak learning rate.
        schedule: "constant", "linear", "cosine" or "inverse-sqrt".
        warmup: updates over which the rate rises from 0 to its peak.
        weight_decay: of AdamW.
        betas: decay of the two running means.
        label_smoothing: ε.
        guided_weight: λ of guided alignment, which is added to the loss per target token: λ times the cross-entropy
            between the links of the token and its attention. Used where the corpus has links (`guided_alignment`). The
            default is that of Garg et al. (2019).
        coverage_weight: λ of the coverage loss, Σ_s min(a_ts, g_ts) of each target token: what it attends to although
            that has been attended to before (See, Liu and Manning 2017, equations 12 and 13, who take 1 and begin with
            it late). For attention="coverage"; 0 for none.
        clip: gradients are scaled down to this norm; 0 for no clipping.
        validate_every: updates between two validations; None is once an epoch.
        patience: validations without a better BLEU after which training stops; 0 never stops early.
        average: how many of the last validations' weights are averaged at the end; 0 or 1 for none.
        precision: "fp32", or "bf16" for autocast.
        seed: fixes the split, the vocabulary, the weights, the batches and dropout.
        save_seconds: the longest time between two saves of the whole state.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        threads: of torch, up to 1024; None leaves torch's choice.

    Raises:
        ArgumentError: a value breaks a rule.
    """

    epochs: int = 10
    updates: int | None = None
    minutes: float | None = None
    batch_tokens: int = 1024
    optimizer: Literal["adam", "adamw"] = "adam"
    rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: int = 200
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    label_smoothing: float = 0.1
    guided_weight: float = 0.05
    coverage_weight: float = 0.0
    clip: float = 1.0
    validate_every: int | None = None
    patience: int = 0
    average: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 1
    save_seconds: float = 60.0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_tokens", 16),
            ("warmup", 0),
            ("patience", 0),
            ("average", 0),
            ("seed", 0),
        ):
            _whole(name, getattr(self, name), least)
        for name in ("updates", "validate_every", "threads"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ArgumentError(f"threads: must be at most {MOST_THREADS}, got {self.threads}")
        for name in ("coverage_weight", "clip", "weight_decay", "save_seconds"):
            _number(name, getattr(self, name))
        _number("rate", self.rate, above=True)
        _number("guided_weight", self.guided_weight, above=True)
        if self.minutes is not None:
            _number("minutes", self.minutes, above=True)
        if self.optimizer not in ("adam", "adamw"):
            raise ArgumentError(f"optimizer: must be 'adam' or 'adamw', got {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"schedule: must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ArgumentError(f"precision: must be 'fp32' or 'bf16', got {self.precision!r}")
        # A JSON file gives a list.
        object.__setattr__(self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas)
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not (pair and all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas)):
            raise ArgumentError(f"betas: must be two numbers in [0, 1), got {self.betas!r}")
        if not (_is_number(self.label_smoothing) and 0 <= self.label_smoothing < 1):
            raise ArgumentError(f"label_smoothing: must be in [0, 1), got {self.label_smoothing!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentError(f"{name}: must be a whole number, got {value!r}")
    if value < least:
        raise ArgumentError(f"{name}: must be at least {least}, got {value}")


def _number(name: str, value: float, *, above: bool = False) -> None:
    """Finite, and at least 0 or above it."""
    if not (_is_number(value) and math.isfinite(value)):
        raise ArgumentError(f"{name}: must be a finite number, got {value!r}")
    if value < 0 or (above and value == 0):
        raise ArgumentError(f"{name}: must be {'above' if above else 'at least'} 0, got {value}")
