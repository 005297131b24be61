"""`limelight info`."""

import json
from typing import Annotated, Any

import typer


def info(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Versions, devices, native kernels, and what each backend can run here and why it cannot run the rest."""
    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for title in ("versions", "machine", "native kernels"):
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in facts[title].items():
            table.add_row(name, str(value))
        console.print(table)
    table = Table("call", "backend", "what it says", title="backends", title_justify="left")
    for call, answers in facts["backends"].items():
        for i, (backend, answer) in enumerate(answers.items()):
            table.add_row("" if i else call, backend, answer)
        table.add_section()
    console.print(table)


def gather() -> dict[str, Any]:
    """What `limelight info --json` prints."""
    import platform

    import torch

    from limelight.training.run import versions

    devices = ["cpu"] + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "vector instructions (torch)": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "devices": ", ".join(devices),
        },
        "native kernels": _native_kernels(),
        "backends": _backends(),
    }


def _native_kernels() -> dict[str, str]:
    """Whether the compiled kernels can be called, for which instruction sets, or why not."""
    from limelight.backends.extension import native, refusal

    module, why_not = native(), refusal()
    found = {"state": "ready" if why_not is None else why_not}
    if module is not None:
        found["compiled in"] = ", ".join(module.compiled())
        found["can run here"] = ", ".join(module.available())
    if module is not None and why_not is None:
        found["in use"] = module.isa()
    return found


def _backends() -> dict[str, dict[str, str]]:
    """What each backend says to calls that are typical of models, and which of them `auto` takes."""
    import torch

    from limelight import additive, causal, explain, lengths

    q = torch.zeros(2, 4, 7, 32)
    padded = lengths(torch.tensor([7, 5]))
    calls: dict[str, dict[str, Any]] = {
        "dot, no mask": {},
        "dot, causal": {"mask": causal()},
        "dot, padded": {"mask": padded},
        "additive, padded": {"score": additive(torch.zeros(32)), "mask": padded},
    }
    found: dict[str, dict[str, str]] = {}
    for title, arguments in calls.items():
        explanation = explain(q, q, q, **arguments)
        found[title] = {
            name: ("auto takes it" if name == explanation.chosen else reason or "can run")
            for name, reason in explanation.reasons.items()
        }
    return found
