"""Which training wins, by how much, at what time and memory: every arm of a study over several seeds, as DVC experiments.

    python -m commands.ablation [--only ARM,…] [--seeds N,…] [--dry-run | --report | --show] [override …]

The study is the section `ablation` (conf/ablation); overrides are those of `dvc exp run -S` (hardware=gpu8 model=llama3.1-8b) and
hold for every arm. Experiments run one after another, each up to its evaluations, and stages that they share run once. A run
that is repeated goes on: what has results at this commit is not run again.

Writes reports/ablation.{json,md} and reports/ablation-*.svg.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from commands import experiments
from commands.compose import composed
from temper import metrics, params, standings, study
from temper.recipe import Recipe
from temper.standings import Arm, Outcome
from temper.study import BASE, Experiment, Study

# What an experiment follows from besides its overrides: edited, one of the same name would be another.
SOURCES = ("conf", "scripts", "temper", "requirements", "dvc.yaml")
REPORTS = Path("reports")
SCALES = ("model.name", "hardware.name", "hardware.precision")  # what a time tells nothing about another of


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    if options.show:
        return experiments.main()
    settings = tree(options.overrides)
    plan = params.fitted(settings, "ablation", Study, "conf/")
    chosen = list(planned(plan, plan.only(options.only), options.seeds or plan.seeds, settings, options.overrides))
    refuse_edits()
    done = finished()
    print(*outline(chosen, done, settings), sep="\n", flush=True)
    if options.dry_run:
        return None
    failed = [] if options.report else [one.name for one in chosen if one.name not in done and not ran(one)]
    report(plan, chosen, " ".join(["python -m commands.ablation", *arguments]))
    if failed:
        raise SystemExit(
            f"ablation: {', '.join(failed)} failed (above): mend it and run the same command, which goes on"
        )
    return None


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m commands.ablation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="arms, with commas between")
    parser.add_argument("--seeds", type=_numbers, help="instead of the study's, with commas between")
    parser.add_argument("--dry-run", action="store_true", help="print the experiments and how long they take")
    parser.add_argument("--report", action="store_true", help="run nothing: report what has results")
    parser.add_argument("--show", action="store_true", help="every experiment side by side, whatever made it")
    parser.add_argument("overrides", nargs="*", help="of conf/, such as hardware=gpu8")
    return parser.parse_args(arguments)


def tree(overrides: Sequence[str]) -> DictConfig:
    return DictConfig(OmegaConf.create(composed(list(overrides))))


def planned(
    plan: Study, arms: Sequence[str], seeds: Sequence[int], settings: DictConfig, overrides: Sequence[str]
) -> Iterator[Experiment]:
    """Every arm with every seed, seed by seed, so that a study that is cut short has whole comparisons."""
    scale = plan.scale.get(str(settings.hardware.name), [])
    changes = {arm: [*scale, *plan.arms[arm], *overrides] for arm in arms}
    composed_by = {arm: tree(changes[arm]) for arm in arms}
    recipes = {arm: params.fitted(composed_by[arm], "recipe", Recipe, "conf/") for arm in arms}
    for seed in seeds:
        for arm in arms:
            seeding = study.seeding(plan, recipes[arm], seed)
            seeded = DictConfig(OmegaConf.merge(composed_by[arm], OmegaConf.from_dotlist(seeding)))
            yield Experiment(arm, seed, (*changes[arm], *seeding), recipes[arm], study.runs(recipes[arm], seeded))


def refuse_edits() -> None:
    """Exit when an experiment would be of something else than the commit that it is kept under."""
    command = ["git", "status", "--porcelain", "--", *SOURCES]
    edited = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if edited:
        raise SystemExit(f"ablation compares runs of one commit, and {edited[0][3:]} is edited: commit or stash it")


def finished() -> dict[str, str]:
    """Experiments of this commit that have results: name → commit."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {name: commit for found in repo.experiments.ls().values() for name, commit in found}


