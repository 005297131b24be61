"""`train`: one call from parallel text to a translator. The command line's `train` is this function."""

import contextlib
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from limelight.allocator import keep_freed_memory
from limelight.data import Batches, Corpus
from limelight.devices import find_device
from limelight.errors import ArgumentError, OutputError, RunFolderError
from limelight.files import file_checksum, remove_leftovers
from limelight.models import TranslationModel, build_model, describe_model, model_config
from limelight.run_folder import RunFolder
from limelight.training.config import DataConfig, TrainingConfig
from limelight.training.loop import Progress, Trainer
from limelight.training.prepare import Prepared, prepare, reopen
from limelight.training.progress import Display, default_display
from limelight.training.settings import changes, sort_settings
from limelight.translator import Translator
from limelight.weights import TRAIN_AGAIN, fill_model, read_tensors


def train(
    corpus: str | Path | Corpus,
    *,
    out: str | Path,
    target: str | Path | None = None,
    dev_file: str | Path | Corpus | None = None,
    guided_alignment: str | Path | None = None,
    model: str = "rnn",
    overwrite: bool = False,
    display: Display | None = None,
    **settings: Any,
) -> tuple[Translator, Progress]:
    """Learn to translate from parallel text.

    Args:
        corpus: a file of `source<TAB>target` lines, .gz too; or, with `target`, the file of source sentences.
        out: the run folder to make.
        target: the file of target sentences, line by line with `corpus`.
        dev_file: a TSV to validate on; by default parts of the corpus are held out, see `DataConfig`.
        guided_alignment: a file of word links in the Pharaoh format (`0-0 1-2`, source word - target word, counted from
            0), a line for each line of the corpus, .gz too. The attention learns from them, with the weight
            `guided_weight`; the sure links count, possible ones do not.
        model: "rnn" or "transformer".
        overwrite: replace what an earlier run left in `out`, once all is ready for the first update.
        display: shows the progress; by default a bar in a terminal, lines elsewhere.
        **settings: any field of `DataConfig`, `TrainingConfig`, and `Seq2SeqConfig` or `TransformerConfig`, by its
            name: `attention="bahdanau"`, `epochs=5`, `lowercase=True`, `hidden=512`.

    Returns:
        a translator with the best weights, and where training ended (`finished` is False after Ctrl-C).

    Raises:
        ArgumentError: an unknown setting, or one out of range. DataError: the corpus cannot be used. OutputError: the
        folder exists, or cannot be written. TrainingDivergedError: nothing could be learned.

    Example:
        >>> translator, _ = limelight.train("spa.txt", out="runs/es", attention="bahdanau", epochs=8)
        >>> translator.translate(["good morning"])[0].text
        '¡Buenos días!'
    """
    keep_freed_memory()
    guided = guided_alignment is not None or (isinstance(corpus, Corpus) and corpus.links is not None)
    data, training, sizes = sort_settings(model, settings, guided=guided)
    find_device(training.device)
    most_words = settings.get("max_words")
    text = _as_corpus(corpus, target, most_words, guided_alignment)
    dev_text = None if dev_file is None else _as_corpus(dev_file, None, most_words)
    run, display = RunFolder(Path(out)), display or default_display()
    _check_readable(run, text, dev_text)
    place = run.create(overwrite=overwrite)
    try:
        _use_threads(training)
        trainer = _begin(place, text, dev_text, model, data, training, sizes, display)
        trainer.run = run.succeed(place)
        display.say(_introduce(trainer))
        progress = trainer.train()
    finally:
        display.close()
    return _with_best_weights(trainer), progress


def resume(out: str | Path, *, display: Display | None = None, **settings: Any) -> tuple[Translator, Progress]:
    """Go on with a run where it was last saved; with the same settings it ends with the same weights, bit for bit.

    Args:
        out: the run folder.
        display: as for `train`.
        **settings: what to change, of `settings.CHANGEABLE`; any other setting of `train` only as it was. A longer run
            (`epochs`, `updates`) changes the schedule's end.

    Returns:
        as `train`.

    Raises:
        RunFolderError: a file is missing or damaged. ArgumentError: a setting that cannot change in the middle of a
        run.
    """
    keep_freed_memory()
    run, display = RunFolder(Path(out)), display or default_display()
    stored, data, training = _stored_settings(run)
    changed = replace(training, **changes(stored, settings))
    if not run.last.exists():
        raise RunFolderError(f"{run.last} is missing, so there is no state to resume from; start anew with --overwrite")
    run.successor.discard()
    for folder in (run.path, run.snapshots, run.data, run.data / "train"):
        remove_leftovers(folder)
    try:
        _use_threads(changed)
        if torch.get_num_threads() != stored.get("threads"):
            display.say(
                f"this run used {stored.get('threads')} threads, now there are {torch.get_num_threads()}: "
                "the weights will differ in their last bits"
            )
        net = run.build_model().to(find_device(changed.device))
        trainer = _trainer(net, _reopen(run, data, stored), run, changed, display)
        trainer.resume()
        if changed != training:
            run.write_config(stored | {"training": asdict(changed)})
        display.say(f"resuming {run.path} at update {trainer.progress.update} of {trainer.total}")
        progress = trainer.train()
    finally:
        display.close()
    return _with_best_weights(trainer), progress


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's results."""
    packages = ("limelight", "torch", "numpy", "tokenizers", "sacrebleu", "safetensors")
    return {"python": sys.version.split()[0]} | {package: version(package) for package in packages}


