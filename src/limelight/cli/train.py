"""`limelight train`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from limelight.cli.options import MOST_THREADS, Source, Target, Tsv, pairs_from, quoted, say

_DATA, _SIZES, _HOW = "Text", "Model", "Training"

# Importing the settings' own classes would import torch, for `--help` too; a test holds these texts against them.
_NOT_SETTINGS = ("context", "corpus", "source", "target", "out", "overwrite", "resume", "dev_file", "guided_alignment")


def _option(panel: str, text: str, default: str | None = None, flag: str | None = None, **limits: float) -> Any:
    """An option without a value of its own: what the user leaves out is the training's to fill in."""
    shown = f"{text} [dim]\\[default: {default}][/dim]" if default else text
    return typer.Option(*([flag] if flag else []), help=shown, rich_help_panel=panel, show_default=False, **limits)  # pyright: ignore


def train(
    context: typer.Context,
    corpus: Tsv = None,
    source: Source = None,
    target: Target = None,
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("runs/translation"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out where it was saved.")] = False,
    dev_file: Annotated[Path | None, _option(_DATA, "A TSV to validate on, instead of a part held out.")] = None,
    dev: Annotated[int | None, _option(_DATA, "Source sentences held out for validation.", "1000")] = None,
    test: Annotated[int | None, _option(_DATA, "Source sentences held out for a test, data/test.tsv.", "2000")] = None,
    tokens: Annotated[str | None, _option(_DATA, "bpe, word or char.", "bpe")] = None,
    vocabulary: Annotated[int | None, _option(_DATA, "Most tokens of a vocabulary.", "8000")] = None,
    joint: Annotated[bool | None, _option(_DATA, "One vocabulary for both sides.", "no", "--joint")] = None,
    lowercase: Annotated[bool | None, _option(_DATA, "Lower-case all text.", "no", "--lowercase")] = None,
    max_words: Annotated[int | None, _option(_DATA, "Longer sentences are skipped.", "250")] = None,
    max_tokens: Annotated[int | None, _option(_DATA, "Longer sentences are skipped.", "256")] = None,
    loose_ends: Annotated[
        int | None, _option(_DATA, "Pairs of so many words are also learned without closing punctuation.", "3")
    ] = None,
    model: Annotated[str | None, _option(_SIZES, "rnn or transformer.", "rnn")] = None,
    attention: Annotated[
        str | None,
        _option(
            _SIZES,
            "rnn: bahdanau, coverage; Luong's dot, general, concat, location, local-m, local-p; none.",
            "bahdanau",
        ),
    ] = None,
    window: Annotated[int | None, _option(_SIZES, "rnn: half of the window of local-m and local-p.", "10")] = None,
    source_positions: Annotated[
        int | None, _option(_SIZES, "rnn: places of the source that location attends to.", "256")
    ] = None,
    input_feeding: Annotated[
        bool | None, _option(_SIZES, "rnn: Luong's input feeding.", "no", "--input-feeding")
    ] = None,
    cell: Annotated[str | None, _option(_SIZES, "rnn: gru or lstm.", "gru")] = None,
    embedding: Annotated[int | None, _option(_SIZES, "rnn: width of the embeddings.", "256")] = None,
    hidden: Annotated[int | None, _option(_SIZES, "rnn: width of the recurrent layers.", "256")] = None,
    layers: Annotated[int | None, _option(_SIZES, "rnn: recurrent layers.", "1")] = None,
    width: Annotated[int | None, _option(_SIZES, "transformer: width.", "256")] = None,
    feedforward: Annotated[int | None, _option(_SIZES, "transformer: width of the feed-forward nets.", "1024")] = None,
    heads: Annotated[int | None, _option(_SIZES, "transformer: attention heads.", "4")] = None,
    encoder_layers: Annotated[int | None, _option(_SIZES, "transformer: blocks in the encoder.", "3")] = None,
    decoder_layers: Annotated[int | None, _option(_SIZES, "transformer: blocks in the decoder.", "3")] = None,
    norm: Annotated[str | None, _option(_SIZES, "transformer: pre or post.", "pre")] = None,
    dropout: Annotated[float | None, _option(_SIZES, "Share of units dropped.", "0.15 rnn, 0.1 transformer")] = None,
    shared_embeddings: Annotated[
        bool | None, _option(_SIZES, "One embedding for both sides; needs --joint.", "no", "--shared-embeddings")
    ] = None,
    tied_output: Annotated[
        bool | None,
        _option(
            _SIZES,
            "Output weights are the target embedding.",
            "yes",
            "--tied-output/--no-tied-output",
        ),
    ] = None,
    epochs: Annotated[int | None, _option(_HOW, "Passes over the training part.", "10")] = None,
    updates: Annotated[int | None, _option(_HOW, "Stop after this many updates instead.")] = None,
    minutes: Annotated[float | None, _option(_HOW, "Stop after this time at the latest.")] = None,
    batch_tokens: Annotated[int | None, _option(_HOW, "Most tokens of a batch, padding included.", "1024")] = None,
    optimizer: Annotated[str | None, _option(_HOW, "adam or adamw.", "adam")] = None,
    rate: Annotated[float | None, _option(_HOW, "Peak learning rate.", "0.002 rnn, 0.001 transformer")] = None,
    schedule: Annotated[str | None, _option(_HOW, "constant, linear, cosine or inverse-sqrt.", "cosine")] = None,
    warmup: Annotated[int | None, _option(_HOW, "Updates of warm-up.", "200 rnn, 1000 transformer")] = None,
    weight_decay: Annotated[float | None, _option(_HOW, "Of AdamW.", "0.01")] = None,
    label_smoothing: Annotated[float | None, _option(_HOW, "Share of smoothed labels.", "0.1")] = None,
    guided_alignment: Annotated[
        Path | None,
        _option(_HOW, "Word links that attention learns from, a line for each line of text: 0-0 1-2 ..., .gz too."),
    ] = None,
    guided_weight: Annotated[float | None, _option(_HOW, "Of --guided-alignment in the loss.", "0.05")] = None,
    coverage_weight: Annotated[
        float | None, _option(_HOW, "Of looking again in the loss, for --attention coverage; 1 in the paper.", "0")
    ] = None,
    clip: Annotated[float | None, _option(_HOW, "Largest gradient norm; 0 for no clipping.", "1")] = None,
    validate_every: Annotated[int | None, _option(_HOW, "Updates between validations.", "an epoch's")] = None,
    patience: Annotated[
        int | None, _option(_HOW, "Stop after so many validations without a better BLEU; 0 never does.", "0")
    ] = None,
    average: Annotated[int | None, _option(_HOW, "Average the weights of the last N validations.", "0")] = None,
    precision: Annotated[str | None, _option(_HOW, "fp32 or bf16.", "fp32")] = None,
    seed: Annotated[int | None, _option(_HOW, "Fixes split, weights, batches and dropout.", "1")] = None,
    save_seconds: Annotated[float | None, _option(_HOW, "Longest time between two saves.", "60")] = None,
    device: Annotated[str | None, _option(_HOW, "auto, cpu, cuda, cuda:1, ...", "auto")] = None,
    threads: Annotated[int | None, _option(_HOW, "CPU threads.", "all cores", max=MOST_THREADS)] = None,
) -> None:
    """Learn to translate from parallel text.

    [bold]limelight train spa.txt --lowercase --out runs/es[/bold]

    Lines that cannot be used are skipped, counted and told. Ctrl-C saves; [bold]--resume[/bold] goes on exactly there.

    Then: [bold]limelight translate runs/es "good morning" --show[/bold]
    """
    from limelight import training
    from limelight.errors import ArgumentError

    settings = {
        name: value for name, value in context.params.items() if name not in _NOT_SETTINGS and value is not None
    }
    given = None if corpus is source is target is None else pairs_from(corpus, source, target)
    if resume and overwrite:
        raise ArgumentError("resume: does not go with --overwrite; choose one")
    with _told_how_to_go_on(out, resume):
        if resume:
            _check_same(out, "corpus", [] if given is None else given.paths)
            _check_same(out, "dev_file", [] if dev_file is None else [dev_file])
            _check_same(out, "guided_alignment", [] if guided_alignment is None else [guided_alignment])
            _, progress = training.resume(out, **settings)
        else:
            pairs = given or pairs_from(corpus, source, target)
            _, progress = training.train(
                pairs,
                out=out,
                dev_file=dev_file,
                guided_alignment=guided_alignment,
                overwrite=overwrite,
                **settings,
            )
    if not progress.finished:
        say(f"stopped at update {progress.update}, saved; go on with: {_resume(out)}")
        raise typer.Exit(130)
    say(f"done: best dev BLEU {progress.best:.2f} after {_duration(progress.seconds)} of training")
    say(f'try:  limelight translate {quoted(out)} "..." --show')
    if (out / "data" / "test.tsv").exists():
        say(f"      limelight evaluate {quoted(out)} {quoted(out / 'data' / 'test.tsv')}")


@contextmanager
def _told_how_to_go_on(out: Path, resuming: bool) -> Iterator[None]:
    """Whatever ends training early, the user hears whether something was saved, and how to go on."""
    from limelight.errors import OutputError
    from limelight.run_folder import RunFolder

    last = RunFolder(out).last
    before = _written(last)
    try:
        yield
    except KeyboardInterrupt:
        if resuming or _written(last) != before:
            say(f"stopped at once; the last save is whole; go on with: {_resume(out)}")
        else:
            say("stopped before training began; nothing is saved; start the same command again")
        raise typer.Exit(130) from None
    except OutputError as error:
        if resuming or _written(last) != before:
            raise OutputError(f"{error}\nthe last save is whole; then go on with: {_resume(out)}") from error
        raise


def _check_same(out: Path, name: str, given: Iterable[Path]) -> None:
    """The command that began a run may be repeated with --resume, but not with other files."""
    from limelight.errors import ArgumentError
    from limelight.run_folder import RunFolder

    now = [path.resolve() for path in given]
    had = [Path(path).resolve() for path in RunFolder(out).read_config().get(name, [])] if now else []
    if now != had:
        begun = f"with {' and '.join(map(str, had))}" if had else "without one"
        raise ArgumentError(f"{name}: the run in {out} was begun {begun}; leave it out")


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _resume(out: Path) -> str:
    return f"limelight train --resume --out {quoted(out)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
