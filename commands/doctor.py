"""What is installed, what is missing, what a run needs, what hardware was found and which conf/hardware preset fits it."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from temper import envs, hardware, params

# Disk in GB and minutes to build on two cores, measured; downloads not counted.
COST = {"main": (1.1, 0.5), "train": (2.4, 1.0), "quantize": (1.6, 4.0), "serve": (3.8, 1.0)}
RUN_GB = 4.0  # data, models, checkpoints and DVC's cache of the default run
RUN_MINUTES = 30


class Finding(NamedTuple):
    name: str
    state: str  # ok, missing or note
    detail: str


def main() -> None:
    findings = [*tools(), *environments(), *resources(), *machine()]
    table = Table("", "what", "found", box=None)
    marks = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "note": "[yellow]·[/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, finding.detail)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if missing := [finding.name for finding in findings if finding.state == "missing"]:
        sys.exit(f"missing: {', '.join(missing)}")


def tools() -> Iterator[Finding]:
    """The programs that a fresh machine must have."""
    for tool, why in {"git": "experiments and versions", "make": "the targets", "c++": "compiles llama.cpp"}.items():
        place = shutil.which(tool)
        yield Finding(
            tool, "ok" if place else "missing", place or f"not on PATH ({why}): install it with the system's packages"
        )


def environments() -> Iterator[Finding]:
    for env in envs.LOCKS:
        gigabytes, minutes = COST[env]
        built = envs.is_built(env)
        wanted = f"not built: `make env-{env}` takes about {minutes:g} min and {gigabytes:g} GB"
        yield Finding(f"environment {env}", "ok" if built else "note", str(envs.path(env)) if built else wanted)


def resources() -> Iterator[Finding]:
    """Disk, memory and time against what the default run needs."""
    needed = RUN_GB + sum(COST[env][0] for env in envs.LOCKS if not envs.is_built(env))
    free = min(shutil.disk_usage(place).free for place in (Path.cwd(), _existing(envs.cache()))) / 1e9
    yield Finding("disk", "ok" if free > needed else "missing", f"{free:.0f} GB free, {needed:.0f} GB needed")
    memory, least = hardware.found().memory_gb, float(params.runtime()["min_memory_gb"])
    yield Finding("memory", "ok" if memory > least else "missing", f"{memory:.0f} GB, {least:.0f} GB needed")
    yield Finding("time", "note", f"about {RUN_MINUTES} minutes for the default run on 2 cores")


def machine() -> Iterator[Finding]:
    found = hardware.found()
    composed = str(OmegaConf.select(OmegaConf.load(params.PARAMS), "hardware.name"))
    yield Finding("hardware", "ok", str(found))
    fits = (
        "params.yaml has it" if composed == found.preset else f"params.yaml has {composed}: -S hardware={found.preset}"
    )
    yield Finding("preset that fits", "ok" if composed == found.preset else "note", f"{found.preset} ({fits})")
    offline = "set" if os.environ.get("HF_TOKEN") else "not set (only gated models of the Hub need it)"
    yield Finding("HF_TOKEN", "note", offline)


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.parents) if parent.exists())


if __name__ == "__main__":
    main()
