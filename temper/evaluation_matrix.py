"""The evaluation matrix: each variant of a recipe against the base and against what it was trained from, on the same items.

Measures are those of the rows with a gold call (MEASURES), and where there are such, the metrics of the user's own tasks and of
public benchmarks, named as in reports/evaluate. All are better the higher they are.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from temper import benchmark_scores, comparisons, records, task_metrics
from temper.comparisons import Difference, Verdict
from temper.recipe import Recipe
from temper.records import Row
from temper.task_metrics import Answered, Task

# Of rows with a gold call or null: the key of a row's score, and whether a call is right there (None: either). `choose` is of those
# with several tools.
MEASURES = {
    "exact": ("exact", None),
    "call_exact": ("exact", True),
    "null_exact": ("exact", False),
    "argument_f1": ("argument_f1", None),
    "valid_json": ("valid_json", None),
    "abstain": ("abstain", None),
    "choose": ("choose", None),
}
MACRO_F1 = "macro_f1"
Pair = tuple[str, str]
Item = TypeVar("Item", bound=Hashable)


class Asked(NamedTuple):
    """A comparison of the family."""

    measure: str
    variant: str
    against: str


Matrix = Mapping[Asked, Verdict]


@dataclass(frozen=True)
class Evaluated:
    """What stage `evaluate` left of a variant."""

    rows: Sequence[Row]
    """data/evaluate/<variant>.jsonl"""
    answers: Sequence[Row] = ()
    """…-tasks.jsonl: to what the user's own tasks ask."""
    benchmarks: Sequence[Row] = ()
    """…-benchmarks.jsonl: samples of public benchmarks."""


def read(variant: str) -> Evaluated:
    parts = ("", "-tasks", "-benchmarks")
    return Evaluated(*(list(records.read(f"data/evaluate/{variant}{part}.jsonl")) for part in parts))


def judged(
    recipe: Recipe, evaluated: Mapping[str, Evaluated], tasks: Sequence[Task], confidence: float, seed: int
) -> Matrix:
    """Verdicts on every measure of every pair, corrected over all of them; exits where variants were asked other items."""
    return comparisons.judged(differences(recipe, evaluated, tasks, confidence, seed), confidence)


def differences(
    recipe: Recipe, evaluated: Mapping[str, Evaluated], tasks: Sequence[Task], confidence: float, seed: int
) -> dict[Asked, Difference]:
    """The comparisons that `judged` is of, each for itself."""
    held = pairs(recipe)
    if not held:
        return {}
    return _of_means(held, evaluated, tasks, confidence, seed) | _of_macro_f1(held, evaluated, tasks, confidence, seed)


def _of_means(
    held: Sequence[Pair], evaluated: Mapping[str, Evaluated], tasks: Sequence[Task], confidence: float, seed: int
) -> dict[Asked, Difference]:
    scores = {variant: scored(found, tasks) for variant, found in evaluated.items()}
    family: dict[Asked, Difference] = {}
    for measure in dict.fromkeys(name for of in scores.values() for name in of):
        items = shared(of.get(measure, {}) for of in scores.values())
        rows = {variant: np.array([[of[measure][item] for item in items]]) for variant, of in scores.items()}
        for variant, against in held:
            found = comparisons.difference(rows[variant], rows[against], confidence, seed)
            family[Asked(measure, variant, against)] = found
    return family


def _of_macro_f1(
    held: Sequence[Pair], evaluated: Mapping[str, Evaluated], tasks: Sequence[Task], confidence: float, seed: int
) -> dict[Asked, Difference]:
    """Of tasks with classes: a figure of all answers together."""
    family: dict[Asked, Difference] = {}
    for task in (one for one in tasks if MACRO_F1 in one.metrics):
        answers = {variant: answered(found, task) for variant, found in evaluated.items()}
        items = shared(answers.values())
        for variant, against in held if items else ():
            after, before = (
                task_metrics.counts(task, [answers[name][id] for id in items]) for name in (variant, against)
            )
            found = comparisons.of_sums(after, before, task_metrics.macro_f1_of, confidence, seed)
            family[Asked(f"{task.name}_{MACRO_F1}", variant, against)] = found
    return family


def pairs(recipe: Recipe) -> list[Pair]:
    """(variant, the evaluated model that it is held against)."""
    first = recipe.variants[0]
    starts = [(variant, start) for variant in recipe.variants for start in recipe.starts(variant)]
    found = [(variant, first) for variant in recipe.variants[1:]]
    return list(dict.fromkeys([*found, *(pair for pair in starts if pair[1] in recipe.variants)]))


def scored(found: Evaluated, tasks: Sequence[Task]) -> dict[str, Mapping[Any, float]]:
    """Each measure of a variant whose mean over items is compared, item by item; those without an item are not there."""
    scores: dict[str, Mapping[Any, float]] = {measure: taken(found.rows, measure) for measure in MEASURES}
    for task in tasks:
        answers = answered(found, task)
        for metric in (name for name in task.metrics if name != MACRO_F1):
            values = task_metrics.MEASURES[metric](task, list(answers.values()))
            scores[f"{task.name}_{metric}"] = dict(zip(answers, values, strict=True))
    scores |= benchmark_scores.by_item(found.benchmarks)
    return {measure: of for measure, of in scores.items() if of}


def taken(rows: Iterable[Row], measure: str) -> dict[str, float]:
    """Scores of the rows that a measure is of."""
    key, call = MEASURES[measure]
    kept = (row for row in rows if key in row and (call is None or (row["gold"] is not None) == call))
    return {row["id"]: float(row[key]) for row in kept}


def answered(found: Evaluated, task: Task) -> dict[str, Answered]:
    """Answers to the rows of a task of the user's own, by id."""
    kept = (row for row in found.answers if task_metrics.is_of(row, task))
    return {row["id"]: Answered(row["reference"], row["output"]) for row in kept}


def shared(asked: Iterable[Mapping[Item, Any]]) -> list[Item]:
    """The items that all variants were asked, in order; exits where one was asked others."""
    first, *others = (frozenset(items) for items in asked)
    if any(items != first for items in others):
        raise SystemExit("data/evaluate: variants were evaluated on other rows: run `dvc repro evaluate` again")
    return sorted(first, key=str)


def values(matrix: Matrix) -> dict[str, Any]:
    """`<variant>_over_<against>_<measure>` with `_low`, `_high`, `_n`, `_p` (adjusted) and `_verdict`."""
    found: dict[str, Any] = {"comparisons": len(matrix)}
    for asked, verdict in matrix.items():
        name = f"{asked.variant}_over_{asked.against}_{asked.measure}"
        interval = verdict.difference.interval
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        found |= {f"{name}_n": verdict.difference.items, f"{name}_p": verdict.p, f"{name}_verdict": verdict.outcome}
    return found
