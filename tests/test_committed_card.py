"""The committed card is what the committed reports say: rendered from them again, line by line."""

import re
import subprocess
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
    for variant, against in evaluation_matrix.pairs(of):
        prefix = f"{variant}_over_{against}_"
        for name in (
            key.removesuffix("_verdict") for key in values if key.startswith(prefix) and key.endswith("_verdict")
        ):
            interval = Interval(*(values[f"{name}{end}"] for end in ("", "_low", "_high")))
            p = values[f"{name}_p"]
            difference = Difference(interval, values[f"{name}_n"], 1, p, "")
            found[Asked(name.removeprefix(prefix), variant, against)] = Verdict(
                difference, p, values[f"{name}_verdict"]
            )
    # The table's rows are in the order in which measures are first asked for.
    order = {measure: place for place, measure in enumerate(evaluation_matrix.MEASURES)}
    return dict(sorted(found.items(), key=lambda pair: order.get(pair[0].measure, len(order))))


@pytest.mark.slow
def test_the_committed_card_follows_from_the_committed_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of HEAD: what a run has written and nobody has committed yet is not looked at."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    monkeypatch.chdir(tmp_path / "clone")
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
