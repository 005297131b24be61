"""The training loop: updates, validation, checkpoints, and going on exactly where it was.

All that decides the next update is in `Progress`, the weights, the optimizer's tensors and torch's random state; these are
what `last.safetensors` holds. Time decides nothing but when to save, unless a time limit is set.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limelight.data import Batch, Batches
from limelight.errors import LimelightError
from limelight.evaluation.quality import corpus_quality, group_references
from limelight.models import TranslationModel
from limelight.run_folder import (
    RunFolder,
    append_line,
    fill_model,
    model_tensors,
    read_lines,
    read_tensors,
    rewrite_lines,
    write_tensors,
)
from limelight.training.config import TrainingConfig
from limelight.training.losses import output_loss
from limelight.training.progress import Display, Report
from limelight.training.schedules import rate_factor
from limelight.translator import Translator

_REPORT_EVERY = 10  # updates between two reports to the display
_LOG_EVERY = 50  # updates between two lines of the log


class TrainingDivergedError(LimelightError, ArithmeticError):
    """The loss was not finite for many updates in a row."""


@dataclass
class Progress:
    """Where training is. Everything here is plain data and goes into the checkpoint.

    Attributes:
        update: updates done.
        epoch: the pass over the data, from 0.
        batch: batches of it that are done.
        best: the best BLEU on the dev part.
        stale: validations since then.
        snapshots: updates whose weights are kept for the average, oldest first.
        seconds: time spent in training, validation and saving.
        tokens: target tokens learned from.
        skipped: updates left out because loss or gradient was not finite.
        finished: training came to its end.
    """

    update: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -1.0
    stale: int = 0
    snapshots: list[int] = None  # type: ignore[assignment]
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        self.snapshots = list(self.snapshots or [])


class Trainer:
    """One training run.

    Args:
        model: on its device.
        translator: of the same model, for validation.
        batches: of the training part.
        dev: (source, target) pairs.
        run: the folder that everything is written to.
        config: how to train.
        display: what to tell the user by.
    """

    def __init__(
        self,
        model: TranslationModel,
        translator: Translator,
        batches: Batches,
        dev: list[tuple[str, str]],
        run: RunFolder,
        config: TrainingConfig,
        display: Display,
    ):
        self.model, self.translator, self.batches, self.run = model, translator, batches, run
        self.config, self.display = config, display
        self.dev_sources, self.dev_references = group_references(dev)
        self.device = next(model.parameters()).device
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        decay = {"weight_decay": config.weight_decay} if config.optimizer == "adamw" else {}
        self.parameters = list(model.parameters())
        self.optimizer = kind(self.parameters, lr=config.rate, betas=config.betas, fused=True, **decay)
        self.progress = Progress()
        self.total = config.updates or config.epochs * batches.count(0)
        self._stop = False
        self._saved_at = time.monotonic()
        self._window = _Window()

    def train(self) -> Progress:
        """Train until the updates or the time are over, or patience is; returns where it ended.

        Ctrl-C (or SIGTERM) finishes the update at hand, saves, and returns with `finished` False.
        """
        with self._stop_signals():
            while not self._over():
                for batch in self.batches.epoch(self.progress.epoch, self.progress.batch):
                    started = time.monotonic()
                    self._update(batch)
                    self.progress.seconds += time.monotonic() - started
                    if self._validation_due():
                        self._validate()
                    elif time.monotonic() - self._saved_at > self.config.save_seconds:
                        self.save()
                    if self._over() or self._stop:
                        break
                else:
                    self._next_epoch()
                    continue
                if self._stop:
                    break
            if self._over():
                self._finish()
            self.save()
        return self.progress

    def save(self) -> None:
        """Write the whole state to last.safetensors."""
        started = time.monotonic()
        tensors = {f"model/{name}": t for name, t in model_tensors(self.model).items()}
        state = self.optimizer.state
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimizer/{key}/{name}": t for key, t in state.get(parameter, {}).items()}
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_tensors(self.run.last, tensors, {"progress": asdict(self.progress), "window": self._window.mean})
        self._saved_at = time.monotonic()
        self.progress.seconds += self._saved_at - started

    def resume(self) -> None:
        """Go on from last.safetensors: weights, optimizer, random state, place in the data, log and snapshots."""
        tensors, facts = read_tensors(self.run.last)
        weights = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        fill_model(self.model, weights, self.run.last)
        for name, parameter in self.model.named_parameters():
            entries = {n.split("/")[1]: t for n, t in tensors.items() if n.endswith("/" + name) and n[0] == "o"}
            # A step counter stays on the CPU or goes to the device as the fused optimizer wants it.
            self.optimizer.state[parameter] = {key: t.to(self.device) for key, t in entries.items()}
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        self.progress = Progress(**facts["progress"])
        self._window.mean = facts["window"]
        # A longer run was asked for: the end is no end any more.
        self.progress.finished = self.progress.finished and self._over()
        rewrite_lines(self.run.log, [r for r in read_lines(self.run.log) if r["update"] <= self.progress.update])
        for path in self.run.snapshots.glob("*.safetensors"):
            if int(path.stem) not in self.progress.snapshots:
                path.unlink()

    def _over(self) -> bool:
        progress, config = self.progress, self.config
        late = config.minutes is not None and progress.seconds >= 60 * config.minutes
        tired = config.patience > 0 and progress.stale >= config.patience
        return progress.update >= self.total or late or tired

    def _next_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.batch = 0

    def _position(self) -> float:
        """Where the schedule is, in updates: with a time limit as far along as the time is, if that is further."""
        update, minutes = self.progress.update, self.config.minutes
        if minutes is None or update <= self.config.warmup:
            return update
        return max(update, self.total * min(1.0, self.progress.seconds / (60 * minutes)))

    def _validation_due(self) -> bool:
        every, progress = self.config.validate_every, self.progress
        if every is None:
            due = progress.batch == self.batches.count(progress.epoch)
        else:
            due = progress.update % every == 0
        return due or self._over()

    def _update(self, batch: Batch) -> None:
        progress, config = self.progress, self.config
        progress.update += 1
        progress.batch += 1
        factor = rate_factor(config.schedule, self._position(), warmup=config.warmup, total=self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate * factor
        started = time.monotonic()
        likelihood = self._step(batch.to(self.device))
        count = batch.target_tokens
        progress.tokens += count
        self._window.add(likelihood, count, time.monotonic() - started)
        if progress.update % _LOG_EVERY == 0:
            self._log("train", loss=self._window.mean, tokens_per_second=self._window.speed, rate=config.rate * factor)
        if progress.update % _REPORT_EVERY == 0 or progress.update == 1:
            window = self._window
            self.display.update(
                Report(
                    progress.update, self.total, progress.epoch + 1, window.mean, window.speed, config.rate * factor
                )
            )
            window.restart()

    def _step(self, batch: Batch) -> float:
        """One update; returns the batch's negative log-likelihood in nats."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        read, predict = batch.target[:, :-1], batch.target[:, 1:]
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            features, _ = self.model(batch.source, batch.source_lengths, read)
            # Only real positions reach the output layer, the largest product of all.
            real = torch.arange(read.shape[1], device=self.device) < batch.target_lengths[:, None]
        output = self.model.output
        loss, likelihood = output_loss(
            features[real], output.weight, output.bias, predict[real], label_smoothing=self.config.label_smoothing
        )
        (loss / batch.target_tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        if math.isfinite(float(norm)):
            self.optimizer.step()
        else:
            self._skip()
        return float(likelihood)

    def _skip(self) -> None:
        self.progress.skipped += 1
        if self.progress.skipped > 100 and self.progress.skipped > self.progress.update // 2:
            raise TrainingDivergedError(
                f"training: loss or gradient was not finite in {self.progress.skipped} of {self.progress.update} updates; "
                "take a smaller --rate, a longer --warmup, or --precision fp32"
            )

    def _validate(self) -> None:
        started = time.monotonic()
        progress = self.progress
        quality = self._quality()
        better = quality.bleu > progress.best
        progress.stale = 0 if better else progress.stale + 1
        if better:
            progress.best = quality.bleu
            self._write_weights(self.run.best, quality.bleu)
        if self.config.average > 1:
            progress.snapshots.append(progress.update)
            self._write_weights(self._snapshot(progress.update), quality.bleu)
            while len(progress.snapshots) > self.config.average:
                self._snapshot(progress.snapshots.pop(0)).unlink(missing_ok=True)
        progress.seconds += time.monotonic() - started
        self._log("dev", bleu=quality.bleu, chrf=quality.chrf, exact_match=quality.exact_match, loss=self._window.mean)
        self.display.say(
            f"epoch {progress.epoch + 1}, update {progress.update}: dev BLEU {quality.bleu:.2f}, chrF {quality.chrf:.2f}"
            + (", best so far" if better else "")
        )
        self.save()
        self._window.restart()

    def _quality(self):  # noqa: ANN202
        self.model.eval()
        found = self.translator.translate(self.dev_sources, observe=False)
        lowercase = self.translator.target_tokenizer.lowercase
        return corpus_quality([t.text for t in found], self.dev_references, lowercase=lowercase)

    def _finish(self) -> None:
        """Average the last snapshots; the average becomes the best weights where it is better."""
        progress = self.progress
        if progress.finished:
            return
        if len(progress.snapshots) > 1:
            mean = _average([self._snapshot(update) for update in progress.snapshots])
            now = {name: t.clone() for name, t in model_tensors(self.model).items()}
            fill_model(self.model, mean, self.run.snapshots)
            quality = self._quality()
            self._log("average", bleu=quality.bleu, chrf=quality.chrf, of=progress.snapshots)
            better = quality.bleu > progress.best
            if better:
                progress.best = quality.bleu
                self._write_weights(self.run.best, quality.bleu)
            self.display.say(
                f"average of the last {len(progress.snapshots)}: dev BLEU {quality.bleu:.2f}"
                + (", which is kept" if better else ", which is not kept")
            )
            fill_model(self.model, now, self.run.snapshots)
        progress.finished = True

    def _snapshot(self, update: int) -> Path:
        return self.run.snapshots / f"{update}.safetensors"

    def _write_weights(self, path: Path, bleu: float) -> None:
        write_tensors(path, model_tensors(self.model), {"update": self.progress.update, "dev_bleu": bleu})

    def _log(self, event: str, **facts: Any) -> None:
        p = self.progress
        append_line(
            self.run.log,
            {"event": event, "update": p.update, "epoch": p.epoch + 1, "tokens": p.tokens, "seconds": round(p.seconds, 2)}
            | facts,
        )

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Inside, the first Ctrl-C or SIGTERM asks for a stop after the update at hand; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            self.display.say("stopping after this update; once more stops at once, without saving")

        before: dict[int, Callable | int | None] = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Window:
    """A running mean of the loss, and the speed since the last report."""

    def __init__(self) -> None:
        self.mean = 0.0
        self.speed = 0.0
        self.tokens = 0
        self.seconds = 0.0

    def add(self, likelihood: float, tokens: int, seconds: float) -> None:
        now = likelihood / max(1, tokens)
        self.mean = now if self.mean == 0.0 else 0.98 * self.mean + 0.02 * now
        self.tokens += tokens
        self.seconds += seconds
        self.speed = self.tokens / max(self.seconds, 1e-9)

    def restart(self) -> None:
        self.tokens, self.seconds = 0, 0.0


def _average(paths: list[Path]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path)[0].items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}
