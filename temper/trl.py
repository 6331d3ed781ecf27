"""TRL: our `dpo` section in, its native configuration out, and a preference-tuning run from it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from temper import base_model, records, stage, training

Config = dict[str, Any]
Log = list[dict[str, Any]]
CURVES = ("rewards/margins", "rewards/accuracies")
PRECISIONS = ("fp32", "bf16")


def render(cfg: Any, processes: int) -> Config:
    """What DPOConfig and LoraConfig take for section `dpo`, paths relative to the repository, nothing of this machine."""
    if cfg.precision not in PRECISIONS:
        raise SystemExit(
            f"hardware.precision is '{cfg.precision}', expected {' or '.join(PRECISIONS)}: correct it in conf/"
        )
    on_cpu = cfg.hardware == "cpu"
    trainer: Config = {
        "beta": cfg.beta,
        "loss_type": [cfg.loss],
        "max_length": cfg.max_length,
        "per_device_train_batch_size": cfg.micro_batch,
        "gradient_accumulation_steps": training.accumulation(cfg.global_batch, cfg.micro_batch, processes, "dpo"),
        "num_train_epochs": float(cfg.epochs),
        "max_steps": -1 if cfg.max_steps is None else cfg.max_steps,
        "optim": "adamw_torch",
        "learning_rate": cfg.learning_rate,
        "lr_scheduler_type": cfg.schedule,
        "warmup_steps": cfg.warmup_ratio,  # below 1 it is a share of all steps
        "logging_steps": 1,
        # Unfiltered, a loss that is not a number shows in the log instead of as the mean of its neighbours.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": min(1 / cfg.saves, 0.9999),  # a share of all steps; 1.0 would mean every step
        "save_total_limit": 2,
        "gradient_checkpointing": not on_cpu,
        "use_cpu": on_cpu,
        "bf16": cfg.precision == "bf16",
        "seed": cfg.seed,
    }
    return {
        "model": "models/sft",
        "preferences": "data/preferences.jsonl",
        "attention": cfg.attention,
        "trainer": trainer,
        "lora": lora(cfg.lora),
    }


def lora(cfg: Any) -> Config:
    targets = sorted(cfg.targets)
    return {"r": cfg.rank, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout, "target_modules": targets}


def check(config: Config) -> None:
    """Hold `config` against DPOConfig, on any machine: what asks for a GPU is checked as if there were none to ask."""
    from trl import DPOConfig

    machine = {"use_cpu": True, "output_dir": "unused", "report_to": "none"}
    try:
        DPOConfig(**config["trainer"] | machine)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"trl refuses the configuration of dpo: {' '.join(str(error).split())[:500]}") from None


def write(config: Config, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=True))


def pairs(path: Path) -> list[dict[str, Any]]:
    """The preference rows as TRL takes them: prompt, chosen and rejected, each a list of messages."""
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in records.read(path)]
    if not rows:
        raise SystemExit(f"{path}: no pairs to train on: raise preferences.samples or preferences.temperature in conf/")
    return rows


def train(config: Config, scratch: Path, checkpoint: Path | None, report_to: list[str], processes: int) -> Log:
    """Train an adapter into `scratch`/out and return the Trainer's log; what belongs to this run alone is added here."""
    trainer = config["trainer"] | {"output_dir": str(scratch / "out"), "report_to": report_to or "none"}
    run = config | {"trainer": trainer, "checkpoint": checkpoint and str(checkpoint)}
    (scratch / "run.json").write_text(json.dumps(run))
    if processes == 1:
        return _run(scratch)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    result = subprocess.run([*command, "-m", "temper.trl", str(scratch)], env=os.environ, check=False)
    if result.returncode:
        raise SystemExit(f"dpo: torchrun ended with status {result.returncode} (its output is above)")
    log: Log = json.loads((scratch / "log.json").read_text())
    return log


def rewards(log: Log) -> dict[str, float]:
    """Mean margin and accuracy of the implicit rewards over the last tenth of the steps (Rafailov et al. 2023, section 4)."""
    steps = [entry for entry in log if CURVES[0] in entry]
    tail = steps[-max(1, len(steps) // 10) :]
    names = zip(("reward_margin", "reward_accuracy"), CURVES, strict=True)
    return {name: sum(entry[key] for entry in tail) / len(tail) for name, key in names}


def _run(scratch: Path) -> Log:
    """The run that `scratch`/run.json describes; the first process leaves the adapter and the log there."""
    run = json.loads((scratch / "run.json").read_text())
    trainer = _trainer(run)
    training.quiet_callbacks(trainer)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=run["checkpoint"])
    seconds = time.monotonic() - started
    trainer.save_model()
    log: Log = trainer.state.log_history
    if trainer.is_world_process_zero():
        (scratch / "log.json").write_text(json.dumps(log))
        _measure(trainer, seconds, resumed=bool(run["checkpoint"]))
    return log


def _trainer(run: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(**run["trainer"])
    tokenizer = AutoTokenizer.from_pretrained(run["model"])
    base_model.require_chat_template(tokenizer, run["model"])
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(run["model"], dtype=dtype, attn_implementation=run["attention"])
    # The Trainer seeds too late: the adapter is drawn while it is being made.
    set_seed(arguments.seed)
    return DPOTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs(Path(run["preferences"]))),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **run["lora"]),
    )


def _measure(trainer: Any, seconds: float, resumed: bool) -> None:
    """Tokens that were trained on, both answers with their prompts; a resumed run has no rate, since it did a part."""
    rows = trainer.train_dataset
    lengths = [
        len(prompt) + len(answer)
        for kind in ("chosen_ids", "rejected_ids")
        for prompt, answer in zip(rows["prompt_ids"], rows[kind], strict=True)
    ]
    if cut := sum(length > trainer.args.max_length for length in lengths):
        print(
            f"dpo: {cut} of {len(lengths)} answers are cut at dpo.max_length ({trainer.args.max_length} tokens)",
            flush=True,
        )
    tokens = sum(lengths) * trainer.state.epoch
    stage.measured(tokens=round(tokens))
    if not resumed:
        stage.measured(tokens_per_second=round(tokens / seconds, 1))


if __name__ == "__main__":
    training.prepare()
    _run(Path(sys.argv[1]))
