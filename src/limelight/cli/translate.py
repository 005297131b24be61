"""`limelight translate`."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limelight.cli.options import Alpha, Beam, Device, Run, Threads, Weights, use_threads, warn

if TYPE_CHECKING:
    from limelight.translator import Translation

_CHUNK = 2000  # lines of a pipe that are translated together


def translate(
    run: Run,
    text: Annotated[list[str] | None, typer.Argument(help="Sentences; standard input where there is none.", show_default=False)] = None,
    beam: Beam = 5,
    alpha: Alpha = 1.0,
    n_best: Annotated[int, typer.Option(help="Translations to print of each sentence.", min=1)] = 1,
    show: Annotated[bool, typer.Option("--show", help="Print the attention as a heatmap.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write the attention to this .png, .svg or .pdf; numbered when there are several.", show_default=False)
    ] = None,
    align: Annotated[bool, typer.Option("--align", help="Add a column with the word alignment, 0-0 1-2 ...")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line: text, score, tokens, weights, alignment.")] = False,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Translate sentences, and show what was attended to.

    [bold]limelight translate runs/es "good morning" --show[/bold]

    [bold]limelight translate runs/es < english.txt > spanish.txt[/bold]

    Standard output has one line for each line in (with --n-best up to N, each with its score before it).
    """
    from limelight.errors import ArgumentError
    from limelight.translator import Translator

    if n_best > beam:
        raise ArgumentError(f"n-best: must be in [1, beam = {beam}], got {n_best}; widen the beam with --beam")
    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    observe = show or align or as_json or picture is not None
    number = 0
    for chunk in _chunks(text):
        for found in translator.translate_n_best(chunk, beam=beam, alpha=alpha, n_best=n_best, observe=observe):
            number += 1
            _warn(found[0], number)
            for translation in found:
                print(_line(translation, n_best > 1, align, as_json), flush=sys.stdin.isatty())
            if show:
                _show(found[0])
            if picture is not None:
                _save(found[0], picture if text and len(text) == 1 else picture.with_stem(f"{picture.stem}-{number}"))


def _chunks(text: list[str] | None) -> Iterator[list[str]]:
    if text:
        yield text
        return
    if sys.stdin.isatty():
        warn("type a sentence and Enter; Ctrl-D ends")
    lines = _lines()
    while chunk := list(islice(lines, 1 if sys.stdin.isatty() else _CHUNK)):
        yield chunk


def _lines() -> Iterator[str]:
    """Lines of standard input; a line that is not UTF-8 is told and translated as far as it can be read."""
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n").replace("\0", " ")
        if "\ufffd" in line and b"\xef\xbf\xbd" not in raw:
            warn(f"line {number}: invalid UTF-8; what cannot be read is left out")
            line = line.replace("\ufffd", "")
        yield line


def _line(translation: "Translation", scored: bool, align: bool, as_json: bool) -> str:
    from limelight.evaluation.alignment import format_pharaoh

    if as_json:
        return json.dumps(
            {
                "source": translation.source,
                "translation": translation.text,
                "score": round(translation.score, 6),
                "log_prob": round(translation.log_prob, 6),
                "source_tokens": translation.source_tokens,
                "target_tokens": translation.target_tokens,
                "alignment": format_pharaoh(translation.links()),
                "weights": None
                if translation.weights is None
                else [[round(w, 5) for w in row] for row in translation.weights.tolist()],
                "unknown": translation.unknown,
            },
            ensure_ascii=False,
        )
    columns = [f"{translation.score:.4f}"] if scored else []
    columns.append(translation.text)
    if align:
        columns.append(format_pharaoh(translation.links()))
    return "\t".join(columns)


def _warn(translation: "Translation", number: int) -> None:
    if translation.unknown:
        warn(f"sentence {number}: the model has never seen {', '.join(map(repr, translation.unknown))}")
    if translation.truncated:
        warn(
            f"sentence {number}: {translation.truncated} tokens at its end were left out, it is too long; "
            "give one sentence a line"
        )


def _show(translation: "Translation") -> None:
    from rich.console import Console

    from limelight.pictures.terminal import heatmap

    if translation.weights is None:
        why = "nothing was produced" if not translation.target_tokens else "this model has no attention"
        warn(f"no picture: {why}")
        return
    Console().print(heatmap(translation.weights, translation.source_tokens, translation.target_tokens))


def _save(translation: "Translation", path: Path) -> None:
    from limelight.pictures.figure import save_heatmap

    if translation.weights is None:
        warn(f"{path} is not written: there is no attention to draw")
        return
    save_heatmap(path, translation.weights, translation.source_tokens, translation.target_tokens)
    warn(f"wrote {path}")
