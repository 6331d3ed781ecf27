"""Train the real stages for a few steps on a share of their rows before the real run: speed, loss, memory, and what is unhealthy.

    python -m commands.smoke_train [--stages sft,dpo] [--steps 100] [--share 0.1] [override …]

With the settings of conf/ as they are now, overrides on top, in a folder of its own: models/, data/, reports/ and dvc.lock
stay as they are. Rows that are too few for --steps are gone through more often than in the real run. A stage starts from the
model that an earlier one of --stages made there, else from the one in models/.
"""

import argparse
import contextlib
import csv
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from commands.compose import composed
from temper import graph, health, metrics, params, recipe

CODE = ("dvc.yaml", "scripts", "temper", "requirements")
FEWEST = 8  # steps whose rows are drawn however small the share
SEED = 17


@dataclass(frozen=True)
class Drawn:
    """Rows to train on, and how many there are of them."""

    rows: int
    of: int


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    with tempfile.TemporaryDirectory(prefix="temper-smoke-") as folder:
        scratch = Path(folder)
        for name in CODE:
            (scratch / name).symlink_to(Path(name).absolute())
        (scratch / params.PARAMS).write_text(composed(options.overrides))
        healthy = [smoke(stage, scratch, options) for stage in asked(options.stages, scratch)]
    sys.exit(0 if all(healthy) else 1)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m commands.smoke_train", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--stages", type=lambda text: text.split(","), help="which train, in this order (the first of the recipe)"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each stage (100), max_steps of conf/ permitting")
    parser.add_argument("--share", type=float, default=0.1, help="of the rows (0.1)")
    parser.add_argument("overrides", nargs="*", help="of conf/, such as hardware=gpu8")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        raise SystemExit(f"--share is {options.share}: choose a share of the rows above 0 and up to 1")
    if options.steps < 1:
        raise SystemExit(f"--steps is {options.steps}: choose 1 or more")
    return options


def asked(names: list[str] | None, scratch: Path) -> list[graph.Stage]:
    """The named trainings of the recipe that `scratch`/params.yaml holds, or the first of them."""
    with contextlib.chdir(scratch):
        trainings = {stage.script: stage for stage in graph.stages() if stage.script in recipe.STAGES}
    trainings.pop("preferences", None)  # trains nothing
    if unknown := [name for name in names or () if name not in trainings]:
        raise SystemExit(f"--stages: {unknown[0]} is no training of this recipe: choose of {', '.join(trainings)}")
    return [trainings[name] for name in names or list(trainings)[:1]]


def smoke(stage: graph.Stage, scratch: Path, options: argparse.Namespace) -> bool:
    """Run `stage` in `scratch`, print what it was like, and return whether it came to its end."""
    name = stage.script
    settings = params.tree(scratch / params.PARAMS)[name]
    models, data = (sorted(dep for dep in stage.deps if dep.startswith(kind)) for kind in ("models/", "data/"))
    for model in models:
        provide(Path(model), scratch)
    fewest = math.ceil(FEWEST * rows_a_step(name, settings))
    files = {Path(file).stem: draw(Path(file), scratch / file, options.share, fewest) for file in data}
    drawn = next(files[stem] for stem in files if stem != "validation")
    steps = min(options.steps, settings.max_steps or options.steps)
    # However few the rows are, going through them is a step or more, and max_steps ends it.
    length = [f"{name}.max_steps={steps}", f"{name}.epochs={max(steps, settings.epochs)}"]
    (scratch / params.PARAMS).write_text(composed([*options.overrides, "tracking=none", *length]))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path, "TEMPER_SCRATCH": str(scratch / "tmp")}
    done = subprocess.run(stage.cmd, shell=True, cwd=scratch, env=environment, check=False)
    print(f"{stage.name} on {drawn.rows} of {drawn.of} rows", *told(name, scratch, settings, drawn), sep="\n  ")
    print(f"  verdict      {verdict(scratch, done.returncode, name)}", flush=True)
    return done.returncode == 0


def provide(model: Path, scratch: Path) -> None:
    """Link `model` into `scratch` unless an earlier stage made it there."""
    if (scratch / model).exists():
        return
    if not model.exists():
        raise SystemExit(f"{model} is missing: run `make {model.name}`, or put {model.name} first in --stages")
    (scratch / model).parent.mkdir(exist_ok=True)
    (scratch / model).symlink_to(model.absolute())


