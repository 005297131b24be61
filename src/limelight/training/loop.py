"""The training loop: updates, validation, checkpoints, and going on exactly where it was.

All that decides the next update is in the state that `checkpoint.save_state` writes. Time decides nothing but when to
save, unless a time limit is set.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch

from limelight.data import Batch, Batches
from limelight.errors import LimelightError
from limelight.evaluation.quality import Quality, corpus_quality, group_references
from limelight.layers import coverage_loss
from limelight.models import TranslationModel
from limelight.run_folder import RunFolder
from limelight.training.checkpoint import Progress, average, load_state, save_state, snapshot
from limelight.training.config import TrainingConfig
from limelight.training.log import append_line
from limelight.training.losses import guided_loss, output_loss
from limelight.training.progress import Display, Report, Speed
from limelight.training.schedules import rate_factor
from limelight.training.signals import StopRequest
from limelight.translator import Translator
from limelight.weights import fill_model, model_tensors, write_tensors

__all__ = ["Progress", "Trainer", "TrainingDivergedError"]

_REPORT_EVERY = 10  # updates between two reports to the display
_LOG_EVERY = 50  # updates between two lines of the log
_MOST_SKIPPED = 100  # updates in a row that may fail


class TrainingDivergedError(LimelightError, ArithmeticError):
    """Loss or gradient was not finite for many updates in a row."""


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

    Attributes:
        progress: where training is.
        total: the updates planned; an epoch's batches are counted when it begins, so that it changes by a few.
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
        self.total = self._planned()
        self._stop = StopRequest(
            lambda: display.say("stopping after this update; once more stops at once, without saving")
        )
        self._saved_at = time.monotonic()
        self._speed = Speed()

    def train(self) -> Progress:
        """Train until the updates or the time are over, or patience is; returns where it ended.

        Ctrl-C (or SIGTERM) finishes the update at hand, saves, and returns with `finished` False.

        Raises:
            OutputError: a file cannot be written; what was saved before is whole. TrainingDivergedError: nothing is
            learned any more.
        """
        with self._stop:
            while not (self._over() or self._stop.asked):
                self._train_epoch()
            if self._over():
                self._finish()
            self.save()
        return self.progress

    def save(self) -> None:
        """Write the whole state to last.safetensors."""
        started = time.monotonic()
        save_state(self.run, self.model, self.optimizer, self.progress)
        self._saved_at = time.monotonic()
        self.progress.seconds += self._saved_at - started

    def resume(self) -> None:
        """Go on from last.safetensors: weights, optimizer, random state, place in the data, log and snapshots.

        Raises:
            RunFolderError: a file is missing, damaged, or does not belong to this model.
        """
        self.progress = load_state(self.run, self.model, self.optimizer)
        self.total = self._planned()
        # A longer run was asked for: the end is no end any more.
        self.progress.finished = self.progress.finished and self._over()

    def _planned(self) -> int:
        """The updates of the whole run, if each epoch to come has as many batches as this one."""
        progress, config = self.progress, self.config
        if config.updates is not None:
            return config.updates
        before = progress.update - progress.batch
        if progress.epoch >= config.epochs:
            return before
        return before + (config.epochs - progress.epoch) * self.batches.count(progress.epoch)

    def _expected(self) -> int:
        """The updates of the whole run, or those that the time limit is expected to allow."""
        progress, minutes = self.progress, self.config.minutes
        if minutes is None:
            return self.total
        return min(
            self.total, max(progress.update, round(60 * minutes * progress.update / max(1e-9, progress.seconds)))
        )

    def _over(self) -> bool:
        progress, config = self.progress, self.config
        late = config.minutes is not None and progress.seconds >= 60 * config.minutes
        tired = config.patience > 0 and progress.stale >= config.patience
        return progress.update >= self.total or late or tired

    def _train_epoch(self) -> None:
        """The rest of this pass over the data, or of it what the end or a stop allows."""
        progress = self.progress
        for batch in self.batches.epoch(progress.epoch, progress.batch):
            started = time.monotonic()
            self._update(batch)
            progress.seconds += time.monotonic() - started
            if self._validation_due():
                self._validate()
            elif time.monotonic() - self._saved_at > self.config.save_seconds:
                self.save()
            if self._over() or self._stop.asked:
                return
        progress.epoch += 1
        progress.batch = 0
        self.total = self._planned()

    def _position(self) -> float:
        """Where the schedule is, in updates: with a time limit as far along as the time is, if that is further."""
        update, minutes = self.progress.update, self.config.minutes
        if minutes is None or update <= self.config.warmup:
            return update
        return max(update, self.total * min(1.0, self.progress.seconds / (60 * minutes)))

    def _validation_due(self) -> bool:
        every, progress = self.config.validate_every, self.progress
        if every is not None:
            return progress.update % every == 0
        return progress.batch == self.batches.count(progress.epoch)

    def _update(self, batch: Batch) -> None:
        progress, config = self.progress, self.config
        progress.update += 1
        progress.batch += 1
        factor = rate_factor(config.schedule, self._position(), warmup=config.warmup, total=self.total)
        rate = config.rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        started = time.monotonic()
        self._learned(self._step(batch.to(self.device)) / batch.target_tokens)
        progress.tokens += batch.target_tokens
        self._speed.add(batch.target_tokens, time.monotonic() - started)
        speed = self._speed.tokens_per_second
        if progress.update % _LOG_EVERY == 0:
            self._log("train", loss=progress.loss, tokens_per_second=round(speed, 1), rate=rate)
        if progress.update % _REPORT_EVERY == 0 or progress.update == 1:
            loss = math.nan if progress.loss is None else progress.loss
            self.display.update(Report(progress.update, self._expected(), progress.epoch + 1, loss, speed, rate))
            self._speed = Speed()

    def _step(self, batch: Batch) -> float:
        """One update; returns the batch's negative log-likelihood in nats, which is not finite if it was skipped."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        read, predict = batch.target[:, :-1], batch.target[:, 1:]
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            weights = log_weights = None
            if batch.links is None:
                covers = self.config.coverage_weight > 0
                features, weights = self.model(batch.source, batch.source_lengths, read, observe=covers)
            else:
                features, log_weights = self.model.guided(batch.source, batch.source_lengths, read, batch.links)
        # Only real positions reach the output layer, the largest product of all.
        real = torch.arange(read.shape[1], device=self.device) < batch.target_lengths[:, None]
        output = self.model.output
        loss, likelihood = output_loss(
            features[real], output.weight, output.bias, predict[real], label_smoothing=self.config.label_smoothing
        )
        if log_weights is not None and batch.shares is not None:
            loss = loss + self.config.guided_weight * guided_loss(log_weights, batch.shares)
        if weights is not None:
            loss = loss + self.config.coverage_weight * coverage_loss(weights)[real].sum()
        (loss / batch.target_tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        if not math.isfinite(float(norm)):
            return math.nan
        self.optimizer.step()
        return float(likelihood)

    def _learned(self, loss: float) -> None:
        """Take an update's loss per token into the running mean, or count the update as skipped."""
        progress = self.progress
        if math.isfinite(loss):
            # The plain mean of the first 50, so that the first update does not weigh more than the others.
            share = max(0.02, 1 / max(1, progress.update - progress.skipped))
            progress.loss = loss if progress.loss is None else progress.loss + share * (loss - progress.loss)
            progress.skipped_in_a_row = 0
            return
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= min(_MOST_SKIPPED, max(1, self.total // 2)):
            raise TrainingDivergedError(
                f"training: loss or gradient was not finite in {progress.skipped_in_a_row} updates in a row, up to "
                f"update {progress.update}; start anew (--overwrite) with a smaller --rate, a longer --warmup or "
                "--precision fp32"
            )

    def _validate(self) -> None:
        started = time.monotonic()
        progress = self.progress
        quality = self._quality()
        progress.validated = progress.update
        better = self._keep_if_best(quality)
        progress.stale = 0 if better else progress.stale + 1
        if self.config.average > 1:
            self._write_weights(snapshot(self.run, progress.update), quality.bleu)
            # Those that fall out are removed once a state that does not name them is saved.
            progress.snapshots = [*progress.snapshots, progress.update][-self.config.average :]
        progress.seconds += time.monotonic() - started
        self._log("dev", bleu=quality.bleu, chrf=quality.chrf, exact_match=quality.exact_match, loss=progress.loss)
        self.display.say(
            f"epoch {progress.epoch + 1}, update {progress.update}: dev BLEU {quality.bleu:.2f}, "
            f"chrF {quality.chrf:.2f}" + (", best so far" if better else "")
        )
        self.save()

    def _quality(self) -> Quality:
        self.model.eval()
        found = self.translator.translate(self.dev_sources, observe=False)
        lowercase = self.translator.target_tokenizer.lowercase
        return corpus_quality([t.text for t in found], self.dev_references, lowercase=lowercase)

    def _finish(self) -> None:
        """Validate where that was not just done; average the last snapshots."""
        progress = self.progress
        if progress.finished:
            return
        if progress.validated != progress.update:
            self._validate()
        if len(progress.snapshots) > 1:
            self._average()
        progress.finished = True

    def _average(self) -> None:
        """Average the last snapshots; the average becomes the best weights where it is better."""
        progress = self.progress
        now = {name: tensor.clone() for name, tensor in model_tensors(self.model).items()}
        fill_model(self.model, average([snapshot(self.run, u) for u in progress.snapshots]), self.run.snapshots)
        quality = self._quality()
        self._log("average", bleu=quality.bleu, chrf=quality.chrf, of=progress.snapshots)
        better = self._keep_if_best(quality)
        self.display.say(
            f"average of the last {len(progress.snapshots)}: dev BLEU {quality.bleu:.2f}, "
            + ("which is kept" if better else "which is not kept")
        )
        fill_model(self.model, now, self.run.last)

    def _keep_if_best(self, quality: Quality) -> bool:
        """Write the weights at hand to best.safetensors if they are the best so far; whether they are.

        Of equal BLEU the higher chrF counts: where no sentence has four tokens, BLEU is always 0.
        """
        progress = self.progress
        better = (quality.bleu, quality.chrf) > (progress.best, progress.best_chrf)
        if better:
            progress.best, progress.best_chrf = quality.bleu, quality.chrf
            self._write_weights(self.run.best, quality.bleu)
        return better

    def _write_weights(self, path: Path, bleu: float) -> None:
        write_tensors(path, model_tensors(self.model), {"update": self.progress.update, "dev_bleu": bleu})

    def _log(self, event: str, **facts: Any) -> None:
        p = self.progress
        place = {"update": p.update, "epoch": p.epoch + 1, "tokens": p.tokens, "seconds": round(p.seconds, 2)}
        append_line(self.run.log, {"event": event} | place | facts)
