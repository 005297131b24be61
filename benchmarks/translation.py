"""Translation: target tokens per second in training, sentences per second in decoding, at the sizes of Multi30k tables.

Transformer: 4 + 4 layers, width 128, feed-forward 256, 4 heads. RNN: bidirectional GRU 256 with Bahdanau attention.
Joint BPE of 10,000 tokens, batches of 4,096 tokens, fp32, Adam.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.plain_torch import TorchBahdanau, TorchTransformer
from benchmarks.timing import interleaved
from limelight.data import Batch, Batches, Corpus, Pair, write_tsv
from limelight.models import ModelConfig, Seq2SeqConfig, TransformerConfig, build_model
from limelight.run_folder import RunFolder
from limelight.training import DataConfig, output_loss
from limelight.training.prepare import Prepared, prepare
from limelight.translator import Translator

_BATCHES = 6  # per round and side
_LENGTH = 14  # tokens of a German reference


def rows(data: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Time training against plain torch, then decoding."""
    with tempfile.TemporaryDirectory() as folder:
        prepared, sentences = _prepare(data, Path(folder))
        v = {"source_vocabulary": len(prepared.source_tokenizer), "target_vocabulary": len(prepared.target_tokenizer)}
        transformer = TransformerConfig(
            **v,
            width=128,
            feedforward=256,
            heads=4,
            encoder_layers=4,
            decoder_layers=4,
            dropout=0.3,
            shared_embeddings=True,
        )
        rnn = Seq2SeqConfig(**v, embedding=256, hidden=256, dropout=0.3, tied_output=False)  # the tables' size
        found = []
        for name, config, peer in (
            ("Transformer 4+4, d 128", transformer, TorchTransformer(transformer)),
            ("RNN GRU 256, Bahdanau", rnn, TorchBahdanau(rnn)),
        ):
            found += _training(name, config, peer, prepared, rounds)
            found += _decoding(name, config, prepared, sentences)
        return found


def _prepare(data: Path | None, folder: Path) -> tuple[Prepared, list[str]]:
    """The Multi30k files in `data` (train.lc.norm.tok.en, ...), or the embedded phrases."""
    run = RunFolder(folder / "run")
    run.create()
    settings = DataConfig(vocabulary=10_000, joint=True, dev=100, test=0)
    if data is None:
        from limelight.data.phrases import generate

        phrases = generate(size=20_000)
        write_tsv(folder / "phrases.tsv", (Pair(p.source, p.target) for p in phrases))
        return prepare(run, Corpus(tsv=folder / "phrases.tsv"), None, settings, 1, print), [
            p.source for p in phrases[:1000]
        ]
    corpus = Corpus(source=data / "train.lc.norm.tok.en", target=data / "train.lc.norm.tok.de")
    test = (data / "test_2016_flickr.lc.norm.tok.en").read_text(encoding="utf-8").splitlines()
    return prepare(run, corpus, None, settings, 1, print), test


def _training(name: str, config: ModelConfig, peer: nn.Module, prepared: Prepared, rounds: int) -> list[dict[str, Any]]:
    batches = Batches(prepared.corpus, max_tokens=4096, seed=1)
    chosen = [batch for _, batch in zip(range(_BATCHES), batches.epoch(0), strict=False)]
    tokens = sum(batch.target_tokens for batch in chosen)
    torch.manual_seed(1)
    model = build_model(config)

    def ours(batch: Batch) -> torch.Tensor:
        features, _ = model(batch.source, batch.source_lengths, batch.target[:, :-1])
        real = torch.arange(features.shape[1]) < batch.target_lengths[:, None]
        loss, _ = output_loss(
            features[real], model.output.weight, model.output.bias, batch.target[:, 1:][real], label_smoothing=0.1
        )
        return loss / batch.target_tokens

    sides = {
        "limelight": _epoch(model, ours, chosen),
        "plain torch": _epoch(peer, lambda batch: peer.loss(batch.source, batch.target), chosen),
    }
    timings = interleaved(sides, rounds=rounds)
    parameters = {"limelight": model, "plain torch": peer}
    return [
        {
            "model": name,
            "work": "training",
            "side": side,
            "parameters": sum(p.numel() for p in parameters[side].parameters()),
            "target_tokens_per_second": round(tokens / timing.median),
            "quartiles": [round(tokens / timing.high), round(tokens / timing.low)],
        }
        for side, timing in timings.items()
    ]


def _epoch(model: nn.Module, loss_of: Callable[[Batch], torch.Tensor], batches: list[Batch]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    parameters = list(model.parameters())

    def run() -> None:
        model.train()
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss_of(batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    return run


def _decoding(name: str, config: ModelConfig, prepared: Prepared, sentences: list[str]) -> list[dict[str, Any]]:
    """Decoding after a little training, every translation of the length that references have on average.

    What a model has learned, and when it stops, would otherwise decide how much there is to do.
    """
    torch.manual_seed(1)
    model = build_model(config)
    _learn(model, Batches(prepared.corpus, max_tokens=4096, seed=1))
    translator = Translator(model, prepared.source_tokenizer, prepared.target_tokenizer)
    limits = translator.limits
    translator.limits = replace(limits, ratio=0.0, extra=_LENGTH, banned=(*limits.banned, limits.eos))
    found = []
    for beam in (1, 5):
        for observe in (False, True):
            work = partial(translator.translate, sentences, beam=beam, observe=observe)
            tokens = sum(len(translation.target_tokens) for translation in work())
            timing = interleaved({"": work}, rounds=3)[""]
            found.append(
                {
                    "model": name,
                    "work": f"{'greedy' if beam == 1 else f'beam {beam}'}{', looking' if observe else ''}",
                    "side": "limelight",
                    "sentences": len(sentences),
                    "tokens_per_sentence": round(tokens / len(sentences), 1),
                    "sentences_per_second": round(len(sentences) / timing.median, 1),
                    "quartiles": [round(len(sentences) / timing.high, 1), round(len(sentences) / timing.low, 1)],
                }
            )
    return found


def _learn(model: nn.Module, batches: Batches, updates: int = 80) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model.train()
    for _, batch in zip(range(updates), batches.epoch(0), strict=False):
        optimizer.zero_grad(set_to_none=True)
        features, _ = model(batch.source, batch.source_lengths, batch.target[:, :-1])
        real = torch.arange(features.shape[1]) < batch.target_lengths[:, None]
        loss, _ = output_loss(features[real], model.output.weight, model.output.bias, batch.target[:, 1:][real])
        (loss / batch.target_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