def _stored_settings(run: RunFolder) -> tuple[dict[str, Any], DataConfig, TrainingConfig]:
    """All of config.json, and the settings in it.

    Raises:
        RunFolderError: the file is missing, damaged or of another version of Limelight.
    """
    stored = run.read_config()
    try:
        return stored, DataConfig(**stored["data"]), TrainingConfig(**stored["training"])
    except (KeyError, TypeError, ArgumentError) as error:
        raise RunFolderError(f"{run.config} does not say how to train ({error}); {TRAIN_AGAIN}") from error


def _begin(
    run: RunFolder,
    corpus: Corpus,
    dev_corpus: Corpus | None,
    model: str,
    data: DataConfig,
    training: TrainingConfig,
    sizes: dict[str, Any],
    display: Display,
) -> Trainer:
    """Make everything that training needs; config.json and the first state are written. Undone if it fails."""
    torch.manual_seed(training.seed)
    try:
        prepared = prepare(run, corpus, dev_corpus, data, training.seed, display.say)
        config = model_config(
            model,
            source_vocabulary=len(prepared.source_tokenizer),
            target_vocabulary=len(prepared.target_tokenizer),
            **sizes,
        )
        trainer = _trainer(build_model(config).to(find_device(training.device)), prepared, run, training, display)
        run.write_config(
            {
                "model": describe_model(config),
                "data": asdict(data),
                "training": asdict(training),
                "dev_checksum": file_checksum(run.data / "dev.tsv"),
                "corpus": [str(path) for path in corpus.paths],
                "dev_file": [] if dev_corpus is None else [str(path) for path in dev_corpus.paths],
                "guided_alignment": [] if corpus.links is None else [str(corpus.links)],
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "command": sys.argv,
            }
        )
        trainer.save()
    except BaseException:
        # What has been made so far is of no use, and would be in the way of the next try.
        with contextlib.suppress(OutputError):
            run.discard()
        raise
    return trainer


def _trainer(
    net: TranslationModel, prepared: Prepared, run: RunFolder, training: TrainingConfig, display: Display
) -> Trainer:
    translator = Translator(net, prepared.source_tokenizer, prepared.target_tokenizer, device=training.device)
    batches = Batches(prepared.corpus, max_tokens=training.batch_tokens, seed=training.seed)
    return Trainer(net, translator, batches, prepared.dev, run, training, display)


def _reopen(run: RunFolder, data: DataConfig, stored: dict[str, Any]) -> Prepared:
    return reopen(run, data, stored.get("dev_checksum"), guided=bool(stored.get("guided_alignment")))


def _as_corpus(
    corpus: str | Path | Corpus, target: str | Path | None, max_words: int | None, links: str | Path | None = None
) -> Corpus:
    given: dict[str, Any] = {} if links is None else {"links": Path(links)}
    if isinstance(corpus, Corpus):
        if target is not None:
            raise ArgumentError("target: the corpus has its target sentences already; leave target out")
        if max_words is not None:
            given["max_words"] = max_words
        return replace(corpus, **given)
    most = DataConfig.max_words if max_words is None else max_words
    if target is None:
        return Corpus(tsv=Path(corpus), max_words=most, **given)
    return Corpus(source=Path(corpus), target=Path(target), max_words=most, **given)


def _check_readable(run: RunFolder, *corpora: Corpus | None) -> None:
    """Each corpus has a first pair, and none is a file that the run would replace: checked before anything is removed.

    Raises:
        DataError: a corpus cannot be read. ArgumentError: one is a file of the run.
    """
    replaced = {path.resolve() for path in run.written()}
    for corpus in corpora:
        if corpus is None:
            continue
        for path in (*corpus.paths, *([corpus.links] if corpus.links else [])):
            if path.resolve() in replaced:
                raise ArgumentError(
                    f"corpus: {path} is part of the run in {run.path}, which a new run would replace; copy it "
                    "elsewhere, or choose another folder"
                )
        next(corpus.pairs())


def _use_threads(training: TrainingConfig) -> None:
    if training.threads is not None:
        torch.set_num_threads(training.threads)


def _introduce(trainer: Trainer) -> str:
    parameters = sum(p.numel() for p in trainer.parameters)
    return (
        f"{parameters:,} parameters, {len(trainer.batches.corpus):,} pairs, {trainer.total:,} updates on "
        f"{trainer.device} with {torch.get_num_threads()} threads, {trainer.config.precision}"
    )


def _with_best_weights(trainer: Trainer) -> Translator:
    """The translator with the best weights, or with those at hand when nothing has been validated yet."""
    if trainer.run.best.exists():
        fill_model(trainer.model, read_tensors(trainer.run.best)[0], trainer.run.best)
    trainer.model.eval()
    return trainer.translator
