import json
import math
import threading
from dataclasses import replace

import pytest
import torch
from tests.support.corpora import TINY, write_reversal

import limelight
from limelight.data import Corpus
from limelight.errors import ArgumentError, DataError
from limelight.run_folder import RunFolder
from limelight.training import loop, train
from limelight.training.loop import TrainingDivergedError
from limelight.training.progress import Report, Silent
from limelight.weights import read_tensors, write_tensors


class Heard(Silent):
    """Remembers what it is told."""

    def __init__(self):
        self.lines: list[str] = []
        self.reports: list[Report] = []
        self.closed = 0

    def say(self, line):
        self.lines.append(line)

    def update(self, report):
        self.reports.append(report)

    def close(self):
        self.closed += 1


@pytest.fixture
def corpus(tmp_path):
    return write_reversal(tmp_path / "c.tsv", 83)


def tiny(corpus, out, **settings):
    return train(corpus, out=out, **{"display": Silent()} | TINY | settings)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def same(one, two):
    tensors, others = read_tensors(one)[0], read_tensors(two)[0]
    assert tensors.keys() == others.keys()
    return all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def scores(monkeypatch, found):
    """Let validation find these, BLEU or (BLEU, chrF), one after the other."""
    real, rest = loop.corpus_quality, iter(found)

    def quality(*args, **kwargs):
        bleu, chrf = one if isinstance(one := next(rest), tuple) else (one, 50.0)
        return replace(real(*args, **kwargs), bleu=bleu, chrf=chrf)

    monkeypatch.setattr(loop, "corpus_quality", quality)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "bahdanau", "embedding": 16, "hidden": 32, "rate": 1e-2, "batch_tokens": 128},
        {"attention": "general", "input_feeding": True, "cell": "lstm", "embedding": 16, "hidden": 32, "rate": 1e-2,
         "batch_tokens": 128},
        {"model": "transformer", "width": 64, "feedforward": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
         "tied_output": False, "rate": 5e-3, "batch_tokens": 256},
    ],
)  # fmt: skip
def test_a_small_corpus_is_learned_by_heart(tmp_path, settings):
    corpus = write_reversal(tmp_path / "c.tsv", 101, longest=4, letters="abcd")
    how = {"tokens": "word", "warmup": 10, "dropout": 0.0, "label_smoothing": 0.0, "updates": 130, "threads": 1}
    translator, progress = train(
        corpus, out=tmp_path / "run", dev_file=corpus, validate_every=500, display=Silent(), **how, **settings
    )
    assert progress.finished
    assert log_of(tmp_path / "run")[-1]["exact_match"] == 1.0
    assert progress.best == pytest.approx(100.0)
    assert translator.translate(["a b c d"])[0].text == "d c b a"


def test_of_equal_bleu_the_higher_chrf_is_better(corpus, tmp_path, monkeypatch):
    # Where no sentence has four tokens, BLEU is always 0.
    scores(monkeypatch, [(0.0, 30.0), (0.0, 50.0), (0.0, 40.0)])
    _, progress = tiny(corpus, tmp_path / "run", updates=3, validate_every=1)
    assert read_tensors(tmp_path / "run/best.safetensors")[1]["update"] == 2
    assert (progress.best, progress.best_chrf, progress.stale) == (0.0, 50.0, 1)


def test_what_a_call_gives_back(corpus, tmp_path):
    heard = Heard()
    translator, progress = tiny(corpus, tmp_path / "run", epochs=2, display=heard)
    assert limelight.train is train
    assert progress.finished
    # Both epochs are whole, though they need not have the same number of batches.
    assert (progress.epoch, progress.batch) == (1, translator_batches(tmp_path / "run", 1))
    assert progress.update == sum(translator_batches(tmp_path / "run", epoch) for epoch in (0, 1))
    assert progress.validated == progress.update
    assert heard.closed == 1
    assert any("83 pairs of" in line for line in heard.lines)
    assert any(line.startswith("vocabularies: ") for line in heard.lines)
    assert sum("dev BLEU" in line for line in heard.lines) == 2
    assert [report.update for report in heard.reports] == [1, *range(10, progress.update + 1, 10)]
    last = heard.reports[-1]
    assert (last.total, last.epoch) == (progress.update, 2)
    assert last.tokens_per_second > 0
    assert 0 < last.loss < 2 * math.log(15)
    # The translator has the best weights.
    best, _ = read_tensors(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(p, best[name]) for name, p in translator.model.named_parameters())
    assert not translator.model.training


