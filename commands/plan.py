"""What a run will take before it starts: memory a device, tokens, time and cost of each stage that trains or samples.

python -m commands.plan model=llama3.1-8b hardware=gpu8 sft=qlora     what params.yaml would be with these overrides
python -m commands.plan --json …                                      the same for a program
"""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from commands.compose import composed
from temper import memory, plan, renderers
from temper.plan import Estimate, Run

WIDTH = 140  # of tables that go to a file or a pipe
GB = 1e9
# Columns of the table, and what they sum up of an estimate's memory.
COLUMNS = {
    "weights": ("weights", "gathered", "other models"),
    "trained": ("adapter", "gradients", "optimizer"),
    "activations": ("activations",),
    "logits": ("logits",),
    "KV cache": ("KV cache",),
    "process": ("process",),
    "cached": ("cached",),
}
# What makes training smaller, the mildest first. Each is composed, refused as its trainings would, and counted before it is named.
CHANGES = (
    ("hardware.micro_batch=2",),
    ("hardware.micro_batch=1",),
    ("sft=qlora",),
    ("sft=qlora", "hardware.micro_batch=1"),
    ("hardware=gpu1",),
    ("hardware=gpu1", "hardware.micro_batch=2"),
    ("hardware=gpu1", "sft=qlora", "hardware.micro_batch=2"),
    ("hardware=gpu8",),
    ("hardware=gpu8", "hardware.deepspeed=zero3"),
    ("hardware=gpu8-offload",),
)
# Of the figures, by what was measured and published (tests/test_plan.py): all of them, and those of what is offloaded.
ERROR, OFFLOAD_ERROR = 0.15, 0.25
TOO_MUCH, TIGHT, FITS = "too much", "tight", "fits"
Remedies = dict[str, tuple[str, str]]
"""By stage: what it is with the overrides that come second, both empty where none make it small enough."""


def main(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if argument != "--json"]
    run = prepared(overrides)
    found = list(plan.estimates(run))
    remedies = changes(run, [estimate for estimate in found if word(run, estimate) == TOO_MUCH], overrides)
    if "--json" in arguments:
        print(json.dumps(report(run, found, remedies), indent=2))
    else:
        show(run, found, remedies)


def prepared(overrides: list[str]) -> Run:
    """The run with `overrides`; exits as its trainings would that refuse them."""
    run = plan.prepared(composed(overrides))
    renderers.require(run.settings, run.processes)
    return run


def word(run: Run, estimate: Estimate) -> str:
    """By the device's memory or the machine's, whichever it fills more."""
    share = max(estimate.peak / run.capacity, estimate.host / run.host_capacity)
    return TOO_MUCH if share > 1 else TIGHT if share > 1 - margin(estimate) else FITS


def margin(estimate: Estimate) -> float:
    return OFFLOAD_ERROR if estimate.offloaded else ERROR


def changes(run: Run, large: list[Estimate], overrides: list[str]) -> Remedies:
    """For each stage that is too large, the mildest overrides with which it fits, or else is tight."""
    found = {estimate.stage: {FITS: change} if (change := of_runtime(run, estimate)) else {} for estimate in large}
    for other, change in others(overrides):
        if all(FITS in words for words in found.values()):
            break
        for estimate in plan.estimates(other):
            if estimate.stage in found:
                found[estimate.stage].setdefault(word(other, estimate), change)
    best = {stage: next((one for one in (FITS, TIGHT) if one in words), "") for stage, words in found.items()}
    return {stage: (one, found[stage].get(one, "")) for stage, one in best.items()}


def of_runtime(run: Run, estimate: Estimate) -> str:
    """The override with which a stage fits that is too large for what hardware.runtime says, empty where there is none."""
    share = 1 - margin(estimate)
    spare = int((share * run.capacity - estimate.peak + estimate.served) / plan.GIB)
    if estimate.served and spare > 0:
        return f"hardware.runtime.serve_memory_gb={spare}"
    if run.has_gpus and estimate.peak <= run.capacity:
        return f"hardware.runtime.min_memory_gb={math.ceil(estimate.host / share / GB)}"
    return ""


def others(overrides: list[str]) -> Iterator[tuple[Run, str]]:
    """The runs with each of CHANGES on top that no training refuses."""
    for change in CHANGES:
        keys = {override.partition("=")[0] for override in change}
        kept = [override for override in overrides if override.partition("=")[0] not in keys]
        try:
            yield prepared([*kept, *change]), " ".join(change)
        except SystemExit:
            continue


def report(run: Run, found: list[Estimate], remedies: Remedies) -> dict[str, Any]:
    stages = [
        {
            "stage": estimate.stage,
            "devices": estimate.devices,
            "memory_gb": {name: round(held / GB, 3) for name, held in estimate.memory.items() if held},
            "peak_memory_gb": round(estimate.peak / GB, 2),
            "host_memory_gb": round(estimate.host / GB, 2),
            "verdict": word(run, estimate),
            "fits": word(run, estimate) != TOO_MUCH,
            "tokens": estimate.tokens,
            "hours": round(estimate.seconds / 3600, 4),
            "dollars": round(dollars(run, estimate), 2),
        }
        for estimate in found
    ]
    return {
        "model": run.settings.model.name,
        "parameters": run.shape.parameters(),
        "device": run.device.name,
        "device_memory_gb": round(run.capacity / GB, 1),
        "fits": not remedies,
        "host_memory_gb": round(run.host_capacity / GB, 1),
        "changes": {stage: change for stage, (_, change) in remedies.items()},
        "assumptions": assumptions(run, found),
        "stages": stages,
    }


