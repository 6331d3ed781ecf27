"""Axolotl: our `sft` section in, its native configuration out, and a training run from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from temper import records, training

Config = dict[str, Any]
# bf16 on CPU is autocast over bf16 weights with the adapter in float32.
PRECISIONS = {
    "fp32": {"bf16": False, "fp16": False, "tf32": False},
    "bf16": {"bf16": True, "fp16": False, "tf32": False},
}
DATA = ("datasets", "test_datasets")
# Axolotl's fused LoRA kernels are CUDA code.
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
# What each hardware preset has, in the terms of Axolotl's schema: it validates configurations for machines that are not this one.
CAPABILITIES = {
    "cpu": {"bf16": True, "fp8": False, "tf32": False, "n_gpu": 0, "compute_capability": None},
    "gpu1": {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_89"},
    "gpu8": {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 8, "compute_capability": "sm_90"},
}


def render(cfg: Any, processes: int) -> Config:
    """The complete configuration for section `sft`, with paths relative to the repository and nothing of this machine."""
    data = {
        "ds_type": "json",
        "split": "train",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    rendered: Config = {
        "base_model": "models/base",
        "datasets": [{"path": "data/contamination/train.jsonl", **data}],
        "test_datasets": [{"path": "data/contamination/validation.jsonl", **data}],
        "chat_template": "tokenizer_default",
        "sequence_len": cfg.sequence_length,
        "excess_length_strategy": "raise",
        "sample_packing": cfg.packing,
        "eval_sample_packing": False,
        "micro_batch_size": cfg.micro_batch,
        "gradient_accumulation_steps": training.accumulation(cfg.global_batch, cfg.micro_batch, processes, "sft"),
        "num_epochs": cfg.epochs,
        "optimizer": "adamw_torch",
        "lr_scheduler": cfg.schedule,
        "learning_rate": cfg.learning_rate,
        "warmup_ratio": cfg.warmup_ratio,
        "weight_decay": cfg.weight_decay,
        "logging_steps": 1,
        # Shares of all steps, whose number packing decides. 1.0 would mean every step, and the last step has both anyway.
        "eval_steps": min(1 / cfg.evals, 0.9999),
        "save_steps": min(1 / cfg.saves, 0.9999),
        "save_total_limit": 2,
        # Axolotl switches these on by itself for some combinations of the above.
        "load_best_model_at_end": False,
        "dataloader_drop_last": False,
        "attn_implementation": cfg.attention,
        "seed": cfg.seed,
        **PRECISIONS[precision(cfg.precision)],
        **lora(cfg.lora),
    }
    if cfg.max_steps is not None:
        rendered["max_steps"] = cfg.max_steps
    return rendered | hardware_keys(cfg)


def precision(name: str) -> str:
    if name not in PRECISIONS:
        raise SystemExit(
            f"hardware.precision is '{name}', expected {' or '.join(PRECISIONS)}: correct it in conf/hardware"
        )
    return name


def lora(cfg: Any) -> Config:
    return {
        "adapter": "lora",
        "lora_r": cfg.rank,
        "lora_alpha": cfg.alpha,
        "lora_dropout": cfg.dropout,
        "lora_target_modules": sorted(cfg.targets),
    }


def hardware_keys(cfg: Any) -> Config:
    """What only a CPU or only GPUs need."""
    if cfg.hardware == "cpu":
        plugin = {"plugins": ["temper.axolotl_plugin.Plugin"]}
        return plugin | {"gradient_checkpointing": False} | dict.fromkeys(KERNELS, False)
    keys: Config = {"plugins": ["temper.axolotl_plugin.Plugin"], "gradient_checkpointing": True}
    return keys | ({"deepspeed": f"models/sft/{cfg.deepspeed}.json"} if cfg.deepspeed else {})


def deepspeed(name: str) -> Config:
    """DeepSpeed's own configuration for ZeRO stage 1, 2 or 3 (`zero2`); batch shapes come from the trainer."""
    stage = int(name.removeprefix("zero")) if name in ("zero1", "zero2", "zero3") else 0
    if not stage:
        raise SystemExit(
            f"hardware.deepspeed is '{name}', expected null, zero1, zero2 or zero3: correct it in conf/hardware"
        )
    zero: Config = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        # Without it a checkpoint is one shard a process.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    auto = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    return {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}


def check(config: Config, hardware: str) -> None:
    """Hold `config` against Axolotl's known keys, then against its schema for a machine like `hardware`."""
    import torch
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from pydantic import ValidationError

    # Axolotl drops a key that it does not know without a word.
    if unknown := sorted(config.keys() - AxolotlInputConfig.model_fields.keys()):
        raise SystemExit(f"axolotl: it has no {', '.join(unknown)}: correct temper/axolotl.py for the locked version")
    prepared = DictDefault(config)
    prepare_plugins(prepared)
    try:
        validate_config(prepared, CAPABILITIES[hardware], {"torch_version": torch.__version__.partition("+")[0]})
    except (ValidationError, ValueError) as error:
        raise SystemExit(f"axolotl refuses the configuration of sft: {' '.join(str(error).split())[:500]}") from None


def write(config: Config, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(config))  # lists that two keys share become two: no YAML anchors
    path.write_text(yaml.safe_dump(plain, sort_keys=True))


def train(
    config: Config, scratch: Path, checkpoint: Path | None, report_to: list[str], processes: int
) -> list[dict[str, Any]]:
    """Train into `scratch`/out and return the Trainer's log; what belongs to this run alone is added to `config` here."""
    for name in ("prepared", "datasets"):
        # Preprocessing that was cut short leaves a folder that looks whole; it takes seconds to do again.
        shutil.rmtree(scratch / name, ignore_errors=True)
    os.environ["HF_DATASETS_CACHE"] = str(scratch / "datasets")
    run = config | {
        **{key: [part | {"path": _messages(part["path"], scratch)} for part in config[key]] for key in DATA},
        "output_dir": str(scratch / "out"),
        "dataset_prepared_path": str(scratch / "prepared"),
        "use_wandb": "wandb" in report_to,
    }
    if checkpoint:
        run["resume_from_checkpoint"] = str(checkpoint)
    write(run, scratch / "axolotl.yaml")
    if processes == 1:
        from temper import axolotl_plugin

        return axolotl_plugin.run(scratch / "axolotl.yaml", scratch / "log.json")
    return _launch(scratch, processes)


def _messages(path: str, scratch: Path) -> str:
    """The rows' messages alone: Arrow wants one type a column, and tools and reference calls have as many as there are rows."""
    target = scratch / Path(path).name
    records.write(target, ({"messages": row["messages"]} for row in records.read(path)))
    return str(target)


def _launch(scratch: Path, processes: int) -> list[dict[str, Any]]:
    """The same run on several processes, started by torchrun, which ends them all when one fails."""
    module = ["-m", "temper.axolotl_plugin", str(scratch / "axolotl.yaml"), str(scratch / "log.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *module]
    if code := subprocess.run(command, env=os.environ, check=False).returncode:
        raise SystemExit(f"sft: torchrun ended with status {code} (its output is above)")
    return json.loads((scratch / "log.json").read_text())
