"""GRPO (Shao et al. 2024, arXiv:2402.03300) with verifiable rewards: section `grpo` as TRL takes it, and its trainer."""

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from temper import params, prompt_set, records, rewards, rollouts, sandbox, trl
from temper.records import Row
from temper.trl import Config, Log

# Where answers come from: TRL's generate() in the trainer, our engine in the `serve` environment, and TRL's own two modes, for
# which vLLM has to be in the trainer's environment, and GPUs there to hand weights over by NCCL.
ROLLOUTS: dict[str, Config] = {
    "transformers": {"use_vllm": False},
    "vllm": {"use_vllm": False},
    "vllm-colocate": {"use_vllm": True, "vllm_mode": "colocate"},
    "vllm-server": {"use_vllm": True, "vllm_mode": "server"},
}
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
SCALES = ("group", "batch", "none")
REWARD, ZERO_STD, LENGTH, CUT, KL = (
    *("reward", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "kl"),
)
SYNC = "sync/logp_difference/mean", "sync/logp_difference/max"
CURVES = (REWARD, "reward_std", ZERO_STD, LENGTH, CUT, KL, "entropy", "grad_norm")


def render(cfg: Any, start: Path, processes: int, weights: dict[str, float]) -> Config:
    """What GRPOConfig and LoraConfig take for section `grpo`; `weights` are of the rewards that apply to its prompts."""
    for key, value, known in (
        ("rollouts", cfg.rollouts, ROLLOUTS),
        ("loss", cfg.loss, LOSSES),
        ("scale_rewards", cfg.scale_rewards, SCALES),
    ):
        if value not in known:
            raise SystemExit(f"grpo.{key} is '{value}', expected one of {', '.join(known)}: correct it in conf/grpo")
    trainer = trl.arguments(cfg, processes, "grpo") | {
        # The prompts of all epochs come end to end: TRL's sampler does not know, after a resume, in which epoch it is.
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "shuffle_dataset": False,
        "num_generations": cfg.generations,
        "max_completion_length": cfg.max_tokens,
        "temperature": cfg.temperature,
        "beta": cfg.beta,
        "loss_type": cfg.loss,
        "epsilon": cfg.epsilon,
        "epsilon_high": cfg.epsilon_high,
        "scale_rewards": cfg.scale_rewards,
        "mask_truncated_completions": cfg.mask_cut,
        "reward_weights": list(weights.values()),
        # Processes make different numbers of passes where neighbours share a prompt, and each broadcast would wait for all.
        "ddp_broadcast_buffers": False,
        **ROLLOUTS[cfg.rollouts],
    }
    if cfg.rollouts == "vllm-server":
        trainer["vllm_server_base_url"] = cfg.server_url
    return {
        "stage": "grpo",
        "builder": "temper.grpo:trainer",
        "settings": "trl:GRPOConfig",
        "trainer": trainer,
        "model": str(start),
        "attention": cfg.attention,
        "lora": trl.lora(cfg.lora),
        "prompts": str(prompt_set.file("grpo", cfg.prompts)),
        "epochs": cfg.epochs,
        "steps": cfg.max_steps,
        "rewards": weights,
        "pattern": cfg.pattern,
        "overlong": cfg.overlong,
        "sandbox": vars(cfg.sandbox),
        "rollouts": cfg.rollouts,
        "dtype": cfg.dtype,
    }


def prompts(path: Path, weights: dict[str, float]) -> list[Row]:
    """The rows whose answers the rewards verify; exits when there are none."""
    rows = list(records.read(path))
    found = rewards.verifiable(rows, weights)
    if not found:
        raise SystemExit(
            f"{path}: none of {len(rows)} prompts can be verified by {', '.join(weights)}: they need a gold call, a reference that "
            "ends in `#### number`, or tests: add such a source in conf/data, raise split.{path.stem}, or add a reward in conf/grpo"
        )
    return found


def order(count: int, epochs: int, steps: int | None, batch: int, seed: int) -> list[int]:
    """Numbers of prompts over the whole run, `batch` a step: each epoch in an order of its own, what fills no step left out."""
    numbers = []
    for epoch in range(epochs):
        numbers += random.Random(f"{seed}/{epoch}").sample(range(count), count)
    whole = len(numbers) // batch
    if not whole:
        raise SystemExit(
            f"grpo: {len(numbers)} prompts in all, fewer than the {batch} of one step (global_batch / generations): lower "
            "grpo.global_batch or raise grpo.epochs in conf/grpo"
        )
    return numbers[: batch * min(whole, steps or whole)]


