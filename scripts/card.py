"""Write the model card, the HTML report of the run, the verdicts between its variants, and how open the release is.

Reads   reports/ (metrics, curves, timing, the gate's verdict, graph.svg), data/evaluate/*.jsonl (answers, likelihoods), LICENSE,
        data/audit/train.jsonl, data/mix (licences of what is trained on), models/<release> (for its hash)
Writes  reports/model-card.md, reports/report.html, reports/comparisons.json, reports/mof.yml
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from temper import (
    datacard,
    evaluation_matrix,
    gate,
    hub,
    metrics,
    mof,
    pages,
    params,
    recipe,
    records,
    results,
    stage,
    wheels,
)
from temper.cost import Cost
from temper.task_metrics import Task

TRAIN = Path("data/mix/train.jsonl")


@dataclass
class About:
    """What only holds for a model trained on one source."""

    task: str
    """After "tuned to …"."""
    tags: list[str]
    note: str
    limits: list[str]


@dataclass
class Card:
    name: str
    base: str
    base_licence: str
    licence: str
    """Of the release."""
    sources: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    """Sources of general text that is evaluated on."""
    language: list[str]
    confidence: float
    seed: int
    seeds: dict[str, int]
    """By training stage."""
    tasks: list[Task]
    """Of the user's own, whose answers are compared."""
    about: dict[str, About]
    """By the id of a source."""
    openness: mof.Openness


def main() -> None:
    cfg, costs = params.load("card", Card), params.load("cost", Cost)
    costs.check()

    found = results.load(recipe.load())
    evaluated = {variant: evaluation_matrix.read(variant) for variant in found.variants}
    answers = {variant: list(of.rows) for variant, of in evaluated.items()}
    likelihoods = {name: list(records.read(f"data/evaluate/{name}-likelihoods.jsonl")) for name in found.variants}
    runs = {name: yaml.safe_load(Path(f"data/evaluate/{name}.yaml").read_text()) for name in found.variants}
    graph = Path("reports/graph.svg").read_text(encoding="utf-8")

    judged = evaluation_matrix.judged(found.recipe, evaluated, cfg.tasks, cfg.confidence, cfg.seed)
    offered = replace(found.recipe, formats=found.released)
    openness = mof.document(cfg, datacard.used(datacard.counted(datacard.trained()), cfg), offered)

    model, runtime = Path("models") / found.recipe.release, params.runtime()
    hashes = {str(TRAIN): wheels.digest(TRAIN), str(model): hub.digest(model)}
    devices = runtime["processes"] * runtime["nodes"]
    described = pages.card(found, cfg, costs, judged, openness, metrics.read(gate.REPORT), runs, hashes, devices)
    Path("reports/mof.yml").write_text(mof.text(openness), encoding="utf-8")
    Path("reports/model-card.md").write_text(described, encoding="utf-8")
    page = pages.report(found, cfg, judged, openness, answers, likelihoods, runs, graph)
    Path("reports/report.html").write_text(page, encoding="utf-8")
    metrics.write("reports/comparisons.json", evaluation_matrix.values(judged))


if __name__ == "__main__":
    stage.run(main, "card")