def outline(chosen: Sequence[Experiment], done: dict[str, str], settings: DictConfig) -> Iterator[str]:
    """What is to run and how long it takes, by the timing of the last run."""
    waiting = [one for one in chosen if one.name not in done]
    made = {run for one in chosen if one.name in done for run in one.runs}
    needed = {run for one in waiting for run in one.runs} - made
    yield f"{len(chosen)} experiments, {len(chosen) - len(waiting)} of which have results; {len(needed)} runs of stages to go"
    yield from (f"  {one.name}: {' '.join(one.overrides)}" for one in waiting)
    recorded = params.tree()
    same = all(OmegaConf.select(recorded, key) == OmegaConf.select(settings, key) for key in SCALES)
    if not same or not (study.TIMING / "training/sft.json").is_file():
        yield "no estimate of time: reports/timing has no run of this model on this hardware"
    elif needed:
        seconds, untimed = study.seconds(needed, recorded)
        note = f", {' and '.join(untimed)} counted as SFT, for want of a run" if untimed else ""
        yield f"about {seconds / 3600:.1f} hours by reports/timing{note}"


def ran(one: Experiment) -> bool:
    """Run an experiment in a copy of the tree; whether it succeeded. What it prints is seen."""
    print(f"\n{one.name}", flush=True)
    started = time.monotonic()
    changes = [part for change in one.overrides for part in ("-S", change)]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", one.name, *changes, *one.targets]
    status = subprocess.run(command, check=False).returncode
    print(
        f"{one.name}: {'failed' if status else 'done'} after {(time.monotonic() - started) / 60:.1f} minutes",
        flush=True,
    )
    return not status


def report(plan: Study, chosen: Sequence[Experiment], command: str) -> None:
    """Write what the arms with results for every seed came to, and print it."""
    arms = collected(plan, chosen)
    standings.require_same_rows(arms)
    metrics.write(REPORTS / "ablation.json", standings.values(plan, arms) | {"command": command})
    text = standings.markdown(plan, arms, command)
    (REPORTS / "ablation.md").write_text(text)
    for title, comparison in plan.comparisons.items():
        if len(names := standings.present(comparison, arms)) > 1:
            (REPORTS / standings.picture_name(title)).write_text(standings.picture(names, plan, arms))
    print(text)


def collected(plan: Study, chosen: Sequence[Experiment]) -> dict[str, Arm]:
    """Arms that have results for every seed, and the base model."""
    done = finished()
    ready = {arm: [one for one in chosen if one.arm == arm] for arm in dict.fromkeys(one.arm for one in chosen)}
    ready = {arm: made for arm, made in ready.items() if all(one.name in done for one in made)}
    if not ready:
        raise SystemExit("ablation: no arm has results for every seed yet: run it without --report")
    arms = {
        arm: Arm(tuple(outcome(done[one.name], one.recipe.release, one.recipe, plan.measure) for one in made))
        for arm, made in ready.items()
    }
    first = next(iter(ready.values()))[0]
    return {BASE: Arm((outcome(done[first.name], BASE, None, plan.measure),)), **arms}


def outcome(commit: str, variant: str, made: Recipe | None, measure: str) -> Outcome:
    """What the experiment at `commit` came to, from its samples and timing; of a model that it did not train, without cost."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(rev=commit)
    samples = [json.loads(line) for line in files.read_text(f"data/evaluate/{variant}.jsonl").splitlines()]
    evaluated = json.loads(files.read_text(f"reports/timing/evaluate/{variant}.json"))
    took = {
        stage: json.loads(files.read_text(f"reports/timing/training/{stage}.json"))
        for stage in (made.stages() if made else [])
    }
    return Outcome(
        scores={str(one["id"]): float(one[measure]) for one in samples},
        seconds=sum(one["seconds"] for one in took.values()),
        peak_gb=max((one["peak_memory_gb"] for stage, one in took.items() if stage != "preferences"), default=0.0),
        machine=evaluated["hardware"],
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
