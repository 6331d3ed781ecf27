"""PPO (TRL, experimental): answers sampled from the policy, scored by a reward model, the policy kept near where it started.

One process only: for a policy with an adapter TRL's trainer reaches through the model to `.policy`, which data parallelism hides.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temper import prompt_set, record, records, reward_model, trl
from temper.trl import Config, Log

Chat = list[dict[str, str]]
PROCESSES = 1
# Columns of the curve, and what the metrics call their means over the last tenth of the updates: KL and entropy in nats an answer.
CURVES = {
    "score": "objective/scores",
    "kl": "objective/kl",
    "entropy": "objective/entropy",
    "reward": "objective/rlhf_reward",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "clipped": "policy/clipfrac_avg",
}


def render(cfg: Any, start: Path) -> Config:
    """What PPOConfig and LoraConfig take for section `ppo`."""
    own = {
        "save_strategy": "no",
        "gradient_checkpointing": False,  # TRL's loop never switches it on
        "total_episodes": None if cfg.max_steps is None else cfg.max_steps * cfg.global_batch,
        "num_ppo_epochs": cfg.epochs_a_batch,
        "response_length": cfg.max_tokens,
        "stop_token": "eos",
        "temperature": cfg.temperature,
        "missing_eos_penalty": cfg.missing_eos_penalty,
        "kl_coef": cfg.kl_coef,
        "kl_estimator": cfg.kl_estimator,
        "cliprange": cfg.clip,
        "cliprange_value": cfg.clip,
        "vf_coef": cfg.value_coef,
        "gamma": cfg.gamma,
        "lam": cfg.gae_lambda,
        "local_rollout_forward_batch_size": cfg.rollout_batch,
        "num_sample_generations": 0,
    }
    return {
        "stage": "ppo",
        "builder": "temper.ppo:trainer",
        "settings": "trl.experimental.ppo:PPOConfig",
        "model": str(start),
        "reward_model": "models/reward",
        "prompts": str(prompt_set.file("ppo", cfg.prompts)),
        "max_prompt": cfg.max_length - cfg.max_tokens,
        "end_of_turn": cfg.end_of_turn,
        "attention": cfg.attention,
        "trainer": trl.optimization(cfg, PROCESSES, "ppo") | own,
        "lora": trl.lora(cfg.lora),
    }


def prompts(path: Path, global_batch: int) -> list[Chat]:
    """What is asked in the rows of a file, up to the answer; text rows ask nothing."""
    rows = [row for row in records.read(path) if record.kind(row) != "text"]
    chats = [row["messages"] if record.kind(row) == "preference" else row["messages"][:-1] for row in rows]
    require_a_batch(len(chats), str(path), global_batch)
    return chats


def require_a_batch(count: int, place: str, global_batch: int) -> None:
    """TRL's loop waits forever for a batch that the prompts do not fill."""
    if count < global_batch:
        raise SystemExit(
            f"{place}: {count} prompts, fewer than a batch of ppo takes (ppo.global_batch is {global_batch}): raise "
            "its share in conf/split or ppo.max_length, or lower ppo.global_batch in conf/"
        )


def trainer(run: Config) -> Any:
    """TRL's trainer. In memory: the policy, whose reference it is without its adapter, and one copy of the reward model, which
    the value model shares but for an adapter and a head of its own."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOTrainer

    class Trainer(PPOTrainer):
        def log(self, logs: dict[str, float], *given: Any) -> None:
            """With `loss` and `learning_rate`, which every other trainer logs."""
            loss = logs["loss/policy_avg"] + self.args.vf_coef * logs["loss/value_avg"]
            super().log(logs | {"loss": loss, "learning_rate": logs["lr"]}, *given)

    parts = trl.policy(run)
    tokenizer = reward_model.padded(parts["processing_class"], run["end_of_turn"])
    tokenizer.padding_side = "left"
    rewards = reward_model.classifier(run["reward_model"], parts["model"].dtype, run["attention"])
    require_same_vocabulary(run, parts["model"], rewards)
    return Trainer(
        ref_model=None,
        reward_model=rewards.requires_grad_(False).eval(),
        value_model=critic(rewards, run["lora"]),
        train_dataset=Dataset.from_list(queries(run, tokenizer)),
        **parts,
    )


def require_same_vocabulary(run: Config, policy: Any, rewards: Any) -> None:
    """Token ids of one model are read by the other."""
    sizes = [model.config.get_text_config().vocab_size for model in (policy, rewards)]
    if sizes[0] != sizes[1] or policy.config.model_type != rewards.config.model_type:
        raise SystemExit(
            f"{run['reward_model']}: made from another base than {run['model']} (vocabularies of {sizes[1]} and {sizes[0]}): "
            "start recipe.reward and recipe.ppo from models of one base"
        )


def critic(rewards: Any, lora: Config) -> Any:
    """A value model that begins as the reward model and shares its frozen weights: an adapter and a float32 head are its own."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    shared = {id(weight): weight for weight in rewards.base_model.parameters()}
    values = copy.deepcopy(rewards, shared)
    inject_adapter_in_model(LoraConfig(**lora), values)
    values.score.requires_grad_(True)
    for weight in values.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.float32)
    values.score.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.float32),))
    return values


def queries(run: Config, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Token ids of the prompts that leave room for an answer."""
    global_batch = run["trainer"]["per_device_train_batch_size"] * run["trainer"]["gradient_accumulation_steps"]
    chats = prompts(Path(run["prompts"]), global_batch)
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    ids: Sequence[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [{"input_ids": one} for one in ids if len(one) <= run["max_prompt"]]
    if longer := len(ids) - len(kept):
        print(
            f"ppo: {longer} of {len(ids)} prompts are longer than {run['max_prompt']} tokens and left out", flush=True
        )
    require_a_batch(len(kept), f"{run['prompts']} up to {run['max_prompt']} tokens", global_batch)
    return kept


def measured(log: Log) -> dict[str, float]:
    """The mean score of the first update, and means over the last tenth of the updates."""
    return trl.last_tenth(log, CURVES) | {"first_score": log[0]["objective/scores"]}
