"""`limelight export`."""

from pathlib import Path
from typing import Annotated

import typer

from limelight.cli.options import Run, Weights, quoted, say


def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    weights: Weights = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write a trained model as ONNX, to run without Limelight and without torch.

    The folder gets encoder.onnx, step.onnx (one step of decoding), both tokenizers, and export.json, which names
    inputs and outputs. Standard operators only, any length and batch. The files are checked: onnxruntime has to give
    what torch gives. Needs the packages onnx, onnxscript and onnxruntime (the extra "onnx").
    """
    from limelight.onnx import export as write
    from limelight.translator import Translator

    translator = Translator.open(run, device="cpu", weights=weights)
    for path in write(translator, out, overwrite=overwrite):
        print(path)
    say(f"checked with onnxruntime against torch; what the files take and give is in {quoted(out / 'export.json')}")
