"""Translation models as ONNX: an encoder and one decoding step, of standard operators, for any length.

The layers need no help: `torch.onnx.export` takes them, because `attend` and `look` run as plain operators while
something is exported.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limelight.data.tokenization import Tokenizer
from limelight.errors import ExportError, OutputError
from limelight.files import atomic_path, atomic_write
from limelight.models import DecodingState, TranslationModel
from limelight.models.transformer import Transformer
from limelight.translator import Translator

ENCODER, STEP, ABOUT = "encoder.onnx", "step.onnx", "export.json"

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_EXAMPLE = {"batch": 2, "source": 5, "hypotheses": 3, "past": 4}
_OTHER = {"batch": 3, "source": 7, "hypotheses": 4, "past": 6}
_STEPS = 3
_TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit or 1: float32, other orders of summing."""


def export(what: Translator | TranslationModel, out: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write a translation model as ONNX into a folder, and check it: onnxruntime has to give what torch gives.

    - `encoder.onnx`: source int64 [B, S], source_lengths int64 [B] -> memory_0 ..., beam_0 ...;
    - `step.onnx`: tokens int64 [B, K], memory_0 ..., beam_0 ... -> logits [B, K, V], weights [B, K, S] (if the model
      attends), next_beam_0 ..., which are the next step's beams;
    - of a translator `source.tokenizer.json` and `target.tokenizer.json`, and `export.json`: the names in order, and
      the ids of the special tokens.

    B, S, K and the number of steps are free. Decoding begins with bos in `tokens` [B, 1] and what the encoder gave.
    Only standard operators are used (opset 20). Weights are float32, whatever the model holds.

    Arguments:
        what: a translator, or a translation model alone.
        out: the folder; made where it is missing.
        overwrite: replace an export that is there.

    Result: the files written.

    Errors: ExportError if a package is missing, torch cannot say the model in ONNX, or onnxruntime gives other numbers
    than torch; OutputError if the folder cannot be written, or has an export and overwrite is not set.

    Example: `export(Translator.open("runs/es"), "onnx/es")`.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"export needs the packages {', '.join(missing)}: pip install 'limelight[onnx]'.")
    translator = what if isinstance(what, Translator) else None
    model = copy.deepcopy(translator.model if translator else what).cpu().float().eval()  # pyright: ignore
    folder = _folder(Path(out), overwrite)
    with torch.no_grad():
        attends = _attends(model)
        encoder, step = _Encoder(model).eval(), _Step(model, attends).eval()
        examples = [_examples(model, sizes) for sizes in (_EXAMPLE, _OTHER)]
        names = _names(examples[0][1], attends)
        for file, part, which in ((ENCODER, encoder, 0), (STEP, step, 1)):
            arguments, other = examples[0][which], examples[1][which]
            _write(part, arguments, other, names[file], folder / file)
        _check(encoder, step, folder, attends)
    if translator:
        translator.source_tokenizer.save(folder / "source.tokenizer.json")
        translator.target_tokenizer.save(folder / "target.tokenizer.json")
    about = {"format": "limelight-onnx/1", "bos": Tokenizer.bos, "eos": Tokenizer.eos, "pad": Tokenizer.pad}
    about["unk"] = Tokenizer.unk
    files = {file: {"inputs": inputs, "outputs": outputs} for file, (inputs, outputs) in names.items()}
    with atomic_write(folder / ABOUT, "w") as file:
        json.dump(about | {"files": files}, file, indent=1)
    return sorted(path for path in folder.iterdir() if path.is_file())


class _Encoder(nn.Module):
    """(source, source_lengths) -> the tensors of the first decoding state."""

    def __init__(self, model: TranslationModel):
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, ...]:
        state = self.model.start(source, source_lengths)
        beams = state.beams
        if isinstance(self.model, Transformer):
            # Nothing read yet: keys and values [B, 1, H, 0, D] of no positions.
            beams = tuple(x[:, None, :, :0] for x in state.memory[1:])
        # An output that is an input by another name would share it.
        return tuple(x.clone() for x in (*state.memory, *beams))