def draw(source: Path, target: Path, share: float, fewest: int) -> Drawn:
    """Write a seeded choice of a file's lines to `target`, in their order: a share of them, at least `fewest` where there are."""
    if not source.is_file():
        raise SystemExit(f"{source} is missing: run the stage that writes it with `dvc repro`")
    with source.open("rb") as lines:
        total = sum(1 for _ in lines)
    count = min(total, max(round(share * total), fewest))
    chosen = set(random.Random(SEED).sample(range(total), count))
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as lines, target.open("wb") as out:
        out.writelines(line for number, line in enumerate(lines) if number in chosen)
    return Drawn(count, total)


def rows_a_step(name: str, settings: Any) -> float:
    """Rows that fill a step at most: packing takes more, KTO makes two of a pair, GRPO samples several answers to a prompt."""
    return float(settings.global_batch / {"kto": 2, "grpo": settings.get("generations")}.get(name, 1))


def told(name: str, scratch: Path, settings: Any, drawn: Drawn) -> Iterator[str]:
    """Loss, speed, memory and what they mean for the real run, as far as the stage came."""
    curve = scratch / f"reports/plots/{name}.csv"
    if curve.is_file() and (losses := logged(curve, "loss")):
        yield f"loss         {losses[0]:.4g} → {losses[-1]:.4g} in {len(losses)} steps"
    timing, report = (scratch / f"reports/{kind}/{name}.json" for kind in ("timing/training", "training"))
    if not (timing.is_file() and report.is_file()):
        return
    cost, result = metrics.read(timing), metrics.read(report)
    times = passes(name, result, settings, drawn)
    if times > settings.epochs:
        yield f"passes       {times:.1f} over so few rows, to make {result['steps']} steps; {settings.epochs} in the real run"
    if "tokens_per_second" in cost:
        yield f"speed        {cost['tokens_per_second']:.0f} tokens/s"
    gpu = f", {cost['peak_gpu_memory_gb']} GB of a GPU" if "peak_gpu_memory_gb" in cost else ""
    yield f"peak memory  {cost['peak_memory_gb']} GB{gpu}"
    yield f"real run     {projected(name, cost, result, settings, drawn)}"


def logged(curve: Path, column: str) -> list[float]:
    """What a curve has in a column, step by step."""
    with curve.open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def passes(name: str, result: dict[str, Any], settings: Any, drawn: Drawn) -> float:
    """Over the rows that were drawn; GRPO's trainer takes all its epochs for one."""
    return float(result["steps"] * rows_a_step(name, settings) / drawn.rows if name == "grpo" else result["epochs"])


def projected(name: str, cost: dict[str, Any], result: dict[str, Any], settings: Any, drawn: Drawn) -> str:
    """Steps and time of the real run if its rows are like those that were drawn."""
    rate = cost.get("tokens_per_second")
    seconds = cost["tokens"] / rate if rate else cost["seconds"]
    times = drawn.of * settings.epochs / (drawn.rows * passes(name, result, settings, drawn))
    if settings.max_steps:
        times = min(times, settings.max_steps / result["steps"])
    return (
        f"about {times * result['steps']:.0f} steps in {times * seconds / 60:.1f} min, loading and merging not counted"
    )


def verdict(scratch: Path, status: int, name: str) -> str:
    if status:
        return "not healthy: the reason is above"
    first = params.value("health.first_steps", scratch / params.PARAMS)
    steps = at_peak(logged(scratch / f"reports/plots/{name}.csv", "learning_rate"))
    if name not in health.FALLING or not first or steps >= first:
        return "healthy"
    return (
        f"nothing unhealthy, but {steps} steps after warm-up are too few to see whether the loss falls (health.first_steps is "
        f"{first}): raise --steps"
    )


def at_peak(rates: list[float]) -> int:
    """Steps since the learning rate last rose, which health counts the fall of the loss from."""
    rises = [number for number, (before, after) in enumerate(pairwise(rates), start=1) if after > before]
    return len(rates) - (rises[-1] if rises else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
