"""Odds-ratio preference optimization: TRL trains an adapter on pairs, chosen answers and preference at once, which is merged.

Reads   models/<policy> (the base: no SFT comes before it), data/preferences.jsonl
Writes  models/orpo (merged, with trl.yaml), models/orpo-adapter, reports/training/orpo.json, reports/plots/orpo.csv
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import (
    adapters,
    checkpoints,
    curves,
    launcher,
    metrics,
    params,
    preference_trainers,
    stage,
    tracking,
    training,
    trl,
)

OUT, ADAPTER = Path("models/orpo"), Path("models/orpo-adapter")
PREFERENCES = Path("data/preferences.jsonl")


@dataclass
class Orpo:
    beta: float
    """Weight of the odds ratio beside the cross-entropy of chosen answers: λ of Hong et al. 2024, arXiv:2403.07691."""
    lora: adapters.Lora
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    max_length: int
    """Tokens of prompt and answer; pairs that are longer are left out."""
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    seed: int


def main() -> None:
    cfg, start = params.load("orpo", Orpo), Path("models", sys.argv[1])
    processes = launcher.processes()
    training.require(cfg)
    training.require_context("orpo.max_length", cfg.max_length, start)
    pairs = preference_trainers.pairs(PREFERENCES, "orpo", cfg.global_batch)

    config = preference_trainers.render_orpo(cfg, start, processes)
    training.prepare()
    kept = preference_trainers.leave_out(config, pairs, cfg.global_batch)
    trl.write(config, OUT / "trl.yaml")
    trl.check(config)

    inputs, threads = [*checkpoints.deps("orpo"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("orpo", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("orpo"), processes)
        adapters.keep(scratch / "out", ADAPTER)
        merged = adapters.merge(start, ADAPTER, OUT, PREFERENCES)
        curves.write("reports/plots/orpo.csv", log, preference_trainers.REWARDS.values())
        found = curves.summary(log) | preference_trainers.rewards(log) | merged
        metrics.write(
            "reports/training/orpo.json", found | {"pairs": len(kept), "pairs_too_long": len(pairs) - len(kept)}
        )


if __name__ == "__main__":
    stage.run(main, "training/orpo")
