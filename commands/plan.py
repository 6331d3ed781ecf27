"""What a run will take before it starts: memory a device, tokens, time and cost of each stage that trains or samples.

python -m commands.plan model=llama3.1-8b hardware=gpu8 sft=qlora     what params.yaml would be with these overrides
python -m commands.plan --json …                                      the same for a program
"""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from commands.compose import composed
from temper import plan
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
}
# What makes training smaller, the mildest first. Each is composed and counted before it is named.
CHANGES = (
    ("hardware.micro_batch=1",),
    ("sft=qlora",),
    ("sft=qlora", "hardware.micro_batch=1"),
    ("hardware=gpu8",),
    ("hardware=gpu8", "hardware.deepspeed=zero3"),
    ("hardware=gpu8-offload",),
)
ERROR = 0.15  # of the figures, by what was measured and published: tests/test_plan.py
TOO_MUCH = "too much"


def main(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if argument != "--json"]
    run = plan.prepared(composed(overrides))
    found = list(plan.estimates(run))
    remedies = changes(run, [estimate for estimate in found if word(run, estimate) == TOO_MUCH], overrides)
    if "--json" in arguments:
        print(json.dumps(report(run, found, remedies), indent=2))
    else:
        show(run, found, remedies)


def word(run: Run, estimate: Estimate) -> str:
    share = estimate.peak / run.capacity
    return TOO_MUCH if share > 1 else "tight" if share > 1 - ERROR else "fits"


def changes(run: Run, large: list[Estimate], overrides: list[str]) -> dict[str, str]:
    """For each stage that is too large, the mildest overrides with which it fits; empty where there are none."""
    found = {estimate.stage: "" for estimate in large}
    for estimate in large:
        spare = int((run.capacity - estimate.peak + estimate.served) / plan.GIB)
        if estimate.served and spare > 0:
            found[estimate.stage] = f"hardware.runtime.serve_memory_gb={spare}"
    for change in CHANGES:
        if all(found.values()):
            break
        keys = {override.partition("=")[0] for override in change}
        kept = [override for override in overrides if override.partition("=")[0] not in keys]
        other = plan.prepared(composed([*kept, *change]))
        for estimate in plan.estimates(other):
            if found.get(estimate.stage) == "" and word(other, estimate) != TOO_MUCH:
                found[estimate.stage] = " ".join(change)
    return found


def report(run: Run, found: list[Estimate], remedies: dict[str, str]) -> dict[str, Any]:
    stages = [
        {
            "stage": estimate.stage,
            "devices": estimate.devices,
            "memory_gb": {name: round(held / GB, 3) for name, held in estimate.memory.items() if held},
            "peak_memory_gb": round(estimate.peak / GB, 2),
            "offloaded_gb": round(estimate.offloaded * estimate.devices / GB, 2),
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
        "changes": remedies,
        "assumptions": assumptions(run, found),
        "stages": stages,
    }


def dollars(run: Run, estimate: Estimate) -> float:
    """Of all devices that the machine has: what a stage leaves idle is paid for too."""
    return estimate.seconds / 3600 * run.processes * run.device.price


def show(run: Run, found: list[Estimate], remedies: dict[str, str]) -> None:
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
    offloaded = max(estimate.offloaded * estimate.devices for estimate in found) / GB
    return [
        f"rows and tokens {run.data.source}; {run.data.tokens:.0f} tokens a row, {run.data.longest} in the longest",
        f"shape of the model {run.source}",
        f"{run.rate(machine.precision).flops / 1e12:.3g} TFLOPS a device: {device.mfu:.0%} of its peak in {machine.precision}",
        f"${device.price:.2f} an hour and device; data stages, downloads and retries not counted",
        f"{device.process_gb:g} GB a device for libraries and context; {device.slack:.0%} on top of activations",
        *([f"{offloaded:.0f} GB of the machine's memory for what is offloaded"] if offloaded else []),
    ]


def verdict(run: Run, found: list[Estimate], remedies: dict[str, str]) -> list[str]:
    """One line, or one for all stages with the same remedies."""
    capacity, peaks = run.capacity / GB, {estimate.stage: estimate.peak / GB for estimate in found}
    if not remedies:
        largest = max(peaks, key=lambda stage: peaks[stage])
        return [f"fits: the largest, {largest}, takes {peaks[largest]:.1f} of {capacity:.0f} GB"]
    alike: dict[str, list[str]] = {}
    for stage, remedy in remedies.items():
        alike.setdefault(remedy, []).append(stage)
    return [
        f"does not fit: {', '.join(stages)}, up to {max(peaks[stage] for stage in stages):.1f} of {capacity:.0f} GB: "
        + (f"it would with {remedy}" if remedy else "take a smaller model, or larger GPUs")
        for remedy, stages in alike.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
