"""`limelight train`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_DATA, _SIZES, _HOW = "Text", "Model", "Training"


def _option(panel: str, text: str, flag: str | None = None) -> Any:
    return typer.Option(*([flag] if flag else []), help=text, rich_help_panel=panel, show_default=False)


def train(
    context: typer.Context,
    corpus: Annotated[
        Path | None, typer.Argument(help="source<TAB>target lines, .gz too.", show_default=False)
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Source sentences, a line each.", show_default=False)] = None,
    target: Annotated[Path | None, typer.Option(help="Their translations, a line each.", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("runs/translation"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out where it was saved.")] = False,
    dev_file: Annotated[Path | None, _option(_DATA, "A TSV to validate on, instead of a part held out.")] = None,
    dev: Annotated[int | None, _option(_DATA, "Source sentences held out for validation. [1000]")] = None,
    test: Annotated[int | None, _option(_DATA, "Source sentences held out for a test, data/test.tsv. [2000]")] = None,
    tokens: Annotated[str | None, _option(_DATA, "bpe, word or char. [bpe]")] = None,
    vocabulary: Annotated[int | None, _option(_DATA, "Most tokens of a vocabulary. [8000]")] = None,
    joint: Annotated[bool | None, _option(_DATA, "One vocabulary for both sides.", "--joint")] = None,
    lowercase: Annotated[bool | None, _option(_DATA, "Lower-case all text.", "--lowercase")] = None,
    max_words: Annotated[int | None, _option(_DATA, "Longer sentences are skipped. [250]")] = None,
    max_tokens: Annotated[int | None, _option(_DATA, "Longer sentences are skipped. [256]")] = None,
    loose_ends: Annotated[
        float | None, _option(_DATA, "Share of pairs also learned without closing punctuation. [0]")
    ] = None,
    model: Annotated[str, typer.Option(help="rnn or transformer.", rich_help_panel=_SIZES)] = "rnn",
    attention: Annotated[
        str | None, _option(_SIZES, "rnn: bahdanau, dot, general, concat (Luong) or none. [bahdanau]")
    ] = None,
    input_feeding: Annotated[bool | None, _option(_SIZES, "rnn: Luong's input feeding.", "--input-feeding")] = None,
    cell: Annotated[str | None, _option(_SIZES, "rnn: gru or lstm. [gru]")] = None,
    embedding: Annotated[int | None, _option(_SIZES, "rnn: width of the embeddings. [256]")] = None,
    hidden: Annotated[int | None, _option(_SIZES, "rnn: width of the recurrent layers. [256]")] = None,
    layers: Annotated[int | None, _option(_SIZES, "rnn: recurrent layers. [1]")] = None,
    width: Annotated[int | None, _option(_SIZES, "transformer: width. [256]")] = None,
    feedforward: Annotated[int | None, _option(_SIZES, "transformer: width of the feed-forward nets. [1024]")] = None,
    heads: Annotated[int | None, _option(_SIZES, "transformer: attention heads. [4]")] = None,
    encoder_layers: Annotated[int | None, _option(_SIZES, "transformer: blocks in the encoder. [3]")] = None,
    decoder_layers: Annotated[int | None, _option(_SIZES, "transformer: blocks in the decoder. [3]")] = None,
    norm: Annotated[str | None, _option(_SIZES, "transformer: pre or post. [pre]")] = None,
    dropout: Annotated[float | None, _option(_SIZES, "Share of units dropped. [0.2 rnn, 0.1 transformer]")] = None,
    shared_embeddings: Annotated[
        bool | None, _option(_SIZES, "One embedding for both sides; needs --joint.", "--shared-embeddings")
    ] = None,
    tied_output: Annotated[
        bool | None,
        _option(_SIZES, "Output weights are the target embedding. [rnn no, transformer yes]",
                "--tied-output/--no-tied-output"),
    ] = None,
    epochs: Annotated[int | None, _option(_HOW, "Passes over the training part. [10]")] = None,
    updates: Annotated[int | None, _option(_HOW, "Stop after this many updates instead.")] = None,
    minutes: Annotated[float | None, _option(_HOW, "Stop after this time at the latest.")] = None,
    batch_tokens: Annotated[int | None, _option(_HOW, "Most tokens of a batch, padding included. [4096]")] = None,
    optimizer: Annotated[str | None, _option(_HOW, "adam or adamw. [adam]")] = None,
    rate: Annotated[float | None, _option(_HOW, "Peak learning rate. [0.001]")] = None,
    schedule: Annotated[str | None, _option(_HOW, "constant, linear, cosine or inverse-sqrt. [cosine]")] = None,
    warmup: Annotated[int | None, _option(_HOW, "Updates of warm-up. [200 rnn, 1000 transformer]")] = None,
    weight_decay: Annotated[float | None, _option(_HOW, "Of AdamW. [0.01]")] = None,
    label_smoothing: Annotated[float | None, _option(_HOW, "Share of smoothed labels. [0.1]")] = None,
    clip: Annotated[float | None, _option(_HOW, "Largest gradient norm; 0 for no clipping. [1]")] = None,
    validate_every: Annotated[int | None, _option(_HOW, "Updates between validations. [an epoch's]")] = None,
    patience: Annotated[int | None, _option(_HOW, "Stop after so many validations without a better BLEU. [0: never]")] = None,
    average: Annotated[int | None, _option(_HOW, "Average the weights of the last N validations. [0]")] = None,
    precision: Annotated[str | None, _option(_HOW, "fp32 or bf16. [fp32]")] = None,
    seed: Annotated[int | None, _option(_HOW, "Fixes split, weights, batches and dropout. [1]")] = None,
    save_seconds: Annotated[float | None, _option(_HOW, "Longest time between two saves. [60]")] = None,
    device: Annotated[str | None, _option(_HOW, "auto, cpu, cuda, cuda:1, ... [auto]")] = None,
    threads: Annotated[int | None, _option(_HOW, "CPU threads. [all cores]")] = None,
) -> None:
    """Learn to translate from parallel text.

    [bold]limelight train spa.txt --lowercase --out runs/es[/bold]

    Lines that cannot be used are skipped, counted and told. Ctrl-C saves; [bold]--resume[/bold] goes on exactly there.
    Then: [bold]limelight translate runs/es "good morning" --show[/bold]
    """
    from limelight import training
    from limelight.cli.options import pairs_from
    from limelight.errors import ArgumentError

    own = ("context", "corpus", "source", "target", "out", "overwrite", "resume", "dev_file", "model")
    settings = {name: value for name, value in context.params.items() if name not in own and value is not None}
    if resume:
        if overwrite:
            raise ArgumentError("resume: does not go with --overwrite; choose one")
        _, progress = training.resume(out, **settings)
    else:
        pairs = pairs_from(corpus, source, target)
        _, progress = training.train(
            pairs, out=out, dev_file=dev_file, model=model, overwrite=overwrite, **settings
        )
    if not progress.finished:
        print(f"stopped at update {progress.update}, saved; go on with: limelight train --resume --out {out}", file=sys.stderr)
        raise typer.Exit(130)
    print(f"done: best dev BLEU {progress.best:.2f} after {progress.seconds / 60:.1f} minutes of training", file=sys.stderr)
    print(f"try:  limelight translate {out} \"...\" --show", file=sys.stderr)
    if (out / "data" / "test.tsv").exists():
        print(f"      limelight evaluate {out} {out / 'data' / 'test.tsv'}", file=sys.stderr)