def dollars(run: Run, estimate: Estimate) -> float:
    """Of all devices that the machine has: what a stage leaves idle is paid for too."""
    return estimate.seconds / 3600 * run.processes * price(run)


def price(run: Run) -> float:
    """Dollars an hour and device."""
    return float(run.settings.hardware.price.hour)


def show(run: Run, found: list[Estimate], remedies: Remedies) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    where = f"{run.processes} × {run.device.name}, {run.capacity / GB:.0f} GB each"
    console.print(f"{run.settings.model.name}: {run.shape.parameters():,} parameters, on {where}")
    table = Table("stage", *COLUMNS, "GB a device", "", "tokens", "time", "cost", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for estimate in found:
        table.add_row(*line(run, estimate))
    console.print(table)
    seconds, cost = (sum(part) for part in zip(*((one.seconds, dollars(run, one)) for one in found), strict=True))
    console.print(f"together {clock(seconds)}, ${cost:,.2f}")
    for text in assumptions(run, found):
        console.print(f"· {text}")
    for text in verdict(run, found, remedies):
        console.print(text)


def line(run: Run, estimate: Estimate) -> list[str]:
    held = [sum(estimate.memory.get(part, 0) for part in parts) / GB for parts in COLUMNS.values()]
    figures = [f"{part:.2f}" if part else "" for part in held]
    rest = [f"{estimate.tokens:,}", clock(estimate.seconds), f"${dollars(run, estimate):,.2f}"]
    return [estimate.stage, *figures, f"{estimate.peak / GB:.1f}", word(run, estimate), *rest]


def clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def assumptions(run: Run, found: list[Estimate]) -> list[str]:
    """What the figures rest on; conf/plan/default.yaml has the sources."""
    device, machine = run.device, run.settings.hardware
    largest = max(found, key=lambda estimate: estimate.host)
    why = "what is offloaded" if largest.offloaded > largest.written else "float32 weights while they are merged"
    return [
        f"rows and tokens {run.data.source}; {run.data.tokens:.0f} tokens a row, {run.data.longest} in the longest",
        f"shape of the model {run.source}",
        f"{run.rate(machine.precision).flops / 1e12:.3g} TFLOPS a device: {device.mfu:.0%} of its peak in {machine.precision}",
        f"${price(run):.2f} an hour and device; data stages, downloads and retries not counted",
        f"{device.process_gb:g} GB a device for libraries and context; {device.slack:.0%} on top of activations",
        f"{largest.host / GB:.1f} GB of a machine's memory, of {run.host_capacity / GB:.0f}, for {why}",
        *([drafting(run)] if run.settings.recipe.draft else []),
    ]


def drafting(run: Run) -> str:
    """What the figures of `draft` rest on."""
    cfg, head, (rows, row) = run.settings.draft, plan.head(run), plan.drafted(run)
    states = head.states(rows * row, memory.WIDTHS[plan.DTYPES[cfg.dtype]])
    masked = "all of a pack, as on a CPU" if head.on_cpu else "its own row"
    return (
        f"draft: {head.trained():,} weights learn, {head.frozen():,} are the model's; {rows:,} answers, {row:.0f} tokens each with "
        f"their prompts, whose hidden states take {states / GB:.1f} GB of disk; a token attends {masked}; three starts"
    )


def verdict(run: Run, found: list[Estimate], remedies: Remedies) -> list[str]:
    """One line, or one for all stages with the same remedies."""
    if not remedies:
        fullest = max(found, key=lambda one: max(one.peak / run.capacity, one.host / run.host_capacity))
        return [f"{word(run, fullest)}: the fullest, {fullest.stage}, takes {taken(run, [fullest])}"]
    alike: dict[tuple[str, str], list[Estimate]] = {}
    for estimate in found:
        if estimate.stage in remedies:
            alike.setdefault(remedies[estimate.stage], []).append(estimate)
    would = {FITS: "it would with", TIGHT: "it would be tight with", "": "take a smaller model, or larger GPUs"}
    return [
        f"does not fit: {', '.join(one.stage for one in large)}, up to {taken(run, large)}: {would[one]} {change}".rstrip()
        for (one, change), large in alike.items()
    ]


def taken(run: Run, large: list[Estimate]) -> str:
    """The most that one of the stages takes of a device, and of a machine where that is too much."""
    peak, host = (max(getattr(one, name) for one in large) for name in ("peak", "host"))
    machine = f", and {host / GB:.1f} of the machine's {run.host_capacity / GB:.0f} GB"
    return f"{peak / GB:.1f} of {run.capacity / GB:.0f} GB{machine if host > run.host_capacity else ''}"


if __name__ == "__main__":
    main(sys.argv[1:])
