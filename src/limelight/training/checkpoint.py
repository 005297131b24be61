"""The state of a training run: what decides the next update, how it is saved, and how it is taken up again.

That is `Progress`, the weights, the optimizer's tensors and torch's random state; `last.safetensors` holds them all.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from limelight.errors import RunFolderError
from limelight.run_folder import RunFolder
from limelight.training.log import read_lines, rewrite_lines
from limelight.weights import TRAIN_AGAIN, fill_model, model_tensors, read_tensors, write_tensors


@dataclass
class Progress:
    """Where training is. Everything here is plain data and goes into the checkpoint.

    Attributes:
        update: updates done.
        epoch: the pass over the data, from 0.
        batch: batches of it that are done.
        validated: the update at which the last validation was made; -1 before the first.
        best: the best BLEU on the dev part; -1 before the first validation.
        best_chrf: the chrF of these weights.
        stale: validations since then.
        snapshots: updates whose weights are kept for the average, oldest first.
        seconds: time spent in training, validation and saving.
        tokens: target tokens learned from.
        loss: negative log-likelihood per target token, in nats, a running mean; None before the first update.
        skipped: updates left out because loss or gradient was not finite.
        skipped_in_a_row: of these, the ones since the last good update.
        finished: training came to its end.
    """

    update: int = 0
    epoch: int = 0
    batch: int = 0
    validated: int = -1
    best: float = -1.0
    best_chrf: float = -1.0
    stale: int = 0
    snapshots: list[int] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False


def save_state(run: RunFolder, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the whole state to last.safetensors, then remove the snapshots it does not name.

    Raises:
        OutputError: the disk is full, say; the state saved before is then untouched.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model_tensors(model).items()}
    for name, parameter in model.named_parameters():
        # A parameter has no entry before its first update.
        entry = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer/{key}/{name}": tensor for key, tensor in entry.items()}
    tensors["random"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(device)
    write_tensors(run.last, tensors, {"progress": asdict(progress)})
    _prune(run, progress)


def load_state(run: RunFolder, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Take up the state that `save_state` wrote, and cut the log and the snapshots back to it.

    Raises:
        RunFolderError: a file is missing, damaged, or does not belong to this model.
    """
    tensors, facts = read_tensors(run.last)
    try:
        progress = Progress(**facts["progress"])
        random = tensors["random"]
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run.last} does not hold the state of a training run ({error}); {TRAIN_AGAIN}"
        ) from error
    for update in progress.snapshots:
        if not snapshot(run, update).exists():
            raise RunFolderError(f"{snapshot(run, update)} is missing, which the average needs; {TRAIN_AGAIN}")
    weights, entries = _sorted_out(tensors)
    fill_model(model, weights, run.last)
    for name, parameter in model.named_parameters():
        entry = {key: tensor.to(parameter.device, copy=True) for key, tensor in entries.pop(name, {}).items()}
        optimizer.state[parameter] = entry
    if entries:
        raise RunFolderError(f"{run.last} has optimizer tensors of an unknown weight, {min(entries)!r}; {TRAIN_AGAIN}")
    torch.set_rng_state(random)
    device = next(model.parameters()).device
    if "random_cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random_cuda"], device)
    _cut_log(run, progress)
    _prune(run, progress)
    return progress


def snapshot(run: RunFolder, update: int) -> Path:
    """Where the weights after that update are kept for the average."""
    return run.snapshots / f"{update}.safetensors"


def average(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights in several files, summed in float64.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path)[0].items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}


def _sorted_out(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The weights by name, and the optimizer's tensors by the weight's name and their own."""
    weights: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        kind, _, rest = path.partition("/")
        if kind == "model":
            weights[rest] = tensor
        elif kind == "optimizer":
            key, _, name = rest.partition("/")
            entries.setdefault(name, {})[key] = tensor
    return weights, entries


def _cut_log(run: RunFolder, progress: Progress) -> None:
    """Drop what was logged after the state was saved: it will be logged again."""
    # The last update may be saved before it is validated, and that before the average is made.
    averaged = progress.update if progress.finished else progress.update - 1
    until = {"dev": progress.validated, "average": averaged}

    def is_past(record: dict) -> bool:
        return record["update"] <= until.get(record.get("event", ""), progress.update)

    rewrite_lines(run.log, [record for record in read_lines(run.log) if is_past(record)])


def _prune(run: RunFolder, progress: Progress) -> None:
    wanted = {snapshot(run, update) for update in progress.snapshots}
    for path in run.snapshots.glob("*.safetensors"):
        if path.stem.isdigit() and path not in wanted:
            path.unlink(missing_ok=True)
