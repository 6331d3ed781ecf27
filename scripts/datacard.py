"""Write the data card and the data page: sources, licences, funnel, what left and why, and what is trained on.

Reads reports/ of the data stages with their plots, data/rejected/, data/audit, data/mix.
Writes reports/data-card.md, reports/data.html.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import datacard, licences, params, stage
from temper.licences import Verdict


@dataclass
class Datacard:
    name: str
    licence: str
    """Of the model that is released."""
    base: str
    base_licence: str
    language: list[str]
    sources: list[dict[str, Any]]
    licence_policy: str
    """Where the licences exclude the release: `fail` the run, or `warn`."""
    examples: int
    """Of every reason and every benchmark."""


def main() -> None:
    cfg = params.load("datacard", Datacard)
    if cfg.licence_policy not in ("fail", "warn"):
        raise SystemExit(f"datacard.licence_policy is '{cfg.licence_policy}': choose fail or warn in conf/datacard")

    found = datacard.load(cfg)

    Path("reports/data-card.md").write_text(datacard.card(found, cfg), encoding="utf-8")
    Path("reports/data.html").write_text(datacard.page(found, cfg), encoding="utf-8")
    judge(found.verdict, cfg.licence_policy)


def judge(verdict: Verdict, policy: str) -> None:
    """Say what stands in the way of the release; exit where it may not be made and the policy is `fail`."""
    message = f"datacard: release under {verdict.release}: {verdict.outcome}: {verdict.reason}"
    if verdict.outcome == licences.INCOMPATIBLE and policy == "fail":
        raise SystemExit(
            f"{message}: remove the source, release under another licence (model.licence), or set datacard.licence_policy=warn"
        )
    if verdict.outcome != licences.PERMITTED:
        print(message, flush=True)


if __name__ == "__main__":
    stage.run(main, "datacard")
