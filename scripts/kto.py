"""Kahneman–Tversky optimization: TRL trains an adapter on answers that are right or wrong by themselves, which is merged.

Reads   models/<policy>, data/preferences.jsonl (of each pair both answers)
Writes  models/kto (merged, with trl.yaml), models/kto-adapter, reports/training/kto.json, reports/plots/kto.csv
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

OUT, ADAPTER = Path("models/kto"), Path("models/kto-adapter")
PREFERENCES = Path("data/preferences.jsonl")


@dataclass
class Kto:
    beta: float
    """How much leaving the model it starts from costs."""
    loss: str
    lora: adapters.Lora
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    max_length: int
    """Tokens of prompt and answer; what is longer is left out."""
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    """Answers in one forward pass; the KL is estimated between them."""
    seed: int


def main() -> None:
    cfg, start = params.load("kto", Kto), Path("models", sys.argv[1])
    processes = launcher.processes()
    training.require(cfg)
    training.require_context("kto.max_length", cfg.max_length, start)
    pairs = preference_trainers.pairs(PREFERENCES, "kto", 1)
    answers = preference_trainers.unpaired(pairs, cfg.seed)
    preference_trainers.require_a_step(len(answers), str(PREFERENCES), "answers", "kto", cfg.global_batch)

    config = preference_trainers.render_kto(cfg, start, processes, answers)
    training.prepare()
    kept = preference_trainers.leave_out(config, answers, cfg.global_batch)
    config["trainer"] |= preference_trainers.weights(kept)
    trl.write(config, OUT / "trl.yaml")
    trl.check(config)

    inputs, threads = [*checkpoints.deps("kto"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("kto", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("kto"), processes)
        adapters.keep(scratch / "out", ADAPTER)
        merged = adapters.merge(start, ADAPTER, OUT, PREFERENCES)
        curves.write("reports/plots/kto.csv", log, preference_trainers.KTO_REWARDS.values())
        found = curves.summary(log) | preference_trainers.kto_rewards(log) | merged
        desirable = sum(answer["label"] for answer in kept)
        counts = {"desirable": desirable, "undesirable": len(kept) - desirable}
        metrics.write("reports/training/kto.json", found | counts | {"answers_too_long": len(answers) - len(kept)})


if __name__ == "__main__":
    stage.run(main, "training/kto")
