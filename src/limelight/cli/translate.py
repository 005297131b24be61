"""`limelight translate`."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limelight.cli.options import Alpha, Beam, Device, Run, Threads, Weights, check_picture, say, use_threads, warn

if TYPE_CHECKING:
    from limelight.translator import Translation, Translator


def translate(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Argument(help="Sentences; standard input where there is none.", show_default=False)
    ] = None,
    beam: Beam = 5,
    alpha: Alpha = 1.0,
    n_best: Annotated[int, typer.Option(help="Translations to print of each sentence.", min=1)] = 1,
    show: Annotated[
        bool, typer.Option("--show", help="Print the attention as a heatmap; beside --json on standard error.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Write the attention to this .png, .svg or .pdf; numbered when there may be several.",
            show_default=False,
        ),
    ] = None,
    align: Annotated[bool, typer.Option("--align", help="Add a column with the word alignment, 0-0 1-2 ...")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line: text, score, tokens, weights, alignment.")
    ] = False,
    weights: Weights = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Translate sentences, and show what was attended to.

    [bold]limelight translate runs/es "good morning" --show[/bold]

    [bold]limelight translate runs/es < english.txt > spanish.txt[/bold]

    Standard output has one line for each line in (with --n-best up to N, each with its score before it).
    """
    from limelight.cli.waiting import waiting
    from limelight.errors import ArgumentError
    from limelight.translator import Translator

    if n_best > beam:
        raise ArgumentError(f"n_best: must be in [1, beam = {beam}], got {n_best}; widen the beam with --beam")
    check_picture(picture)
    use_threads(threads)
    translator = Translator.open(run, device=device, weights=weights)
    _check_attention(translator, {"align": align, "show": show, "picture": picture is not None})
    observe = show or align or as_json or picture is not None
    number = 0
    for chunk in _chunks(text):
        with waiting("translating", len(chunk)) as advance:
            results = translator.translate_n_best(
                chunk, beam=beam, alpha=alpha, n_best=n_best, observe=observe, progress=advance
            )
        for found in results:
            number += 1
            _warn(found[0], number)
            for translation in found:
                print(_line(translation, n_best > 1, align, as_json))
            if show:
                _show(found[0], number, on_stderr=as_json)
            if picture is not None:
                _save(found[0], picture if text and len(text) == 1 else picture.with_stem(f"{picture.stem}-{number}"))
        sys.stdout.flush()


def _check_attention(translator: "Translator", wanted: dict[str, bool]) -> None:
    from limelight.errors import ArgumentError

    for option, given in wanted.items():
        if given and not translator.attends:
            raise ArgumentError(
                f"{option}: this model was trained without attention (train --attention none), so there is nothing to "
                f"show; leave --{option} out, or train a model that has attention"
            )


def _chunks(text: list[str] | None) -> Iterator[list[str]]:
    from limelight.cli.reading import readable, sentences
    from limelight.errors import ArgumentError

    if text:
        # What the shell gave that is not UTF-8 is treated as in a file.
        yield [readable(os.fsencode(sentence), f"sentence {i}") for i, sentence in enumerate(text, start=1)]
        return
    if sys.stdin is None:
        raise ArgumentError("text: there is none, and standard input is closed; give sentences after the run folder")
    if sys.stdin.isatty():
        say("type a sentence and Enter; Ctrl-D ends")
    yield from sentences(sys.stdin.buffer)


def _line(translation: "Translation", scored: bool, align: bool, as_json: bool) -> str:
    from limelight.pharaoh import format_pharaoh

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
                "truncated": translation.truncated,
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
        warn(f"sentence {number}: the model has never seen {_some(translation.unknown)}")
    if translation.truncated:
        warn(
            f"sentence {number}: {translation.truncated} tokens at its end were left out, it is too long; "
            "give one sentence a line"
        )


def _some(pieces: list[str], most: int = 10) -> str:
    shown = ", ".join(repr(piece[:40]) for piece in pieces[:most])
    return shown if len(pieces) <= most else f"{shown} and {len(pieces) - most} more"


def _show(translation: "Translation", number: int, on_stderr: bool) -> None:
    from rich.console import Console

    from limelight.pictures.terminal import heatmap

    if translation.weights is None:
        warn(f"sentence {number}: no picture, since nothing was produced")
        return
    picture = heatmap(translation.weights, translation.source_tokens, translation.target_tokens)
    Console(stderr=on_stderr).print(picture)


def _save(translation: "Translation", path: Path) -> None:
    from limelight.pictures.figure import save_heatmap

    if translation.weights is None:
        warn(f"{path} is not written: nothing was produced")
        return
    save_heatmap(path, translation.weights, translation.source_tokens, translation.target_tokens)
    say(f"wrote {path}")
