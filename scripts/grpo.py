"""Group relative policy optimization: TRL trains an adapter on rewards that a verifier gives to the model's own answers.

Reads   models/<policy>, data/mix/<prompts>.jsonl
Writes  models/grpo (merged, with trl.yaml), models/grpo-adapter, reports/training/grpo.json, reports/plots/grpo.csv
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from temper import (
    adapters,
    checkpoints,
    curves,
    envs,
    grpo,
    launcher,
    metrics,
    params,
    prompt_set,
    rewards,
    sandbox,
    stage,
    tracking,
    training,
    trl,
    vllm,
)

OUT, ADAPTER = Path("models/grpo"), Path("models/grpo-adapter")


@dataclass
class Grpo:
    prompts: str
    """The split that they are of: preferences or rl."""
    rewards: dict[str, float]
    """Weights by name; the rewards that apply to an answer are summed."""
    pattern: str
    """What an answer other than a call or code should match as a whole, for the reward `format`."""
    overlong: int
    """Tokens below max_tokens from which the reward `length` falls, to -1 at max_tokens."""
    sandbox: sandbox.Limits
    """Of one program, for the reward `code`."""
    rollouts: str
    """Who samples: transformers, vllm, vllm-colocate or vllm-server."""
    server_url: str | None
    """Of a running `trl vllm-serve`, for vllm-server."""
    dtype: str
    """Of sampling by vllm."""
    generations: int
    """Answers a prompt."""
    temperature: float
    max_tokens: int
    """Of an answer."""
    beta: float
    """What leaving the first policy costs, as a KL divergence; with 0 it is not computed."""
    loss: str
    epsilon: float
    """How far below 1 the ratio of policies counts."""
    epsilon_high: float | None
    """How far above; null for as far as below."""
    scale_rewards: str
    """What advantages are divided by: the standard deviation of the group, of the batch, or none."""
    mask_cut: bool
    """Leave answers that were cut at max_tokens out of the loss."""
    lora: adapters.Lora
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    """Answers an optimizer step: prompts × generations."""
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    seed: int


def main() -> None:
    cfg, start = params.load("grpo", Grpo), Path("models", sys.argv[1])
    rewards.require(cfg.rewards)
    source = prompt_set.required("grpo", cfg.prompts)
    rows = grpo.prompts(source, cfg.rewards)
    weights = rewards.applicable(rows, cfg.rewards)
    require(cfg, weights)

    processes = launcher.processes()
    config = grpo.render(cfg, start, processes, weights)
    trl.write(config, OUT / "trl.yaml")
    training.prepare()
    trl.check(config)

    inputs, threads = [*checkpoints.deps("grpo"), OUT / "trl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("grpo", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("grpo"), processes)
        adapters.keep(scratch / "out", ADAPTER)
        merged = adapters.merge(start, ADAPTER, OUT, source)
        curves.write("reports/plots/grpo.csv", log, grpo.CURVES)
        stage.measured(**grpo.seconds_per_step(log))
        found = curves.summary(log) | grpo.summary(log) | merged
        metrics.write("reports/training/grpo.json", found | {"prompts": len(rows)})


def require(cfg: Grpo, weights: dict[str, float]) -> None:
    """Refuse what would only fail after minutes of imports."""
    training.require(cfg)
    if cfg.rollouts == "vllm":
        vllm.require_build()
        if not envs.is_built("serve"):
            raise SystemExit(
                "grpo.rollouts is 'vllm': run `make env-serve`, which holds it, or choose 'transformers' in conf/grpo"
            )
    if cfg.rollouts.startswith("vllm-") and not importlib.util.find_spec("vllm"):
        raise SystemExit(
            f"grpo.rollouts is '{cfg.rollouts}', which wants vLLM in the environment `train`, where it is not: choose 'vllm' in "
            "conf/grpo"
        )
    if cfg.rollouts == "vllm-server" and cfg.server_url is None:
        raise SystemExit(
            "grpo.rollouts is 'vllm-server' and grpo.server_url is null: set it in conf/grpo to that of a running `trl vllm-serve`"
        )
    if "code" in weights:
        sandbox.require(cfg.sandbox)


if __name__ == "__main__":
    stage.run(main, "training/grpo")
