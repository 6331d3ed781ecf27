"""The study of `make ablation`: which arms, over which seeds, what each costs, which share a stage, and what each follows from."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
from omegaconf import DictConfig, OmegaConf

from temper import graph, metrics
from temper.recipe import STAGES, Recipe

BASE = "base"
JOURNAL = Path("reports/ablation")
TIMING = Path("reports/timing")


@dataclass
class Comparison:
    baseline: str
    arms: list[str]


@dataclass
class Rates:
    least: float
    """Parameters of the smallest model that they are for."""
    learning: dict[str, dict[str, float]]
    """By stage and method."""


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
    rates: Rates
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
    identity: str

    @property
    def name(self) -> str:
        """Of the DVC experiment; other overrides have another name."""
        digest = hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:6]
        return f"ablation-{self.arm}-{self.seed}-{digest}"

    @property
    def journal(self) -> Path:
        """Keeps what it came to, so that git carries it to other clones."""
        return JOURNAL / f"{self.name}.json"

    @property
    def targets(self) -> list[str]:
        return [f"evaluate@{variant}" for variant in (BASE, self.recipe.release)]


def rates(study: Study, recipe: Recipe, settings: DictConfig) -> list[str]:
    """Overrides of the learning rates of what `recipe` trains, by the method of each stage: LoRA where it knows no other."""
    known = {stage: study.rates.learning.get(stage, {}) for stage in recipe.stages()}
    found = {stage: rate.get(settings[stage].get("method", "lora")) for stage, rate in known.items()}
    return [f"{stage}.learning_rate={rate}" for stage, rate in found.items() if rate]


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


def stages(recipe: Recipe, defined: Sequence[graph.Stage]) -> list[graph.Stage]:
    """Those of `defined` up to what `recipe` trains and to its evaluation, a matrix as its last item."""
    off = set(STAGES) - set(recipe.stages())
    last = {stage.name.partition("@")[0]: stage for stage in defined}
    flow = nx.DiGraph(graph.edges([stage for name, stage in last.items() if name not in off]))
    ends = {last[name].name for name in (*recipe.stages(), "evaluate")}
    flow.add_nodes_from(ends)
    needed = ends.union(*(nx.ancestors(flow, end) for end in ends))
    return [stage for stage in last.values() if stage.name in needed]


def identity(
    recipe: Recipe, settings: DictConfig, measure: str, defined: Sequence[graph.Stage], held: Mapping[str, str]
) -> str:
    """Digest of what the result of an experiment follows from; whatever it leaves out may change.

    That is: what is trained from what, what `measure` is taken, the sections that the stages of `recipe` track, and of the files
    that they depend on those that git has, whose hashes `held` gives by path (code, locks of environments, raw data).
    """
    needed = stages(recipe, defined)
    followed = {
        "recipe": {name: getattr(recipe, name) for name in (*recipe.stages(), "release")},
        "measure": measure,
        "params": {key: OmegaConf.select(settings, key) for stage in needed for key in stage.params},
        "files": {dep: held[dep] for stage in needed for dep in stage.deps if dep in held},
    }
    text = json.dumps(OmegaConf.to_container(OmegaConf.create(followed)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
