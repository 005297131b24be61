"""Guided alignment: attention learns from word links, and everything around training knows of them."""

import math
import random
import shutil

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

from limelight.cli.train import train as command
from limelight.data import Corpus, Pair
from limelight.errors import ArgumentError, DataError, RunFolderError
from limelight.evaluation.alignment import aer
from limelight.pharaoh import parse_pharaoh
from limelight.run_folder import RunFolder
from limelight.training import resume, sort_settings, train
from limelight.training.losses import guided_loss
from limelight.training.prepare import _with_loose_ends
from limelight.training.progress import Silent
from limelight.weights import read_tensors

COUNT = 160
SIZES = {
    "rnn": {"attention": "bahdanau"},
    "general": {"attention": "general"},
    "transformer": {"width": 16, "feedforward": 19, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "warmup": 5},
}
SETTINGS = TINY | {"epochs": 6, "rate": 2e-2, "batch_tokens": 128, "dev": 11, "test": 0, "loose_ends": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words and the same in reverse order, and links that no model would find by itself: all with the first word."""
    folder = tmp_path_factory.mktemp("guided")
    path = write_reversal(folder / "c.tsv", COUNT)
    lines = path.read_text(encoding="utf-8").splitlines()
    links = [" ".join(f"0-{j}" for j in range(len(line.split("\t")[0].split()))) for line in lines]
    (folder / "links").write_text("\n".join(links) + "\n", encoding="utf-8")
    return path


def settings_of(kind):
    own = {
        name: value for name, value in SETTINGS.items() if kind != "transformer" or name not in ("embedding", "hidden")
    }
    return own | SIZES[kind] | {"model": "transformer" if kind == "transformer" else "rnn"}


def run(corpus, out, kind, **more):
    torch.manual_seed(1)
    return train(corpus, out=out, display=Silent(), **settings_of(kind) | more)[0]


def error_rate(translator, corpus):
    pairs = list(Corpus(tsv=corpus, links=corpus.parent / "links").pairs())
    found = translator.align((pair.source, pair.target) for pair in pairs)
    gold = [parse_pharaoh(" ".join(f"{i}-{j}" for i, j in pair.links)) for pair in pairs]
    return aer(found, gold).aer


@pytest.mark.parametrize("kind", SIZES)
def test_attention_learns_the_links(corpus, tmp_path, kind):
    # Of six seeds all reach an AER of 0 after 8 epochs; after 6 one still has 0.26.
    free = run(corpus, tmp_path / "free", kind, epochs=8)
    guided = run(corpus, tmp_path / "led", kind, epochs=8, guided_alignment=corpus.parent / "links", guided_weight=1.0)
    before, after = error_rate(free, corpus), error_rate(guided, corpus)
    assert after < 0.25 < before, (before, after)


def test_the_loss_by_hand():
    log_weights = torch.tensor([0.5, 0.25, 1.0]).log()
    loss = guided_loss(log_weights, torch.tensor([0.5, 0.5, 1.0]))
    assert loss.item() == pytest.approx(1.5 * math.log(2))


class Stops(Silent):
    """Ctrl-C, twice, after the ninth update."""

    def update(self, report):
        if report.update >= 10:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
def test_resumed_ends_with_the_same_weights(corpus, tmp_path, kind):
    more = {"guided_alignment": corpus.parent / "links", "save_seconds": 0, "dropout": 0.2, "epochs": 2}
    run(corpus, tmp_path / "whole", kind, **more)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, out=tmp_path / "cut", display=Stops(), **settings_of(kind) | more)
    # The encoded part is made anew from the parts as text, links and all.
    shutil.rmtree(tmp_path / "cut" / "data" / "train")
    resume(tmp_path / "cut", display=Silent())
    for name in ("best", "last"):
        one, two = (read_tensors(tmp_path / folder / f"{name}.safetensors")[0] for folder in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_run_knows_that_it_was_guided(corpus, tmp_path):
    out = tmp_path / "run"
    run(corpus, out, "transformer", guided_alignment=corpus.parent / "links", guided_weight=0.1, epochs=1)
    config = RunFolder(out).read_config()
    assert config["guided_alignment"] == [str(corpus.parent / "links")]
    assert config["training"]["guided_weight"] == 0.1
    assert (config["model"]["alignment_layer"], config["model"]["alignment_head"]) == (-2, 0)
    with pytest.raises(ArgumentError, match="guided_weight: cannot change when a run is resumed"):
        resume(out, display=Silent(), guided_weight=0.2)
    shutil.rmtree(out / "data" / "train")
    (out / "data" / "train.links").unlink()
    with pytest.raises(RunFolderError, match=r"train\.links does not exist"):
        resume(out, display=Silent())


def test_wrong_links_leave_no_run_behind(corpus, tmp_path):
    links = tmp_path / "links"
    links.write_text("0-0\n" * (COUNT - 1), encoding="utf-8")
    out = tmp_path / "run"
    with pytest.raises(DataError, match=f"links has {COUNT - 1} lines of links and .* has {COUNT} lines"):
        run(corpus, out, "rnn", guided_alignment=links)
    assert not out.exists()
    with pytest.raises(DataError, match="nowhere does not exist"):
        run(corpus, out, "rnn", guided_alignment=tmp_path / "nowhere")


def test_settings_that_do_not_go_together(corpus, tmp_path):
    with pytest.raises(ArgumentError, match="guided_weight: needs word links to learn from; give guided_alignment"):
        run(corpus, tmp_path / "run", "rnn", guided_weight=0.1)
    with pytest.raises(ArgumentError, match=r"guided_alignment: word links can guide .* got attention='none'"):
        run(corpus, tmp_path / "run", "rnn", attention="none", guided_alignment=corpus.parent / "links")
    with pytest.raises(ArgumentError, match="guided_weight: must be above 0"):
        run(corpus, tmp_path / "run", "rnn", guided_weight=0.0, guided_alignment=corpus.parent / "links")
    assert sort_settings("transformer", {"decoder_layers": 1}, guided=True)[2]["alignment_layer"] == -1
    chosen = sort_settings("transformer", {"alignment_layer": 0, "alignment_head": 3}, guided=True)[2]
    assert (chosen["alignment_layer"], chosen["alignment_head"]) == (0, 3)
    assert "alignment_head" not in sort_settings("transformer", {})[2]
    assert command.__annotations__["guided_alignment"]


def test_pairs_without_their_closing_punctuation_keep_the_right_links():
    pair = Pair("¿ a b ?", "x y.", 1, frozenset({(0, 1), (1, 0), (2, 1), (3, 1)}))
    _, loose = _with_loose_ends([pair], 5)
    assert (loose.source.split(), loose.target.split()) == (["a", "b"], ["x", "y"])
    assert loose.links == {(0, 0), (1, 1)}


def test_words_of_a_line_may_be_linked_in_any_number(tmp_path):
    """Many links, none, and the same target twice, spread over subwords: training runs and is finite."""
    chosen = random.Random(5)
    rows, links = [], []
    for _ in range(60):
        words = ["".join(chosen.choices("abc", k=chosen.randint(1, 4))) for _ in range(chosen.randint(1, 6))]
        rows.append(f"{' '.join(words)}\t{' '.join(words)}\n")
        links.append(
            " ".join(
                f"{chosen.randrange(len(words))}-{chosen.randrange(len(words))}" for _ in range(chosen.randint(0, 9))
            )
        )
    (tmp_path / "c.tsv").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "links").write_text("\n".join(links) + "\n", encoding="utf-8")
    more = {"tokens": "bpe", "vocabulary": 24, "guided_alignment": tmp_path / "links", "epochs": 1, "precision": "bf16"}
    for kind in SIZES:
        translator = run(tmp_path / "c.tsv", tmp_path / kind, kind, **more)
        assert all(bool(parameter.isfinite().all()) for parameter in translator.model.parameters())
