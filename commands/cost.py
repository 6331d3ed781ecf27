"""What a million output tokens cost, of this tree and of other revisions, beside APIs, and whether their models are of one quality.

python -m commands.cost [REVISION …]     a tag, a branch, an experiment of `dvc exp run`, such as one with model=qwen3-14b
"""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from temper import cost, intervals, params, recipe
from temper.cost import Serving

TREE = "this tree"
TEST = "data/mix/test.jsonl"
WIDTH = 140  # of tables that go to a file or a pipe
MATCHED, APART, UNDECIDED, OTHER = "one quality", "not of one quality", "undecided", "scored on other test rows"
BY_TOKENS = (
    ", for data.max_tokens counts in each base's own tokens: run both with `dvc exp run -S data.max_tokens=null`"
)
UNMEASURED = {"released": False, "withheld": "not measured"}


@dataclass(frozen=True)
class Run:
    name: str
    model: str
    hardware: str
    """The machine that was measured."""
    costs: Serving
    exact: tuple[float, float, float]
    """Share of exact answers: value, low, high."""
    test: str
    """DVC's hash of the test rows."""
    max_tokens: int | None
    """Of a row: longer ones were left out."""
    reports: dict[str, dict[str, Any]]
    """Of `bench`, by variant."""
    kept: dict[str, dict[str, Any]]
    """Of `retention`, by quant."""


def main(revisions: list[str]) -> None:
    runs = [read(name) for name in [TREE, *revisions]]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for run in runs:
        console.print(table(run))
        console.print(f"{run.costs.price.hour:g} $/h: {run.costs.price.source} ({run.costs.price.date}); {used(run)}\n")
    for first, second in itertools.combinations(runs, 2):
        console.print(f"{first.name} and {second.name}: {told(first, second)}", soft_wrap=True)


def read(name: str) -> Run:
    """What a revision, or the tree, has of it; exits naming what it lacks."""
    settings = OmegaConf.create(text(name, "params.yaml"))
    assert isinstance(settings, DictConfig)
    # What training takes is not asked here, and a revision may be from before `power` was.
    settings.get("cost", {}).pop("power", None)
    costs = params.fitted(settings, "cost", Serving, f"{name}: params.yaml")
    costs.check()
    scores = json.loads(text(name, f"reports/evaluate/{settings.recipe.release}.json"))
    # A revision from before `served` was there measured all that it had a section for.
    names = settings.get("served", settings.bench)
    reports = {str(one): json.loads(text(name, f"reports/bench/{one}.json")) for one in names}
    measured = json.loads(text(name, "reports/timing/bench/bf16.json"))["hardware"]
    exact = (scores["exact"], scores["exact_low"], scores["exact_high"])
    quants = [one for one in reports if settings.bench[one].model not in (settings.recipe.release, recipe.HEAD)]
    kept = {one: retained(name, f"reports/retention/{one}.json") for one in quants}
    limit, test = OmegaConf.select(settings, "ingest.max_tokens"), hashed(text(name, "dvc.lock"))
    return Run(name, str(settings.model.name), measured, costs, exact, test, limit, reports, kept)


def retained(name: str, path: str) -> dict[str, Any]:
    """What `retention` says of a quant; one that it did not measure is not released."""
    if name == TREE:
        is_there = Path(path).is_file()
    else:
        asked = ["git", "cat-file", "-e", f"{name}:{path}"]
        is_there = not subprocess.run(asked, capture_output=True, check=False).returncode
    return json.loads(text(name, path)) if is_there else UNMEASURED


def text(name: str, path: str) -> str:
    if name == TREE:
        if not Path(path).is_file():
            raise SystemExit(f"{path} is missing: run `make repro` first")
        return Path(path).read_text(encoding="utf-8")
    done = subprocess.run(["git", "show", f"{name}:{path}"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise SystemExit(f"{name}: {said}: name a revision whose run has ended, such as one of `dvc exp show`")
    return done.stdout


def hashed(lock: str) -> str:
    """DVC's hash of the test rows in a dvc.lock; empty where it has none."""
    stages = (yaml.load(lock, Loader=yaml.CSafeLoader) or {}).get("stages", {}).values()
    outs = (out for stage in stages for out in stage.get("outs", []))
    return next((out["md5"] for out in outs if out["path"] == TEST), "")


def table(run: Run) -> Table:
    value, low, high = (100 * part for part in run.exact)
    title = f"{run.name}: {run.model} on {run.hardware}, {value:.1f}% exact ({low:.1f}–{high:.1f})"
    heads = ("", "at once", "tokens/s", "$ for 1M output tokens", "")
    made = Table(*heads, title=title, title_justify="left", box=None)
    for variant, report in run.reports.items():
        note = keeps(run.kept[variant]) if variant in run.kept else ""
        for place, level in enumerate(cost.levels(report)):
            dollars, rate = cost.served(report, level, run.costs), report[f"c{level}_tokens_per_second"]
            made.add_row(variant, str(level), f"{rate:.0f}", f"{dollars:.3f}", "" if place else note)
    for name, api in run.costs.apis.items():
        made.add_row(f"{name} ({api.date})", "", "", f"{cost.asked(api, run.reports['bf16']):.3f}")
    return made


def keeps(found: dict[str, Any]) -> str:
    """What a quant keeps of the release, or why it is withheld."""
    if not found["released"]:
        return f"withheld: {found['withheld']}"
    words = {"exact_kept": "of exact answers kept", "unchanged": "unchanged"}
    return ", ".join(f"{found[key]:.0%} {word}" for key, word in words.items() if key in found)


def used(run: Run) -> str:
    report = run.reports["bf16"]
    lengths = f"prompts of {cost.prompt_tokens(report):.0f} tokens, answers of {cost.answer_tokens(report):.0f}"
    return f"{run.costs.utilisation:.0%} of the rate asked for; {lengths}, prompts included"


def told(first: Run, second: Run) -> str:
    """Whether two models are of one quality, and then what each costs at its cheapest."""
    if not first.test or first.test != second.test:
        by_tokens = first.model != second.model and (first.max_tokens or second.max_tokens)
        return OTHER + (BY_TOKENS if by_tokens else "")
    # As if the two had answered different rows: that they answered the same makes the interval too wide rather than too narrow.
    value, low, high = intervals.difference(second.exact, first.exact)
    word = verdict(low, high, first.costs.margin)
    points = f"{word}: {100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    prices = [f"{run.name} ${cheapest(run):.3f}" for run in (first, second)]
    return f"{points}; cheapest {', '.join(prices)} for 1M output tokens"


def verdict(low: float, high: float, margin: float) -> str:
    """Of one quality where the whole interval is within the margin: no difference found is not yet no difference."""
    if max(abs(low), abs(high)) <= margin:
        return MATCHED
    return APART if low > 0 or high < 0 else UNDECIDED


def cheapest(run: Run) -> float:
    """Of all concurrencies and all variants but withheld quants, dollars for a million output tokens."""
    withheld = {name for name, found in run.kept.items() if not found["released"]}
    reports = [report for name, report in run.reports.items() if name not in withheld]
    return min(cost.served(report, level, run.costs) for report in reports for level in cost.levels(report))


if __name__ == "__main__":
    main(sys.argv[1:])
