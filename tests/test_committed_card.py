"""The committed card is what the committed reports say: rendered from them again, line by line."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import card as stage
from temper import evaluation_matrix, gate, metrics, pages, params, recipe, results
from temper.comparisons import Difference, Interval, Verdict
from temper.cost import Cost
from temper.evaluation_matrix import Asked, Matrix
from temper.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
CARD = Path("reports/model-card.md")
# Of what only a run's outs hold: by what the harness scored, and hashes of models and rows.
OUTS = re.compile(r"^(Scored by |SHA-256: ).*$", re.MULTILINE)


def compared(values: dict[str, Any], of: Recipe) -> Matrix:
    """The verdicts that reports/comparisons.json tells."""
    found: dict[Asked, Verdict] = {}
    for measure, (variant, against) in product(evaluation_matrix.MEASURES, evaluation_matrix.pairs(of)):
        name = f"{variant}_over_{against}_{measure}"
        if name in values:
            interval = Interval(*(values[f"{name}{end}"] for end in ("", "_low", "_high")))
            p = values[f"{name}_p"]
            difference = Difference(interval, values[f"{name}_n"], 1, p, "")
            found[Asked(measure, variant, against)] = Verdict(difference, p, values[f"{name}_verdict"])
    return found


def test_the_committed_card_follows_from_the_committed_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg, costs = params.load("card", stage.Card), params.load("cost", Cost)
    found = results.load(recipe.load())
    matrix = compared(metrics.read("reports/comparisons.json"), found.recipe)
    assert evaluation_matrix.values(matrix) == metrics.read("reports/comparisons.json")
    runtime = params.runtime()
    openness = yaml.safe_load(Path("reports/mof.yml").read_text(encoding="utf-8"))
    monkeypatch.setattr(pages, "asked", lambda _: "")
    rendered = pages.card(
        found, cfg, costs, matrix, openness, metrics.read(gate.REPORT), {}, {}, runtime["processes"] * runtime["nodes"]
    )
    committed = CARD.read_text(encoding="utf-8")
    assert OUTS.sub("", rendered).splitlines() == OUTS.sub("", committed).splitlines()
