"""Write the model card and the HTML report of the run.

Reads   reports/ (metrics, curves, timing, graph.svg), data/evaluate/*.jsonl (answers, likelihoods)
Writes  reports/model-card.md, reports/report.html
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import pages, params, recipe, records, results, stage


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
    licence: str
    sources: list[dict[str, Any]]
    language: list[str]
    about: dict[str, About]
    """By the id of a source."""


def main() -> None:
    cfg = params.load("card", Card)

    found = results.load(recipe.load())
    answers = {variant: list(records.read(f"data/evaluate/{variant}.jsonl")) for variant in found.variants}
    likelihoods = {name: list(records.read(f"data/evaluate/{name}-likelihoods.jsonl")) for name in found.variants}
    graph = Path("reports/graph.svg").read_text(encoding="utf-8")

    Path("reports/model-card.md").write_text(pages.card(found, cfg), encoding="utf-8")
    Path("reports/report.html").write_text(pages.report(found, cfg, answers, likelihoods, graph), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, "card")
