"""The coverage loss as a part of training."""

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

from limelight.errors import ArgumentError
from limelight.layers import coverage_loss
from limelight.training import TrainingConfig, sort_settings, train
from limelight.training.progress import Silent

SETTINGS = TINY | {"attention": "coverage", "epochs": 10, "rate": 2e-2, "dev": 11, "test": 0}


def run(corpus, out, **more):
    return train(corpus, out=out, display=Silent(), **SETTINGS | more)[0]


def looked_at_again(translator, corpus):
    """The mean over target tokens, by forced decoding."""
    pairs = [line.split("\t") for line in corpus.read_text(encoding="utf-8").splitlines()]
    found = translator.attention((source, target) for source, target in pairs)
    losses = [coverage_loss(torch.as_tensor(one.weights)[None]).flatten() for one in found]
    return float(torch.cat(losses).mean())


def test_a_model_that_is_charged_for_it_looks_less_often_again(tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 120)
    free, charged = (run(corpus, tmp_path / str(weight), coverage_weight=weight) for weight in (0.0, 5.0))
    assert looked_at_again(charged, corpus) < 0.8 * looked_at_again(free, corpus)


def test_a_weight_without_coverage_is_told():
    for settings in ({}, {"attention": "general"}):
        with pytest.raises(ArgumentError, match=r"coverage_weight: is for attention='coverage'.*or leave it out"):
            sort_settings("rnn", {"coverage_weight": 1.0} | settings)
    with pytest.raises(ArgumentError, match="coverage_weight: must be at least 0"):
        TrainingConfig(coverage_weight=-1.0)
    assert sort_settings("rnn", {"coverage_weight": 1.0, "attention": "coverage"})[1].coverage_weight == 1.0
    assert sort_settings("transformer", {})[1].coverage_weight == 0.0
