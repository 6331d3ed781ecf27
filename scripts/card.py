"""Write the model card and the HTML report of the run.

Reads   reports/ (metrics, curves, timing), data/evaluate/*.jsonl
Writes  reports/model-card.md, reports/report.html
"""

from dataclasses import dataclass
from pathlib import Path

from temper import pages, params, records, results, stage


@dataclass
class Source:
    kind: str
    id: str
    revision: str
    sha256: str | None
    format: str
    files: list[str]
    licence: str


@dataclass
class Card:
    name: str
    base: str
    licence: str
    sources: list[Source]


def main() -> None:
    cfg = params.load("card", Card)

    found = results.load()
    answers = {variant: list(records.read(f"data/evaluate/{variant}.jsonl")) for variant in results.VARIANTS}

    Path("reports/model-card.md").write_text(pages.card(found, cfg), encoding="utf-8")
    Path("reports/report.html").write_text(pages.report(found, cfg, answers), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, "card")
