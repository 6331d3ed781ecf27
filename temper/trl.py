"""TRL: what its trainers share, from a section of params.yaml in their terms to a run on one process or on several."""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from temper import base_model, health, launcher, stage, training

Config = dict[str, Any]
"""A rendered run: `stage`, `builder` and `settings` (module:name of the function that makes the trainer and of TRL's settings
class), `trainer` (what that class takes), `model` (folder), `attention`, `lora`, and what else the builder reads."""
Log = list[dict[str, Any]]
PRECISIONS = ("fp32", "bf16")


def arguments(cfg: Any, processes: int, section: str) -> Config:
    """What all of TRL's settings classes take, for a section with the keys of conf/dpo/sigmoid.yaml, checkpoints included."""
    return optimization(cfg, processes, section) | {
        "save_strategy": "steps",
        "save_steps": min(1 / cfg.saves, 0.9999),  # a share of all steps; 1.0 would mean every step
        "save_total_limit": 2,
    }


def optimization(cfg: Any, processes: int, section: str) -> Config:
    """The part of `arguments` that a trainer which saves no checkpoints takes too."""
    if cfg.precision not in PRECISIONS:
        raise SystemExit(
            f"hardware.precision is '{cfg.precision}', expected {' or '.join(PRECISIONS)}: correct it in conf/"
        )
    on_cpu = cfg.hardware == "cpu"
    return {
        "per_device_train_batch_size": cfg.micro_batch,
        "gradient_accumulation_steps": training.accumulation(cfg.global_batch, cfg.micro_batch, processes, section),
        "num_train_epochs": float(cfg.epochs),
        "max_steps": -1 if cfg.max_steps is None else cfg.max_steps,
        "optim": "adamw_torch",
        "learning_rate": cfg.learning_rate,
        "lr_scheduler_type": cfg.schedule,
        "warmup_steps": cfg.warmup_ratio,  # below 1 it is a share of all steps
        "logging_steps": 1,
        # Unfiltered, a loss that is not a number shows in the log instead of as the mean of its neighbours.
        "logging_nan_inf_filter": False,
        "gradient_checkpointing": not on_cpu,
        "use_cpu": on_cpu,
        "bf16": cfg.precision == "bf16",
        "seed": cfg.seed,
    }


def lora(cfg: Any) -> Config:
    """What LoraConfig takes for the `lora` part of a section."""
    targets = sorted(cfg.targets)
    return {"r": cfg.rank, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout, "target_modules": targets}


def check(config: Config) -> None:
    """Hold `config` against TRL's settings class, on any machine: what asks for a GPU is checked as if there were none to ask."""
    machine = {"use_cpu": True, "output_dir": "unused", "report_to": "none"}
    try:
        _named(config["settings"])(**config["trainer"] | machine)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise SystemExit(f"trl refuses the configuration of {config['stage']}: {reason}") from None


def write(config: Config, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=True))


def train(config: Config, scratch: Path, checkpoint: Path | None, report_to: list[str], processes: int) -> Log:
    """Train into `scratch`/out and return the Trainer's log; what belongs to this run alone is added to `config` here."""
    trainer = config["trainer"] | {"output_dir": str(scratch / "out"), "report_to": report_to or "none"}
    run = config | {"trainer": trainer, "checkpoint": checkpoint and str(checkpoint)}
    (scratch / "run.json").write_text(json.dumps(run))
    if processes == 1:
        return _run(scratch)
    launcher.run(["-m", "temper.trl", str(scratch)], config["stage"])
    log: Log = json.loads((scratch / "log.json").read_text())
    return log


def settings(run: Config) -> Any:
    """TRL's settings object of a run."""
    return _named(run["settings"])(**run["trainer"])


def tokenizer(folder: str) -> Any:
    """The tokenizer in `folder`, with a token to pad with, and as EOS the token that ends a turn.

    TRL appends the EOS to answers (CPO, ORPO) and stops sampling at it (GRPO, PPO): Gemma's own, <eos>, ends no turn.
    """
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    base_model.require_chat_template(found, folder)
    found.pad_token = found.pad_token or found.eos_token
    found.eos_token = end_of_turn(found) or found.eos_token
    return found


def end_of_turn(tokenizer: Any) -> str | None:
    """The first token of its own kind that the chat template writes after an answer; None where it writes words only."""
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    after = tokenizer.apply_chat_template(chat, tokenize=False).rpartition("This.")[2]
    added = tokenizer.added_tokens_decoder
    return next(
        (str(added[one]) for one in tokenizer(after, add_special_tokens=False)["input_ids"] if one in added), None
    )


def policy(run: Config) -> dict[str, Any]:
    """What a trainer of an adapter takes: its settings, the model, the tokenizer and the adapter, drawn from the seed."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, set_seed

    made = settings(run)
    dtype = torch.bfloat16 if made.bf16 else torch.float32
    parts = {
        "args": made,
        "processing_class": tokenizer(run["model"]),
        "model": AutoModelForCausalLM.from_pretrained(run["model"], dtype=dtype, attn_implementation=run["attention"]),
        "peft_config": LoraConfig(task_type="CAUSAL_LM", **run["lora"]),
    }
    # The Trainer seeds too late: the adapter is drawn while the trainer is being made.
    set_seed(made.seed)
    return parts


def last_tenth(log: Log, names: dict[str, str]) -> dict[str, float]:
    """Means over the last tenth of the steps that log it, for each of `names` (metric → what the trainer calls it)."""
    means: dict[str, float] = {}
    for metric, key in names.items():
        values = [entry[key] for entry in log if key in entry]
        tail = values[-max(1, len(values) // 10) :]
        means |= {metric: sum(tail) / len(tail)} if tail else {}
    return means


def _run(scratch: Path) -> Log:
    """The run that `scratch`/run.json describes; the first process leaves the weights and the log there."""
    run = json.loads((scratch / "run.json").read_text())
    trainer = _named(run["builder"])(run)
    training.quiet_callbacks(trainer)
    health.watch(trainer, run["stage"])
    started = time.monotonic()
    # PPO's trainer, which cannot resume, has no such argument.
    trainer.train(**{"resume_from_checkpoint": run["checkpoint"]} if run["checkpoint"] else {})
    seconds = time.monotonic() - started
    trainer.save_model()
    log: Log = trainer.state.log_history
    if trainer.is_world_process_zero():
        (scratch / "log.json").write_text(json.dumps(log))
        if not run["checkpoint"]:
            _measure(log, seconds)
    return log


def _measure(log: Log, seconds: float) -> None:
    """Tokens that were trained on, padding not counted, of the trainers that count them; a resumed run did a part."""
    for tokens in [entry["num_tokens"] for entry in log if "num_tokens" in entry][-1:]:
        stage.measured(tokens=round(tokens), tokens_per_second=round(tokens / seconds, 1))


def _named(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    stage.bind_to_parent()
    training.prepare()
    _run(Path(sys.argv[1]))
