"""The evaluation matrix: each variant of a recipe against the base and against what it was trained from, on the same test rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from temper import comparisons
from temper.comparisons import Verdict
from temper.crossed import Scores
from temper.recipe import Recipe
from temper.records import Row

# Each measure of `evaluate` that is compared: the key of a row's score, and whether a call is right there (None: either).
MEASURES = {
    "exact": ("exact", None),
    "call_exact": ("exact", True),
    "null_exact": ("exact", False),
    "argument_f1": ("argument_f1", None),
    "valid_json": ("valid_json", None),
}


class Asked(NamedTuple):
    """A comparison of the family."""

    measure: str
    variant: str
    against: str


Matrix = Mapping[Asked, Verdict]


def judged(recipe: Recipe, answers: Mapping[str, Sequence[Row]], confidence: float, seed: int) -> Matrix:
    """Verdicts on rows of data/evaluate/<variant>.jsonl, corrected over all of them; exits where variants had other rows."""
    scores = {variant: {row["id"]: row for row in rows} for variant, rows in answers.items()}
    if len({frozenset(rows) for rows in scores.values()}) > 1:
        raise SystemExit("data/evaluate: variants were evaluated on other rows: run `dvc repro evaluate` again")
    asked = [Asked(measure, *pair) for measure in MEASURES for pair in pairs(recipe)]
    family = {}
    for one in asked:
        after, before = (taken(scores[name], one.measure) for name in (one.variant, one.against))
        if after.size:
            family[one] = comparisons.difference(after, before, confidence, seed)
    return comparisons.judged(family, confidence)


def pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """(variant, the evaluated model that it is held against)."""
    first = recipe.variants[0]
    starts = [(variant, start) for variant in recipe.variants for start in getattr(recipe, variant, [])]
    found = [(variant, first) for variant in recipe.variants[1:]]
    return list(dict.fromkeys([*found, *(pair for pair in starts if pair[1] in recipe.variants)]))


def taken(rows: Mapping[str, Row], measure: str) -> Scores:
    """Scores of one run, 1 × the rows that a measure is of, by their ids."""
    key, call = MEASURES[measure]
    kept = (rows[name] for name in sorted(rows) if call is None or (rows[name]["gold"] is not None) == call)
    return np.array([[float(row[key]) for row in kept]])


def values(matrix: Matrix) -> dict[str, Any]:
    """`<variant>_over_<against>_<measure>` with `_low`, `_high`, `_n`, `_p` (adjusted) and `_verdict`."""
    found: dict[str, Any] = {"comparisons": len(matrix)}
    for asked, verdict in matrix.items():
        name = f"{asked.variant}_over_{asked.against}_{asked.measure}"
        interval = verdict.difference.interval
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        found |= {f"{name}_n": verdict.difference.items, f"{name}_p": verdict.p, f"{name}_verdict": verdict.outcome}
    return found