def trainer(run: Config) -> Any:
    """TRL's trainer of a run, with its sampler where that is ours."""
    # TRL warns that a sampler of one's own is experimental, and whoever runs this can do nothing about it.
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset

    from temper import grpo_trainer

    rows = prompts(Path(run["prompts"]), run["rewards"])
    sampler = sampling(run, rows) if run["rollouts"] == "vllm" else None
    parts = trl.policy(run)
    chosen = order(len(rows), run["epochs"], run["steps"], steps_prompts(parts["args"]), parts["args"].seed)
    made = grpo_trainer.Trainer(
        **parts,
        train_dataset=Dataset.from_list([{"prompt": rewards.prompt(rows[n]), "number": n} for n in chosen]),
        reward_funcs=reward_functions(run, rows),
        rollout_func=sampler,
    )
    if sampler:
        made.sampler = sampler
        made.add_callback(grpo_trainer.Close(sampler))
    return made


def steps_prompts(settings: Any) -> int:
    """Prompts of one optimizer step, over all processes."""
    return int(settings.generation_batch_size // settings.num_generations)


def sampling(run: Config, rows: Sequence[Row]) -> rollouts.Rollouts:
    """Our engine, which loads while the trainer does."""
    settings = run["trainer"]
    tokenizer = trl.tokenizer(run["model"])
    chats = [rewards.prompt(row) for row in rows]
    longest = max(
        map(len, tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"])
    )
    engine = rollouts.Engine(
        {
            "model": run["model"],
            "dtype": run["dtype"],
            "length": longest + settings["max_completion_length"],
            "max_tokens": settings["max_completion_length"],
            "temperature": settings["temperature"],
            "seed": settings["seed"],
            "runtime": params.runtime(),
        }
    )
    coarsest = "bfloat16" if settings["bf16"] else run["dtype"]
    return rollouts.Rollouts(engine, run["dtype"], rollouts.TOLERANCE[coarsest], settings["seed"])


def reward_functions(run: Config, rows: Sequence[Row]) -> list[Callable[..., list[float | None]]]:
    """The rewards in TRL's terms; `length` is the soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 13)."""
    from trl.rewards import get_soft_overlong_punishment

    limit = run["trainer"]["max_completion_length"]
    own = rewards.functions(run["pattern"], sandbox.Limits(**run["sandbox"]))
    length = get_soft_overlong_punishment(limit, run["overlong"])
    return [named("length", length) if name == "length" else scored(name, own[name], rows) for name in run["rewards"]]


def scored(name: str, reward: rewards.Reward, rows: Sequence[Row]) -> Callable[..., list[float | None]]:
    """A reward of one answer as TRL's of many; programs run side by side."""

    def function(completions: list[Any], number: list[int], **_: Any) -> list[float | None]:
        answers = [turns[0].get("content") or "" for turns in completions]
        with ThreadPoolExecutor(params.runtime()["threads"]) as pool:
            return list(pool.map(reward, answers, [rows[one] for one in number]))

    return named(name, function)


def named(name: str, function: Any) -> Any:
    """The function under the name that TRL's log has for it."""
    function.__name__ = name
    return function


def summary(log: Log) -> dict[str, float]:
    """Reward over the first and the last tenth of the steps, and over the last tenth what went with it; of `sync_…` the largest."""
    steps = [entry for entry in log if REWARD in entry]
    first = steps[: max(1, len(steps) // 10)]
    names = {"reward_last": REWARD, "completion_length": LENGTH, "completions_cut": CUT, "kl": KL}
    parts = {
        key.replace("s/", "_").replace("/mean", ""): key for entry in steps for key in entry if _is_reward_mean(key)
    }
    synced = [[entry[key] for entry in steps if key in entry] for key in SYNC]
    return (
        {"reward_first": sum(entry[REWARD] for entry in first) / len(first)}
        | trl.last_tenth(log, names | parts)
        | {"zero_std_share": sum(entry[ZERO_STD] for entry in steps) / len(steps)}
        | {f"sync_{name}": max(values) for name, values in zip(("mean", "max"), synced, strict=True) if values}
    )


def seconds_per_step(log: Log) -> dict[str, float]:
    """The median, sampling included."""
    times = sorted(entry["step_time"] for entry in log if "step_time" in entry)
    return {"seconds_per_step": round(times[len(times) // 2], 2)} if times else {}


def _is_reward_mean(key: str) -> bool:
    return key.startswith("rewards/") and key.endswith("/mean")
