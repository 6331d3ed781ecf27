"""Write the scorecard: what the deliverable reaches, in points, each line with its evidence and the command behind it.

Reads   reports/ (comparisons, gate, contamination, quants, speed, openness) of this recipe's stages, reports/benchmarks/
Writes  reports/scorecard.md, reports/scorecard.json
"""

from dataclasses import dataclass
from pathlib import Path

from temper import graph, metrics, params, scorecard, stage
from temper.scorecard import Part, Scale


@dataclass
class Scorecard:
    name: str
    parts: dict[str, Part]
    lines: dict[str, Scale]


def main() -> None:
    cfg = params.load("scorecard", Scorecard)

    made = {out for one in graph.stages() for out in one.outs}
    found = scorecard.lines(cfg.lines, cfg.parts, made)

    Path("reports/scorecard.md").write_text(scorecard.page(cfg.name, found, cfg.parts), encoding="utf-8")
    metrics.write("reports/scorecard.json", scorecard.values(found, cfg.parts))


if __name__ == "__main__":
    stage.run(main, "scorecard")