def translator_batches(out, epoch):
    from limelight.data import Batches, EncodedCorpus

    return Batches(EncodedCorpus.open(out / "data" / "train"), max_tokens=TINY["batch_tokens"], seed=1).count(epoch)


def test_the_seed_decides_everything(corpus, tmp_path):
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        torch.manual_seed(hash(name) % 1000)
        tiny(corpus, tmp_path / name, updates=7, seed=seed, dropout=0.3)
    for file in ("best.safetensors", "last.safetensors"):
        if file.startswith("best"):
            assert same(tmp_path / "one" / file, tmp_path / "same" / file)
            assert not same(tmp_path / "one" / file, tmp_path / "other" / file)
    one, two = (read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("one", "same"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "one/data/dev.tsv").read_text() == (tmp_path / "same/data/dev.tsv").read_text()
    assert (tmp_path / "one/data/dev.tsv").read_text() != (tmp_path / "other/data/dev.tsv").read_text()


def test_the_log_is_json_lines_with_what_happened(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_EVERY", 5)
    _, progress = tiny(corpus, tmp_path / "run", updates=11, validate_every=4, average=2)
    records = log_of(tmp_path / "run")
    assert [(r["event"], r["update"]) for r in records] == [
        ("dev", 4), ("train", 5), ("dev", 8), ("train", 10), ("dev", 11), ("average", 11),
    ]  # fmt: skip
    assert [r["tokens"] for r in records] == sorted(r["tokens"] for r in records)
    assert records[-1]["of"] == [8, 11]
    assert records[-1]["tokens"] == progress.tokens
    for record in records:
        assert {"event", "update", "epoch", "tokens", "seconds"} <= record.keys()
        if record["event"] == "train":
            assert record["tokens_per_second"] > 0
            assert 0 < record["rate"] <= 2e-3
            assert 0 < record["loss"] < 2 * math.log(15)
        else:
            assert 0 <= record["bleu"] <= 100


def test_the_first_loss_is_that_of_a_uniform_guess(corpus, tmp_path):
    # A new model knows nothing: nearly the logarithm of the vocabulary's size.
    heard = Heard()
    tiny(corpus, tmp_path / "run", updates=1, display=heard)
    assert heard.reports[0].loss == pytest.approx(math.log(4 + 11), abs=0.3)


def test_the_average_is_the_mean_of_the_last_snapshots(corpus, tmp_path, monkeypatch):
    kept = {}

    def spy(path, tensors, facts):
        if path.parent.name == "snapshots":
            kept[path.stem] = {name: tensor.clone() for name, tensor in tensors.items()}
        write_tensors(path, tensors, facts)

    monkeypatch.setattr(loop, "write_tensors", spy)
    # Every BLEU is better than the one before: what is written last is the average.
    scores(monkeypatch, range(1, 100))
    tiny(corpus, tmp_path / "run", updates=7, validate_every=2, average=3)
    assert list(kept) == ["2", "4", "6", "7"]
    assert sorted(path.stem for path in (tmp_path / "run/snapshots").iterdir()) == ["4", "6", "7"]
    best, facts = read_tensors(tmp_path / "run/best.safetensors")
    for name, tensor in best.items():
        mean = (kept["4"][name].double() + kept["6"][name].double() + kept["7"][name].double()) / 3
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-7)
    assert not same_weights(best, kept["7"])
    assert facts["dev_bleu"] == 5
    # The run itself stands where it was, not at the average.
    last = {n.removeprefix("model/"): t for n, t in read_tensors(tmp_path / "run/last.safetensors")[0].items()}
    assert same_weights(kept["7"], last)


def same_weights(weights, others):
    return all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_an_average_that_is_worse_is_not_kept(corpus, tmp_path, monkeypatch):
    scores(monkeypatch, [30.0, 20.0, 25.0])
    heard = Heard()
    _, progress = tiny(corpus, tmp_path / "run", updates=4, validate_every=2, average=2, display=heard)
    assert read_tensors(tmp_path / "run/best.safetensors")[1] == {"update": 2, "dev_bleu": 30.0}
    assert progress.best == 30.0
    assert heard.lines[-1] == "average of the last 2: dev BLEU 25.00, which is not kept"


def test_patience_ends_training(corpus, tmp_path, monkeypatch):
    scores(monkeypatch, [10.0, 20.0, 20.0, 19.0, 21.0])
    _, progress = tiny(corpus, tmp_path / "run", updates=1000, validate_every=3, patience=2)
    assert progress.finished
    assert (progress.update, progress.stale, progress.best) == (12, 2, 20.0)
    assert read_tensors(tmp_path / "run/best.safetensors")[1]["update"] == 6


def test_a_time_limit_ends_training_with_a_validation(corpus, tmp_path, monkeypatch):
    heard = Heard()
    _, progress = tiny(corpus, tmp_path / "run", updates=100_000, minutes=0.5 / 60, display=heard)
    assert progress.finished
    assert progress.update < 10_000
    assert progress.seconds >= 0.5
    assert log_of(tmp_path / "run")[-1]["event"] == "dev"
    assert log_of(tmp_path / "run")[-1]["update"] == progress.update
    # What is shown as the end is what the time allows, not what was asked for.
    assert heard.reports[-1].total < 20_000


@pytest.mark.parametrize("model", ["rnn", "transformer"])
def test_bf16_learns_as_well(corpus, tmp_path, model):
    sizes = {"width": 12, "feedforward": 17, "heads": 3, "encoder_layers": 1, "decoder_layers": 1}
    settings = TINY if model == "rnn" else {k: v for k, v in TINY.items() if k not in ("embedding", "hidden")} | sizes
    losses = {}
    for precision in ("fp32", "bf16"):
        _, progress = train(
            corpus, out=tmp_path / precision, model=model, precision=precision, updates=17, rate=1e-2,
            display=Silent(), **settings,
        )  # fmt: skip
        losses[precision] = progress.loss
        assert progress.skipped == 0
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    weights, _ = read_tensors(tmp_path / "bf16/best.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("attention", "cell", "fed"),
    [("bahdanau", "lstm", False), ("dot", "gru", True), ("general", "lstm", False), ("concat", "lstm", True),
     ("none", "lstm", False), ("none", "gru", False), ("coverage", "gru", False), ("location", "gru", True),
     ("local-m", "gru", True), ("local-p", "lstm", False)],
)  # fmt: skip
def test_bf16_runs_with_every_attention(corpus, tmp_path, attention, cell, fed):
    how = {"attention": attention, "cell": cell, "input_feeding": fed, "layers": 2, "precision": "bf16", "updates": 2}
    _, progress = tiny(corpus, tmp_path / "run", **how)
    assert progress.skipped == 0
    assert math.isfinite(progress.loss)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_an_update_is_adams(corpus, tmp_path, optimizer):
    # The first step of Adam moves each weight by the rate, against the sign of its gradient.
    tiny(corpus, tmp_path / "run", updates=1, warmup=0, schedule="constant", optimizer=optimizer, weight_decay=0.5)
    tiny(corpus, tmp_path / "still", updates=1, warmup=0, rate=1e-30)
    moved, start = (read_tensors(tmp_path / name / "best.safetensors")[0] for name in ("run", "still"))
    step = moved["output.bias"] - start["output.bias"]
    assert step.abs().max().item() == pytest.approx(2e-3, rel=1e-3)
    weight = "encoder.rnn.weight_hh_l0"
    step = (moved[weight] - start[weight]).abs().max().item()
    # Decay moves a weight of up to 1 by another rate · 0.5 · weight.
    assert step <= 2.002e-3 if optimizer == "adam" else 2.1e-3 < step < 3e-3


def test_gradients_are_clipped(corpus, tmp_path):
    norms = {}
    for clip in (0.0, 1e-3):
        tiny(corpus, tmp_path / f"{clip}", updates=1, clip=clip, betas=(0.5, 0.5))
        tensors, _ = read_tensors(tmp_path / f"{clip}/last.safetensors")
        averages = [t for name, t in tensors.items() if name.startswith("optimizer/exp_avg/")]
        # After one update the running mean is (1 - 0.5) times the gradient.
        norms[clip] = 2 * torch.cat([t.flatten() for t in averages]).norm().item()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0.0] > 0.1


