"""Direct preference optimization: TRL trains an adapter on pairs of answers, which is merged into the model it started from.

Reads   models/<policy>, data/preferences.jsonl
Writes  models/dpo (merged, with trl.yaml), models/dpo-adapter, reports/training/dpo.json, reports/plots/dpo.csv
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

OUT, ADAPTER = Path("models/dpo"), Path("models/dpo-adapter")
PREFERENCES = Path("data/preferences.jsonl")


@dataclass
class Dpo:
    beta: float
    """How much leaving the model it starts from costs."""
    loss: str
    reference: bool
    """Whether answers are measured against the model it starts from; without, the losses are those of CPO and SimPO."""
    sft_weight: float
    """Of the cross-entropy of chosen answers, beside the preference loss (RPO: Pang et al. 2024, arXiv:2404.19733); 0 for none."""
    ld_alpha: float | None
    """Weight of tokens beyond the shorter answer's length (LD-DPO: Liu et al. 2024, arXiv:2409.06411), 0 to 1; null for 1."""
    label_smoothing: float
    """Share of pairs taken to be the wrong way round, where the loss asks."""
    target_margin: float
    """What simpo wants between both answers (its γ), in units of beta × log-probability a token."""
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
    cfg, start = params.load("dpo", Dpo), Path("models", sys.argv[1])
    processes = launcher.processes()
    training.require(cfg)
    training.require_context("dpo.max_length", cfg.max_length, start)
    pairs = preference_trainers.pairs(PREFERENCES, "dpo", cfg.global_batch)

    config = preference_trainers.render_dpo(cfg, start, processes)
    training.prepare()
    kept = preference_trainers.leave_out(config, pairs, cfg.global_batch)
    trl.write(config, OUT / "trl.yaml")
    trl.check(config)

    inputs, threads = [*checkpoints.deps("dpo"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("dpo", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("dpo"), processes)
        adapters.keep(scratch / "out", ADAPTER)
        merged = adapters.merge(start, ADAPTER, OUT, PREFERENCES)
        curves.write("reports/plots/dpo.csv", log, preference_trainers.REWARDS.values())
        found = curves.summary(log) | preference_trainers.rewards(log) | merged
        metrics.write(
            "reports/training/dpo.json", found | {"pairs": len(kept), "pairs_too_long": len(pairs) - len(kept)}
        )


if __name__ == "__main__":
    stage.run(main, "training/dpo")