class _Step(nn.Module):
    """(tokens, memory, beams) -> logits, weights if the model attends, and the next beams."""

    def __init__(self, model: TranslationModel, attends: bool):
        super().__init__()
        self.model, self.attends = model, attends

    def forward(self, tokens: Tensor, memory: Sequence[Tensor], beams: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # What a Transformer has read is as long as the keys that it kept.
        position: Any = beams[0].shape[3] if isinstance(self.model, Transformer) else 0
        state = DecodingState(tuple(memory), tuple(beams), position)
        features, weights, state = self.model.step(tokens, state, observe=self.attends)
        seen = () if weights is None else (weights,)
        return (self.model.output(features), *seen, *state.beams)


def _attends(model: TranslationModel) -> bool:
    source = torch.ones(1, 1, dtype=torch.int64)
    return model(source, source[0], source, observe=True).weights is not None


def _examples(model: TranslationModel, sizes: dict[str, int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of encoder and step of those sizes."""
    batch, length, hypotheses = sizes["batch"], sizes["source"], sizes["hypotheses"]
    source = torch.ones(batch, length, dtype=torch.int64)
    counts = torch.full((batch,), length)
    tokens = torch.ones(batch, hypotheses, dtype=torch.int64)
    state = model.start(source, counts)
    for _ in range(sizes["past"]):
        _, _, state = model.step(tokens[:, :1], state)
    beams = tuple(beam.repeat_interleave(hypotheses, 1) for beam in state.beams)
    # Contiguous: other strides would be part of the graph, and ONNX has none.
    return (source, counts), (tokens, tuple(one.contiguous() for one in state.memory), beams)


def _names(step: tuple[Any, ...], attends: bool) -> dict[str, tuple[list[str], list[str]]]:
    """Inputs and outputs of each file."""
    memory = [f"memory_{i}" for i in range(len(step[1]))]
    beams = [f"beam_{i}" for i in range(len(step[2]))]
    after = ["logits", *(["weights"] if attends else []), *(f"next_{beam}" for beam in beams)]
    return {
        ENCODER: (["source", "source_lengths"], [*memory, *beams]),
        STEP: (["tokens", *memory, *beams], after),
    }


def _dynamic(one: Any, other: Any) -> Any:
    """The axes in which the examples differ, with their names."""
    if not isinstance(one, Tensor):
        return tuple(_dynamic(*pair) for pair in zip(one, other, strict=True))
    names = {size: name for name, size in _EXAMPLE.items()}
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: names[size] for axis, (size, changed) in sizes if size != changed}


def _write(part: nn.Module, arguments: Any, other: Any, names: tuple[list[str], list[str]], path: Path) -> None:
    try:
        with _quiet():
            program = torch.onnx.export(
                part,
                arguments,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=_dynamic(arguments, other),
                dynamo=True,
                verbose=False,
                opset_version=20,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        config: Any = part.model.config  # pyright: ignore
        raise ExportError(
            f"export: torch {torch.__version__} cannot write {path.name} of this model, {config}: {reason}"
        ) from error
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter says things that no user of this module can act on."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check(encoder: nn.Module, step: nn.Module, folder: Path, attends: bool) -> None:
    """Decode some steps with both, at sizes that the export has not seen and with padding."""
    import onnxruntime

    run = [
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (ENCODER, STEP)
    ]
    vocabulary: Any = step.model.output.out_features  # pyright: ignore
    tables = [one for one in encoder.modules() if isinstance(one, nn.Embedding)]
    source = torch.randint(min(one.num_embeddings for one in tables), (3, 7))
    counts = torch.tensor([7, 1, 4])
    memory = len(step.model.start(source, counts).memory)  # pyright: ignore
    theirs, ours = encoder(source, counts), _call(run[0], source, counts)
    tokens = torch.full((3, 1), Tokenizer.bos)
    for _ in range(_STEPS):
        carried, given = ours[memory:], theirs[memory:]
        expected = step(tokens, theirs[:memory], given)
        found = _call(run[1], tokens, *ours[:memory], *carried)
        for name, have, want in zip(("logits", "weights")[: 1 + attends], found, expected, strict=False):
            apart = float((have - want).abs().max()) / max(1.0, float(want.abs().max()))
            if not apart <= _TOLERANCE:
                raise ExportError(
                    f"export: onnxruntime's {name} differ from torch's by {apart:.2g}, more than {_TOLERANCE}. "
                    f"The files in {folder} are not to be used; please report it, with the model's config.json."
                )
        rest = 1 + attends
        theirs, ours = (*theirs[:memory], *expected[rest:]), (*ours[:memory], *found[rest:])
        tokens = torch.randint(int(vocabulary), (3, 1))


def _call(session: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """A session's outputs; the tensors are its inputs in order."""
    feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return tuple(torch.from_numpy(one) for one in session.run(None, feed))


def _folder(out: Path, overwrite: bool) -> Path:
    if (out / ABOUT).exists() and not overwrite:
        raise OutputError(f"the folder {out} holds an export already; choose another, or overwrite it (--overwrite)")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ABOUT).unlink(missing_ok=True)  # the last to be written again
    except OSError as error:
        raise OutputError(f"cannot write the folder {out}: {error.strerror}") from None
    return out
