"""What is installed, what is missing, what a run needs, what hardware was found and which conf/hardware preset fits it.

Standard library only: it runs on a bare Python 3.11 before any environment exists.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from temper import envs, hardware

TOOLS = {
    "python3.11": "every environment is built from it",
    "git": "experiments and versions",
    "make": "the targets",
    "c++": "compiles llama.cpp",
}
# Disk in GB and minutes to build on two cores, measured; downloads not counted.
COST = {"main": (1.1, 0.5), "train": (2.4, 1.0), "quantize": (1.6, 4.0), "serve": (3.8, 1.0), "deploy": (0.4, 0.2)}
# Of the default job on two cores, measured; no other preset was.
MINUTES = {"cpu": "70 to 120 min on 2 cores"}
MARKS = {"ok": "✓", "missing": "✗", "note": "·"}


class Finding(NamedTuple):
    name: str
    state: str  # ok, missing or note
    detail: str


def main() -> None:
    settings = composed(Path("params.yaml").read_text())
    findings = [*tools(), *environments(), *resources(settings), *machine(settings)]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{MARKS[finding.state]} {finding.name:{width}}  {finding.detail}")
    if missing := [finding.name for finding in findings if finding.state == "missing"]:
        sys.exit(f"missing: {', '.join(missing)}")


def composed(text: str) -> dict[str, str]:
    """The section `hardware` of params.yaml without its levels, `preset` beside them; a parser of YAML needs an environment."""
    section = re.search(r"^hardware:\n((?: .*\n)+)", text, re.MULTILINE)
    if section is None:
        raise SystemExit("params.yaml: no section 'hardware': restore it with git, or compose it with `make params`")
    values = dict(re.findall(r"^ +(\w+): (\S+)$", section[1], re.MULTILINE))
    bf16 = values["name"] == "cpu" and values["precision"] == "bf16"
    return values | {"preset": "cpu-bf16" if bf16 else values["name"]}


def tools() -> Iterator[Finding]:
    """The programs that a fresh machine must have."""
    for tool, why in TOOLS.items():
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


def resources(settings: dict[str, str]) -> Iterator[Finding]:
    """Disk, memory and time against what a run with the composed hardware needs."""
    unbuilt = [env for env in envs.LOCKS if not envs.is_built(env)]
    needed = float(settings["min_disk_gb"]) + sum(COST[env][0] for env in unbuilt)
    free = min(shutil.disk_usage(place).free for place in (Path.cwd(), _existing(envs.cache()))) / 1e9
    yield Finding("disk", "ok" if free > needed else "missing", f"{free:.0f} GB free, {needed:.0f} GB needed")
    memory, least = hardware.found().memory_gb, float(settings["min_memory_gb"])
    yield Finding("memory", "ok" if memory > least else "missing", f"{memory:.0f} GB, {least:.0f} GB needed")
    yield Finding("time", "note", _time(settings["preset"], unbuilt))


def machine(settings: dict[str, str]) -> Iterator[Finding]:
    found, preset = hardware.found(), settings["preset"]
    fits = f"params.yaml has {preset}: -S hardware={found.preset}" if preset != found.preset else "params.yaml has it"
    yield Finding("hardware", "ok", str(found))
    yield Finding("preset that fits", "ok" if preset == found.preset else "note", f"{found.preset} ({fits})")
    offline = "set" if os.environ.get("HF_TOKEN") else "not set (only gated models of the Hub need it)"
    yield Finding("HF_TOKEN", "note", offline)


def _time(preset: str, unbuilt: list[str]) -> str:
    job = f"about {MINUTES[preset]}" if preset in MINUTES else "not measured"
    building = sum(COST[env][1] for env in unbuilt)
    first = f", after {building:g} min (and the downloads) to build {', '.join(unbuilt)}" if unbuilt else ""
    return f"the default job with hardware={preset}: {job}{first}"


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.parents) if parent.exists())


if __name__ == "__main__":
    main()
