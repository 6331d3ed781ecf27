"""The study of `make ablation`: which arms, over which seeds, what each costs, and which of them share a stage."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from temper import metrics
from temper.recipe import Recipe

BASE = "base"
TIMING = Path("reports/timing")


@dataclass
class Comparison:
    baseline: str
    arms: list[str]


@dataclass
class Study:
    seeds: list[int]
    seeded: list[str]
    """Sections whose `seed` a seed of the study sets."""
    measure: str
    """Of a test row, 0 to 1."""
    confidence: float
    scale: dict[str, list[str]]
    """Overrides by hardware.name."""
    arms: dict[str, list[str]]
    """Overrides by arm."""
    comparisons: dict[str, Comparison]

    def __post_init__(self) -> None:
        for name, comparison in self.comparisons.items():
            if unknown := sorted({comparison.baseline, *comparison.arms} - {BASE, *self.arms}):
                raise SystemExit(f"ablation.comparisons: {name} names '{unknown[0]}', which ablation.arms lacks")

    def only(self, names: Sequence[str]) -> list[str]:
        """The arms of `names`, all without any."""
        if unknown := [name for name in names if name not in self.arms]:
            raise SystemExit(f"--only: no arm '{unknown[0]}': choose of {', '.join(self.arms)}")
        return [name for name in self.arms if not names or name in names]


@dataclass(frozen=True)
class Run:
    """Of a stage. Equal ones are run once: DVC's run cache has the result."""

    stage: str
    epochs: float
    settings: tuple[str, ...]
    """The sections that its result follows from, as YAML."""


@dataclass(frozen=True)
class Experiment:
    arm: str
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Of the DVC experiment; other overrides have another name."""
        digest = hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:6]
        return f"ablation-{self.arm}-{self.seed}-{digest}"

    @property
    def targets(self) -> list[str]:
        return [f"evaluate@{variant}" for variant in (BASE, self.recipe.release)]


def seeding(study: Study, recipe: Recipe, seed: int) -> list[str]:
    """Overrides that seed what `recipe` trains."""
    return [f"{stage}.seed={seed}" for stage in recipe.stages() if stage in study.seeded]


def runs(recipe: Recipe, settings: DictConfig) -> tuple[Run, ...]:
    """The runs of an experiment: its trainings in order, each after those before it, and both evaluations."""
    found: list[Run] = []
    read: tuple[str, ...] = ()
    for stage in recipe.stages():
        read = (*read, OmegaConf.to_yaml(settings[stage]))
        found.append(Run(stage, _epochs(settings, stage), read))
    return (*found, Run("evaluate", 1.0, read), Run("evaluate", 1.0, ()))


def seconds(wanted: Iterable[Run], recorded: DictConfig) -> tuple[float, list[str]]:
    """What `wanted` takes by the timing of the last run, whose settings are `recorded`, and the stages that had none.

    A stage takes as long as it has epochs; one that was not timed as long as SFT.
    """
    total, untimed = 0.0, set()
    for run in wanted:
        stage = run.stage
        files = sorted(TIMING.glob("evaluate/*.json" if stage == "evaluate" else f"training/{stage}.json"))
        if not files:
            untimed.add(stage)
            files, stage = [TIMING / "training/sft.json"], "sft"
        timed = [float(metrics.read(file)["seconds"]) for file in files]
        total += sum(timed) / len(timed) * run.epochs / _epochs(recorded, stage)
    return total, sorted(untimed)


def _epochs(settings: DictConfig, stage: str) -> float:
    return float(OmegaConf.select(settings, f"{stage}.epochs") or 1)
