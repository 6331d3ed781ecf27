"""What the last run made, read from reports/: the one source of the card, the report, the summary and the README's table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import cost, metrics, params
from temper.recipe import Recipe

Values = dict[str, Any]
DATA_STAGES = ("ingest", "dedup", "quality", "pii", "split", "contamination", "mix", "audit")


@dataclass(frozen=True)
class Results:
    recipe: Recipe
    stages: dict[str, Values]
    """Metrics by stage: base, ingest, …, `training/sft`, `evaluate/dpo`, `bench/bf16`, `quantize/gguf`, `retention/gguf`,
    `draft/eagle3`, `judge/dpo`, `rewardbench/reward`, `safety/dpo`."""
    timing: dict[str, Values]
    """reports/timing/ by the same names: seconds, peak memory and the hardware that took them."""
    curves: dict[str, list[dict[str, str]]]
    """Rows of reports/plots/<stage>.csv, by training stage."""

    @property
    def variants(self) -> list[str]:
        """What was evaluated, in the recipe's order."""
        return self.recipe.variants

    def trainings(self) -> dict[str, tuple[Values, Values]]:
        """(metrics, timing) of each training stage that has a curve."""
        names = {name: f"training/{name}" for name in self.curves}
        return {name: (self.stages[key], self.timing[key]) for name, key in names.items()}

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
        """The concurrencies at which `bench` measured the release, in order."""
        return cost.levels(self.stages["bench/bf16"])

    @property
    def served(self) -> list[str]:
        """The variants that `bench` measured."""
        return [name.removeprefix("bench/") for name in self.stages if name.startswith("bench/")]

    @property
    def released(self) -> list[str]:
        """The quants that kept enough of the release to be offered."""
        return [name for name in self.recipe.formats if self.stages[f"retention/{name}"]["released"]]

    def withheld(self) -> dict[str, str]:
        """Why each of the other quants is not."""
        others = [name for name in self.recipe.formats if name not in self.released]
        return {name: self.stages[f"retention/{name}"]["withheld"] for name in others}

    def minutes(self) -> float:
        """Minutes that all stages took together."""
        return sum(values["seconds"] for values in self.timing.values()) / 60

    def hardware(self) -> str:
        """The machines that measured, normally one."""
        return "; ".join(sorted({values["hardware"] for values in self.timing.values()}))


def load(chosen: Recipe, folder: Path = Path("reports")) -> Results:
    """What a run of the recipe `chosen` leaves under reports/; exits naming `make repro` when a stage has not run."""
    expected = list(_expected(chosen))
    stages = {name: metrics.read(folder / f"{name}.json") for name in expected}
    timing = {name: metrics.read(folder / f"timing/{name}.json") for name in expected}
    curves = {name: _rows(folder / f"plots/{name}.csv") for name in chosen.stages() if name != "preferences"}
    return Results(chosen, stages, timing, curves)


def _expected(chosen: Recipe) -> Iterator[str]:
    yield from ("base", *DATA_STAGES, "general", *(f"training/{name}" for name in chosen.stages()))
    yield from (f"{stage}/{name}" for stage in ("quantize", "retention") for name in chosen.formats)
    yield from (f"draft/{name}" for name in chosen.draft)
    yield from (f"bench/{variant}" for variant in params.tree().served)
    yield from (f"evaluate/{variant}" for variant in chosen.variants)
    yield from (*(f"judge/{variant}" for variant in chosen.judged), *(f"rewardbench/{name}" for name in chosen.scored))
    yield from ("probes", "guard", *(f"{stage}/{name}" for stage in ("responses", "safety") for name in chosen.safety))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))
