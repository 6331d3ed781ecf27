"""Which training wins, by how much, at what time and memory: every arm of a study over several seeds, as DVC experiments.

    python -m commands.ablation [--only ARM,…] [--seeds N,…] [--dry-run | --report | --show] [override …]

The study is the section `ablation` (conf/ablation); overrides are those of `dvc exp run -S` (hardware=gpu8 model=llama3.1-8b) and
hold for every arm. Experiments run one after another, each up to its evaluations, and stages that they share run once. What one
came to is kept in reports/ablation/ as soon as it ends, with a digest of what it follows from: code, raw data, settings. A run that
is repeated goes on, in another clone too where these files are committed: what is kept and of the same digest is not run again.

Writes reports/ablation/<experiment>.json, reports/ablation.{json,md} and reports/ablation-*.svg.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from commands import experiments
from commands.compose import composed
from temper import graph, metrics, params, renderers, standings, study, vllm
from temper.plan import shape
from temper.recipe import Recipe
from temper.standings import Arm, Outcome, Record
from temper.study import BASE, Experiment, Study

# DVC takes edits along into an experiment, and untracked files not; what is kept is known by what git has of these.
SOURCES = ("conf", "scripts", "temper", "requirements", "raw", "dvc.yaml")
REPORTS = Path("reports")
SCALES = ("model.name", "hardware.name", "hardware.precision")  # what a time tells nothing about another of


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    if options.show:
        return experiments.main()
    settings = tree(options.overrides)
    plan = params.fitted(settings, "ablation", Study, "conf/")
    refuse_edits()
    chosen = list(planned(plan, plan.only(options.only), options.seeds or plan.seeds, settings, options.overrides))
    done = finished(chosen)
    print(*outline(chosen, done, settings), sep="\n", flush=True)
    if options.dry_run:
        return None
    waiting = [] if options.report else [one for one in chosen if one.name not in done]
    require(waiting)
    failed = [one.name for one in waiting if not kept(one, plan.measure)]
    arms = collected(chosen)
    if arms:
        report(plan, arms, " ".join(["python -m commands.ablation", *arguments]))
    if failed:
        raise SystemExit(
            f"ablation: {', '.join(failed)} failed (above): mend it and run the same command, which goes on"
        )
    if not arms:
        raise SystemExit("ablation: no arm has results for every seed yet: run it without --report")
    return None


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m commands.ablation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="arms, with commas between")
    parser.add_argument("--seeds", type=_numbers, help="instead of the study's, with commas between")
    parser.add_argument("--dry-run", action="store_true", help="print the experiments and how long they take")
    parser.add_argument("--report", action="store_true", help="run nothing: report what reports/ablation/ keeps")
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
    large = shape(settings)[0].parameters() >= plan.rates.least
    own = {arm: [*plan.arms[arm], *overrides] for arm in arms}
    changes = {arm: [*scale, *(learning_rates(plan, own[arm]) if large else []), *own[arm]] for arm in arms}
    composed_by = {arm: tree(changes[arm]) for arm in arms}
    recipes = {arm: recipe_of(composed_by[arm]) for arm in arms}
    defined = graph.definitions()
    held = hashes(defined)
    for seed in seeds:
        for arm in arms:
            seeding = study.seeding(plan, recipes[arm], seed)
            seeded = DictConfig(OmegaConf.merge(composed_by[arm], OmegaConf.from_dotlist(seeding)))
            runs = study.runs(recipes[arm], seeded)
            identity = study.identity(recipes[arm], seeded, plan.measure, defined, held)
            yield Experiment(arm, seed, (*changes[arm], *seeding), recipes[arm], runs, identity)


def learning_rates(plan: Study, overrides: Sequence[str]) -> list[str]:
    """Overrides that give what an arm trains the rates of large models."""
    settings = tree(overrides)
    return study.rates(plan, recipe_of(settings), settings)


def recipe_of(settings: DictConfig) -> Recipe:
    return params.fitted(settings, "recipe", Recipe, "conf/")


def require(waiting: Iterable[Experiment]) -> None:
    """Exit, before the first runs, as one would where a training refuses its settings or vLLM is another build: after hours."""
    for one in {one.arm: one for one in waiting}.values():
        settings = tree(one.overrides)
        runtime = settings.hardware.runtime
        renderers.require(settings, runtime.processes * runtime.nodes)
        vllm.require_build(preset=str(settings.hardware.name))


def refuse_edits() -> None:
    """Exit when an experiment would be of something else than what is committed."""
    if edited := git("status", "--porcelain", "--", *SOURCES).splitlines():
        raise SystemExit(f"ablation runs what is committed, and {edited[0][3:]} is edited: commit or stash it")


def hashes(defined: Iterable[graph.Stage], commit: str = "HEAD") -> dict[str, str]:
    """Git's hashes of the deps that `commit` has, by path; a folder's is of all that is in it."""
    deps = sorted({dep for stage in defined for dep in stage.deps})
    entries = (entry.split("\t") for entry in git("ls-tree", "-z", commit, "--", *deps).split("\0") if entry)
    return {path: about.split()[2] for about, path in entries}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def finished(chosen: Iterable[Experiment]) -> dict[str, Record]:
    """What is kept of the experiments and follows from what they follow from now, by name."""
    found = ((one, standings.read(one.journal)) for one in chosen if one.journal.is_file())
    return {one.name: record for one, record in found if record.identity == one.identity}


def outline(chosen: Sequence[Experiment], done: dict[str, Record], settings: DictConfig) -> Iterator[str]:
    """What is to run and how long it takes, by the timing of the last run."""
    waiting = [one for one in chosen if one.name not in done]
    here = commits()  # what another clone made is not in the run cache of this one
    had = {run for one in chosen if one.name in done and one.name in here for run in one.runs}
    needed = {run for one in waiting for run in one.runs} - had
    yield f"{len(chosen)} experiments, {len(chosen) - len(waiting)} of which have results; {len(needed)} runs of stages to go"
    for one in waiting:
        yield f"  {one.name}: {' '.join(one.overrides)}{' (made by other code)' if one.journal.is_file() else ''}"
    recorded = params.tree()
    same = all(OmegaConf.select(recorded, key) == OmegaConf.select(settings, key) for key in SCALES)
    if not same or not (study.TIMING / "training/sft.json").is_file():
        yield "no estimate of time: reports/timing has no run of this model on this hardware"
    elif needed:
        seconds, untimed = study.seconds(needed, recorded)
        note = f", {' and '.join(untimed)} counted as SFT, for want of a run" if untimed else ""
        yield f"about {seconds / 3600:.1f} hours by reports/timing{note}"


def commits() -> dict[str, list[str]]:
    """The experiments that DVC has in this clone: name → commits, one for each commit that it was run from."""
    from dvc.repo import Repo

    found = defaultdict(list)
    with Repo() as repo:
        for name, commit in chain.from_iterable(repo.experiments.ls(all_commits=True).values()):
            found[name].append(commit)
    return found


def kept(one: Experiment, measure: str) -> bool:
    """Keep what an experiment came to, running it unless DVC has it of a call that was killed; whether that succeeded."""
    found = made(one, measure)
    if not found and ran(one) and not (found := made(one, measure)):
        print(f"{one.name}: not kept: what it follows from was edited after this call began", flush=True)
    if found:
        standings.write(one.journal, found)
    return bool(found)


def made(one: Experiment, measure: str) -> Record | None:
    """What DVC has of an experiment in this clone, run from whatever commit, if it follows from the same."""
    defined = graph.definitions()
    for commit in commits()[one.name]:
        settings = DictConfig(OmegaConf.create(git("show", f"{commit}:{params.PARAMS}")))
        if study.identity(one.recipe, settings, measure, defined, hashes(defined, commit)) == one.identity:
            return gathered(one, commit, measure)
    return None


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


def gathered(one: Experiment, commit: str, measure: str) -> Record:
    """What the experiment at `commit` came to; the base model, which it did not train, without the cost of training."""
    trained = {BASE: [], one.recipe.release: one.recipe.stages()}
    outcomes = {model: outcome(commit, model, stages, measure) for model, stages in trained.items()}
    return Record(one.identity, list(one.overrides), outcomes)


def outcome(commit: str, model: str, stages: Sequence[str], measure: str) -> Outcome:
    """Of `model`, from its samples and from the timing of its evaluation and of the trainings `stages`, whenever they ran."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(rev=commit)
    samples = map(json.loads, files.read_bytes(f"data/evaluate/{model}.jsonl").splitlines())
    timed = {stage: f"training/{stage}" for stage in stages} | {"evaluate": f"evaluate/{model}"}
    return standings.outcome(
        {str(one["id"]): float(one[measure]) for one in samples},
        {stage: json.loads(files.read_bytes(f"reports/timing/{name}.json")) for stage, name in timed.items()},
    )


def report(plan: Study, arms: standings.Arms, command: str) -> None:
    """Write what the arms came to, and print it."""
    standings.require_same_rows(arms)
    metrics.write(REPORTS / "ablation.json", standings.values(plan, arms) | {"command": command})
    text = standings.markdown(plan, arms, command)
    (REPORTS / "ablation.md").write_text(text)
    for title, comparison in plan.comparisons.items():
        if len(names := standings.present(comparison, arms)) > 1:
            (REPORTS / standings.picture_name(title)).write_text(standings.picture(names, plan, arms))
    print(text)


def collected(chosen: Sequence[Experiment]) -> dict[str, Arm]:
    """Arms that have results for every seed, and the base model; none where no arm has."""
    done = finished(chosen)
    by_arm = {arm: [one for one in chosen if one.arm == arm] for arm in dict.fromkeys(one.arm for one in chosen)}
    ready = {arm: every for arm, every in by_arm.items() if all(one.name in done for one in every)}
    if not ready:
        return {}
    first = next(iter(ready.values()))[0]
    arms = {
        arm: Arm(tuple(done[one.name].outcomes[one.recipe.release] for one in every)) for arm, every in ready.items()
    }
    return {BASE: Arm((done[first.name].outcomes[BASE],)), **arms}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
