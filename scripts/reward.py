"""A reward model: TRL trains a score for answers from pairs (Bradley–Terry), which held-out pairs judge.

Reads   models/<policy>, data/preferences.jsonl
Writes  models/reward (merged, with trl.yaml), models/reward-adapter (empty where the method is full), reports/training/reward.json,
        reports/plots/reward.csv
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
    reward_model,
    stage,
    tracking,
    training,
    trl,
)

OUT, ADAPTER = Path("models/reward"), Path("models/reward-adapter")
PREFERENCES = Path("data/preferences.jsonl")


@dataclass
class Reward:
    method: str
    """lora, or full for all weights."""
    lora: adapters.Lora
    center: float | None
    """Weight of the squared sum of rewards, which keeps them around 0 (Eisenstein et al. 2023, arXiv:2312.09244); null for none."""
    held_out: float
    """Share of the prompts whose pairs judge the model."""
    confidence: float
    """Of the intervals of accuracy and margin."""
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    max_length: int
    """Tokens of prompt and answer; pairs that are longer are left out."""
    end_of_turn: str | None
    """The token that ends a turn, where it is not the tokenizer's EOS."""
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    seed: int


def main() -> None:
    cfg, start = params.load("reward", Reward), Path("models", sys.argv[1])
    processes = launcher.processes()
    training.require(cfg)
    training.require_context("reward.max_length", cfg.max_length, start)
    pairs = preference_trainers.pairs(PREFERENCES, "reward", 1)
    trained, held_out = reward_model.divided(pairs, cfg.held_out, cfg.seed, str(PREFERENCES))
    preference_trainers.require_a_step(len(trained), str(PREFERENCES), "pairs", "reward", cfg.global_batch)

    config = reward_model.render(cfg, start, processes)
    trl.write(config, OUT / "trl.yaml")
    training.prepare()
    tokenizer = reward_model.padded(trl.tokenizer(str(start)), cfg.end_of_turn)
    kept = reward_model.fitting(trained, tokenizer, cfg.max_length)
    place = f"{PREFERENCES} up to {cfg.max_length} tokens"
    preference_trainers.require_a_step(len(kept), place, "pairs", "reward", cfg.global_batch)
    trl.check(config)

    inputs, threads = [*checkpoints.deps("reward"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("reward", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("reward"), processes)
        keep(cfg.method, scratch / "out")
        merged = reward_model.write(config, scratch / "out", ADAPTER, OUT, held_out)
        margins = reward_model.margins(OUT, held_out, cfg.max_length, cfg.micro_batch)
        curves.write("reports/plots/reward.csv", log, reward_model.CURVES.values())
        found = curves.summary(log) | reward_model.measured(margins, log, cfg.confidence, cfg.seed) | merged
        metrics.write(
            "reports/training/reward.json", found | {"pairs": len(kept), "pairs_too_long": len(trained) - len(kept)}
        )


def keep(method: str, trained: Path) -> None:
    """The adapter in its own out, which DVC wants to be there in any case."""
    if method == "lora":
        adapters.keep(trained, ADAPTER)
    else:
        ADAPTER.mkdir()


if __name__ == "__main__":
    stage.run(main, "training/reward")
