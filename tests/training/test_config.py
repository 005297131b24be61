import json
from dataclasses import asdict

import pytest

from limelight.cli import options
from limelight.errors import ArgumentError
from limelight.training import DataConfig, TrainingConfig, sort_settings
from limelight.training.config import MOST_THREADS

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "words"}, "tokens: must be 'bpe', 'word' or 'char', got 'words'"),
        ({"vocabulary": 15}, "vocabulary: must be at least 16, got 15"),
        ({"vocabulary": 1e4}, "vocabulary: must be a whole number, got 10000.0"),
        ({"dev": 0}, "dev: must be at least 1, got 0"),
        ({"test": -1}, "test: must be at least 0, got -1"),
        ({"max_words": 0}, "max_words: must be at least 1, got 0"),
        ({"max_tokens": 3}, "max_tokens: must be at least 4, got 3"),
        ({"loose_ends": -1}, "loose_ends: must be at least 0, got -1"),
        ({"loose_ends": 0.5}, "loose_ends: must be a whole number, got 0.5"),
    ],
)
def test_mistakes_in_data_settings(fields, message):
    with pytest.raises(ArgumentError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs: must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs: must be a whole number, got True"),
        ({"updates": 0}, "updates: must be at least 1, got 0"),
        ({"minutes": 0}, "minutes: must be above 0, got 0"),
        ({"minutes": NAN}, "minutes: must be a finite number, got nan"),
        ({"batch_tokens": 15}, "batch_tokens: must be at least 16, got 15"),
        ({"optimizer": "sgd"}, "optimizer: must be 'adam' or 'adamw', got 'sgd'"),
        ({"rate": 0.0}, "rate: must be above 0, got 0.0"),
        ({"rate": -1e-3}, "rate: must be above 0, got -0.001"),
        ({"rate": INF}, "rate: must be a finite number, got inf"),
        ({"rate": NAN}, "rate: must be a finite number, got nan"),
        ({"rate": "fast"}, "rate: must be a finite number, got 'fast'"),
        ({"schedule": "step"}, "schedule: must be one of constant, linear, cosine, inverse-sqrt, got 'step'"),
        ({"warmup": -1}, "warmup: must be at least 0, got -1"),
        ({"weight_decay": -0.1}, "weight_decay: must be at least 0, got -0.1"),
        ({"weight_decay": INF}, "weight_decay: must be a finite number, got inf"),
        ({"betas": (0.9, 1.0)}, r"betas: must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (0.9,)}, r"betas: must be two numbers in \[0, 1\), got \(0.9,\)"),
        ({"betas": 0.9}, r"betas: must be two numbers in \[0, 1\), got 0.9"),
        ({"label_smoothing": 1.0}, r"label_smoothing: must be in \[0, 1\), got 1.0"),
        ({"clip": -1.0}, "clip: must be at least 0, got -1.0"),
        ({"validate_every": 0}, "validate_every: must be at least 1, got 0"),
        ({"patience": -1}, "patience: must be at least 0, got -1"),
        ({"average": -1}, "average: must be at least 0, got -1"),
        ({"precision": "fp16"}, "precision: must be 'fp32' or 'bf16', got 'fp16'"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"seed": 1.0}, "seed: must be a whole number, got 1.0"),
        ({"save_seconds": -1}, "save_seconds: must be at least 0, got -1"),
        ({"threads": 0}, "threads: must be at least 1, got 0"),
        ({"threads": 1025}, "threads: must be at most 1024, got 1025"),
    ],
)
def test_mistakes_in_training_settings(fields, message):
    with pytest.raises(ArgumentError, match=message):
        TrainingConfig(**fields)


def test_the_least_that_is_allowed():
    TrainingConfig(epochs=1, updates=1, minutes=1e-3, batch_tokens=16, rate=1e-9, warmup=0, clip=0, seed=0, threads=1)
    DataConfig(vocabulary=16, dev=1, test=0, max_words=1, max_tokens=4, loose_ends=1)


def test_the_most_threads():
    TrainingConfig(threads=MOST_THREADS)
    assert options.MOST_THREADS == MOST_THREADS


def test_settings_survive_a_json_file():
    config = TrainingConfig(betas=(0.8, 0.9), minutes=3.5)
    assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_settings_go_where_they_belong():
    data, training, sizes = sort_settings("rnn", {"hidden": 37, "epochs": 3, "lowercase": True, "attention": "dot"})
    assert (data.lowercase, training.epochs) == (True, 3)
    assert sizes == {"hidden": 37, "attention": "dot"}
    assert training.warmup == 200
    assert sort_settings("transformer", {})[1].warmup == 1000
    assert sort_settings("transformer", {"warmup": 7})[1].warmup == 7


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("rnn", {"epoch": 3}, "epoch: is no setting of an rnn model or its training; did you mean epochs"),
        ("rnn", {"heads": 4}, "heads: is no setting of an rnn model"),
        ("transformer", {"attention": "dot"}, "attention: is no setting of a transformer model"),
        (
            "rnn",
            {"xyzzy": 1},
            "xyzzy: is no setting of an rnn model or its training; there are attention, average, batch_",
        ),
        # What the vocabularies decide is not the user's to set.
        ("rnn", {"source_vocabulary": 100}, "source_vocabulary: is no setting"),
        ("rnn", {"pad": 1}, "pad: is no setting"),
        ("gpt", {}, "model: must be one of rnn, transformer, got 'gpt'"),
        # The rules of the three configurations are asked at once.
        ("rnn", {"dev": 0}, "dev: must be at least 1"),
        ("rnn", {"rate": -1}, "rate: must be above 0"),
        ("rnn", {"cell": "rnn"}, "cell: must be 'gru' or 'lstm'"),
        ("rnn", {"dropout": 1}, r"dropout: must be in \[0, 1\)"),
        ("transformer", {"width": 30, "heads": 4}, "width: must be even and a multiple of heads"),
        ("rnn", {"shared_embeddings": True}, r"needs one vocabulary for both sides; set joint too \(--joint\)"),
    ],
)
def test_mistakes_in_settings(model, settings, message):
    with pytest.raises(ArgumentError, match=message):
        sort_settings(model, settings)


def test_shared_embeddings_go_with_a_joint_vocabulary():
    assert sort_settings("rnn", {"shared_embeddings": True, "joint": True})[2] == {"shared_embeddings": True}