def poison(monkeypatch, bad):
    """Make the loss of the updates that `bad` names not a number."""
    real, count = loop.output_loss, iter(range(1, 10**6))

    def poisoned(*args, **kwargs):
        loss, likelihood = real(*args, **kwargs)
        return (loss * math.nan, likelihood * math.nan) if bad(next(count)) else (loss, likelihood)

    monkeypatch.setattr(loop, "output_loss", poisoned)


def test_an_update_without_a_finite_gradient_is_left_out(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, lambda update: update in (3, 4, 9))
    _, progress = tiny(corpus, tmp_path / "run", updates=17)
    assert (progress.skipped, progress.skipped_in_a_row) == (3, 0)
    assert math.isfinite(progress.loss)
    weights, _ = read_tensors(tmp_path / "run/best.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    step = read_tensors(tmp_path / "run/last.safetensors")[0]["optimizer/step/output.bias"]
    assert step.item() == 14
    assert all("NaN" not in line for line in (tmp_path / "run/log.jsonl").read_text().splitlines())


def test_training_that_learns_nothing_any_more_is_ended(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_MOST_SKIPPED", 13)
    poison(monkeypatch, lambda update: update > 10 or update == 5)
    heard = Heard()
    with pytest.raises(
        TrainingDivergedError, match=r"13 updates in a row, up to update 23; start anew .* smaller --rate"
    ):
        tiny(corpus, tmp_path / "run", updates=1000, validate_every=10, display=heard)
    assert heard.closed == 1
    # What was best before is still there.
    weights = RunFolder(tmp_path / "run").load_model().state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_rate_that_is_far_too_high_is_told(corpus, tmp_path):
    with pytest.raises(TrainingDivergedError, match="with a smaller --rate, a longer --warmup or --precision fp32"):
        tiny(corpus, tmp_path / "run", updates=40, rate=1e300, warmup=0)


def test_other_threads_than_the_main_one_can_train(corpus, tmp_path):
    # There signals cannot be caught.
    found = []
    thread = threading.Thread(target=lambda: found.append(tiny(corpus, tmp_path / "run", updates=2)[1]))
    thread.start()
    thread.join()
    assert found[0].finished


def test_where_the_text_can_come_from(corpus, tmp_path):
    rows = [line.split("\t") for line in corpus.read_text().splitlines()]
    for side, name in enumerate(("source", "target")):
        (tmp_path / name).write_text("".join(row[side] + "\n" for row in rows))
    tiny(corpus, tmp_path / "1", updates=1)
    tiny(tmp_path / "source", tmp_path / "2", target=tmp_path / "target", updates=1)
    tiny(Corpus(tsv=corpus), tmp_path / "3", updates=1)
    for other in ("2", "3"):
        assert same(tmp_path / "1/best.safetensors", tmp_path / other / "best.safetensors")
    with pytest.raises(ArgumentError, match="the corpus has its target sentences already; leave target out"):
        tiny(Corpus(tsv=corpus), tmp_path / "4", target=tmp_path / "target")


def test_a_limit_of_words_holds_for_a_corpus_too(corpus, tmp_path):
    heard = Heard()
    tiny(Corpus(tsv=corpus), tmp_path / "run", updates=1, max_words=3, display=heard)
    assert any("with more than 3 words" in line for line in heard.lines)
    assert all(
        len(line.split("\t")[0].split()) <= 3 for line in (tmp_path / "run/data/train.tsv").read_text().splitlines()
    )
    # A corpus with a limit of its own keeps it where none is asked for.
    tiny(Corpus(tsv=corpus, max_words=2), tmp_path / "other", updates=1)
    assert all(
        len(line.split("\t")[0].split()) <= 2 for line in (tmp_path / "other/data/train.tsv").read_text().splitlines()
    )


def test_a_dev_file(corpus, tmp_path):
    dev = write_reversal(tmp_path / "dev.tsv", 11, seed=3)
    tiny(corpus, tmp_path / "run", dev_file=dev, updates=1)
    assert (tmp_path / "run/data/dev.tsv").read_text() == dev.read_text()
    assert len((tmp_path / "run/data/train.tsv").read_text().splitlines()) == 83
    assert not (tmp_path / "run/data/test.tsv").exists()


def test_a_corpus_that_is_too_small_says_so(tmp_path):
    corpus = write_reversal(tmp_path / "c.tsv", 3)
    with pytest.raises(DataError, match=r"too small to split: it has \d distinct .*--dev-file FILE"):
        tiny(corpus, tmp_path / "run")
