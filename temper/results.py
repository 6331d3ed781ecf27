"""What the last run made, read from reports/: the one source of the card, the report, the summary and the README's table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import metrics

Values = dict[str, Any]
DATA_STAGES = ("ingest", "dedup", "pii", "split", "contamination")
VARIANTS = ("base", "sft", "dpo")


@dataclass(frozen=True)
class Results:
    stages: dict[str, Values]
    """Metrics by stage: base, ingest, …, `evaluate/dpo`, `bench/bf16`, `quantize/gguf`."""
    timing: dict[str, Values]
    """reports/timing/ by the same names: seconds, peak memory and the hardware that took them."""
    curves: dict[str, list[dict[str, str]]]
    """Rows of reports/plots/<stage>.csv."""

    def funnel(self) -> list[tuple[str, int, int]]:
        """(data stage, rows kept, rows rejected)."""
        return [
            (name, self.stages[name]["kept"], self.stages[name]["seen"] - self.stages[name]["kept"])
            for name in DATA_STAGES
        ]

    def rejected(self) -> list[tuple[str, str, int]]:
        """(data stage, reason, rows) for everything that left the data."""
        return [
            (name, key.removeprefix("rejected_").replace("_", " "), count)
            for name in DATA_STAGES
            for key, count in self.stages[name].items()
            if key.startswith("rejected_") and count
        ]

    def interval(self, variant: str, measure: str) -> tuple[float, float, float]:
        """(value, low, high) of a measure of `evaluate`."""
        values = self.stages[f"evaluate/{variant}"]
        return values[measure], values[f"{measure}_low"], values[f"{measure}_high"]

    def levels(self) -> list[int]:
        """The concurrencies that `bench` measured, in order."""
        keys = self.stages["bench/bf16"]
        return sorted(int(key[1:].split("_")[0]) for key in keys if key.endswith("_tokens_per_second"))

    def minutes(self) -> float:
        """Minutes that all stages took together."""
        return sum(values["seconds"] for values in self.timing.values()) / 60

    def hardware(self) -> str:
        """The machines that measured, normally one."""
        return "; ".join(sorted({values["hardware"] for values in self.timing.values()}))


def load(folder: Path = Path("reports")) -> Results:
    """Everything under reports/; exits naming `make repro` when a stage has not run."""
    stages = {name: metrics.read(folder / f"{name}.json") for name in _expected()}
    timing = {name: metrics.read(folder / f"timing/{name}.json") for name in _expected()}
    curves = {stage: _rows(folder / f"plots/{stage}.csv") for stage in ("sft", "dpo")}
    return Results(stages, timing, curves)


def _expected() -> Iterator[str]:
    yield from ("base", *DATA_STAGES, "sft", "preferences", "dpo", "quantize/gguf", "bench/bf16")
    yield from (f"evaluate/{variant}" for variant in VARIANTS)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))
