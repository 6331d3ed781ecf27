"""Proximal policy optimization: TRL trains an adapter by the scores that the reward model gives to the policy's own answers.

Experimental in TRL, which cannot resume it: a run that is killed begins again, and loses no stage but itself.

Reads   models/<policy>, models/reward, data/mix/<prompts>.jsonl
Writes  models/ppo (merged, with trl.yaml), models/ppo-adapter, reports/training/ppo.json, reports/plots/ppo.csv
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import adapters, checkpoints, curves, metrics, params, ppo, prompt_set, stage, tracking, training, trl

OUT, ADAPTER = Path("models/ppo"), Path("models/ppo-adapter")


@dataclass
class Ppo:
    prompts: str
    """The split that they are of: preferences or rl."""
    lora: adapters.Lora
    """Of the policy, and of the value model."""
    kl_coef: float
    """How much a nat between the policy and what it started as costs, in units of the score."""
    kl_estimator: str
    clip: float
    """How far a step may move the ratio of probabilities, and a value, from what was sampled."""
    value_coef: float
    """Weight of the value model's loss."""
    gamma: float
    gae_lambda: float
    epochs_a_batch: int
    """Passes over each batch of sampled answers."""
    max_tokens: int
    """Of an answer."""
    temperature: float
    missing_eos_penalty: float | None
    """Taken from the score of an answer that does not end within max_tokens."""
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    """Passes over the prompts."""
    max_steps: int | None
    """Batches."""
    global_batch: int
    max_length: int
    """Tokens of prompt and answer; prompts that leave no room are left out."""
    rollout_batch: int
    """Answers sampled and scored at a time."""
    end_of_turn: str | None
    """The token that ends a turn, where it is not the tokenizer's EOS."""
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    seed: int


def main() -> None:
    cfg, start = params.load("ppo", Ppo), Path("models", sys.argv[1])
    training.require(cfg, ppo.PROCESSES)
    training.require_context("ppo.max_length", cfg.max_length, start)
    source = prompt_set.required("ppo", cfg.prompts)
    prompts = ppo.prompts(source, cfg.global_batch)

    config = ppo.render(cfg, start)
    trl.write(config, OUT / "trl.yaml")
    training.prepare()
    trl.check(config)

    inputs, threads = [*checkpoints.deps("ppo"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("ppo", cfg, inputs, threads=threads) as scratch:
        log = trl.train(config, scratch, None, tracking.trackers("ppo"), ppo.PROCESSES)
        adapters.keep(scratch / "out", ADAPTER)
        merged = adapters.merge(start, ADAPTER, OUT, source)
        curves.write("reports/plots/ppo.csv", log, ppo.CURVES.values())
        found = curves.summary(log) | ppo.measured(log) | merged
        metrics.write("reports/training/ppo.json", found | {"prompts": len(prompts)})


if __name__ == "__main__":
    stage.run(main, "training/ppo")
