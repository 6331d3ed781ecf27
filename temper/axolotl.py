"""Axolotl: our `sft` section in, its native configuration out, and a training run from it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from temper import launcher, records, sharding, training

Config = dict[str, Any]
Kinds = dict[str, tuple[str, ...]]
"""By split, the kinds of its rows: `chat`, `text`."""

LORA = ("lora", "qlora", "dora", "rslora", "lora-plus")
WHOLE = ("full", "hft")
SOFT = ("prefix", "prompt")  # virtual tokens, which nothing merges into weights
PLUGIN = "temper.axolotl_plugin.Plugin"
NF4: Config = {
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}  # how qlora holds its base, in bitsandbytes' words
# bf16 on CPU is autocast over bf16 weights with the adapter in float32. fp8 pays off compiled only.
BF16: Config = {"bf16": True, "fp16": False, "tf32": False}
PRECISIONS: dict[str, Config] = {
    "fp32": BF16 | {"bf16": False},
    "bf16": BF16,
    "fp8": BF16 | {"fp8": True, "torch_compile": True},
}
# Those of transformers that need no arguments of their own, and Axolotl's.
SCHEDULES = (
    *("cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    *("rex", "one_cycle"),
)
DATA = {"datasets": "train", "test_datasets": "validation"}
# How a chat becomes tokens and labels: loss on what the assistant says, its end of turn included. Audit checks it by these too.
TEMPLATE = "tokenizer_default"
CHATS: Config = {
    "type": "chat_template",
    "field_messages": "messages",
    "roles_to_train": ["assistant"],
    "train_on_eos": "turn",
}
# Raw text: loss on all of it, in stretches of the sequence length.
TEXTS: Config = {"type": "completion", "field": "text"}
FORMS = {"chat": CHATS, "text": TEXTS}
COLUMNS = {CHATS["type"]: "messages", TEXTS["type"]: "text"}
CHATS_ALONE: Kinds = {"train": ("chat",), "validation": ("chat",)}
# Triton code for LoRA, ported from Unsloth's. Axolotl turns it on by itself where it finds a GPU.
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
# What each hardware preset has, in the terms of Axolotl's schema: it validates configurations for machines that are not this one.
CAPABILITIES = {
    "cpu": {"bf16": True, "fp8": False, "tf32": False, "n_gpu": 0, "compute_capability": None},
    "gpu1": {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_89"},
    "gpu8": {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 8, "compute_capability": "sm_90"},
}


def render(cfg: Any, processes: int, policy: str = "base", kinds: Kinds = CHATS_ALONE) -> Config:
    """The complete configuration for section `sft`, with paths relative to the repository and nothing of this machine."""
    require(cfg)
    rendered = {
        "base_model": f"models/{policy}",
        **datasets(kinds),
        "chat_template": TEMPLATE,
        "sequence_len": cfg.sequence_length,
        "excess_length_strategy": "raise",
        "sample_packing": cfg.packing,
        "eval_sample_packing": False,
        "micro_batch_size": cfg.micro_batch,
        "gradient_accumulation_steps": training.accumulation(cfg.global_batch, cfg.micro_batch, processes, "sft"),
        "num_epochs": cfg.epochs,
        "optimizer": cfg.optimizer,
        "lr_scheduler": cfg.schedule,
        "learning_rate": cfg.learning_rate,
        "warmup_ratio": cfg.warmup_ratio,
        "weight_decay": cfg.weight_decay,
        "logging_steps": 1,
        # Axolotl switches this on by itself for some combinations of the above.
        "dataloader_drop_last": False,
        "attn_implementation": cfg.attention,
        "seed": cfg.seed,
        **checkpoints(cfg),
        **PRECISIONS[cfg.precision],
        **method(cfg),
    }
    if cfg.max_steps is not None:
        rendered["max_steps"] = cfg.max_steps
    return rendered | end_of_turn(cfg.end_of_turn) | machine(cfg, processes)


def require(cfg: Any) -> None:
    """Exit with the remedy for settings that have no meaning, or none together: most would fail only after minutes."""
    for key, found, known in (
        ("sft.method", cfg.method, (*LORA, *WHOLE, *SOFT)),
        ("sft.schedule", cfg.schedule, SCHEDULES),
        ("hardware.precision", cfg.precision, PRECISIONS),
    ):
        if found not in known:
            raise SystemExit(f"{key} is '{found}', expected {', '.join(known)}: correct it in conf/")
    sharding.check(cfg.deepspeed, cfg.fsdp)
    for is_wrong, message in (*_on_cpu(cfg), *_together(cfg)):
        if is_wrong:
            raise SystemExit(message)


def _on_cpu(cfg: Any) -> Iterator[tuple[bool, str]]:
    """What only a GPU can do."""
    if cfg.hardware == "cpu":
        yield cfg.method == "qlora", "sft.method=qlora quantizes in CUDA code: choose hardware=gpu1 or more"
        yield "8bit" in cfg.optimizer, f"sft.optimizer={cfg.optimizer} is CUDA code: choose adamw_torch"
        yield cfg.offload_activations, "sft.offload_activations moves them to the CPU, where they are: set it to false"
        yield bool(cfg.kernels), "sft.kernels is Triton code for GPUs: set it to null"


def _together(cfg: Any) -> Iterator[tuple[bool, str]]:
    """What excludes one another."""
    name, fp8 = f"sft.method={cfg.method}", cfg.precision == "fp8"
    yield cfg.packing and cfg.method in SOFT, f"{name} puts its tokens before one row: set sft.packing=false"
    # What is frozen has no gradient; an optimizer over pieces of all weights takes that for 0 and goes on by its momentum.
    sharded = cfg.method == "hft" and bool(cfg.deepspeed or cfg.fsdp)
    yield sharded, f"{name} cannot freeze what {cfg.deepspeed or cfg.fsdp} shards: set deepspeed and fsdp to null"
    yield bool(cfg.kernels) and cfg.method not in LORA, f"sft.kernels are of LoRA, and {name} has none: set it to null"
    gathered = bool(cfg.kernels) and sharding.ZERO.get(cfg.deepspeed) == 3
    yield (
        gathered,
        f"sft.kernels read weights that {cfg.deepspeed} has in pieces: set it to null, or deepspeed to zero2",
    )
    yield fp8 and cfg.method not in WHOLE, f"sft.precision=fp8 is for all weights: choose sft=full-fp8, not {name}"
    yield fp8 and bool(cfg.deepspeed), f"sft.precision=fp8 excludes {cfg.deepspeed}: choose hardware=gpu8-fsdp2"


def datasets(kinds: Kinds) -> Config:
    """What is read, a part for each kind of rows in a split."""
    return {
        key: [
            {"path": f"data/audit/{split}.jsonl", "ds_type": "json", "split": "train", **FORMS[kind]}
            for kind in kinds[split]
        ]
        for key, split in DATA.items()
    }


def checkpoints(cfg: Any) -> Config:
    """When to evaluate and save, and which checkpoint to keep.

    The best one can be kept only if it was saved, so it is saved whenever it is evaluated.
    """
    best = cfg.keep_best or cfg.patience is not None
    # Shares of all steps, whose number packing decides. 1.0 would mean every step, and the last step has both anyway.
    evals, saves = (min(1 / times, 0.9999) for times in (cfg.evals, cfg.evals if best else cfg.saves))
    steps = {"eval_steps": evals, "save_steps": saves, "save_total_limit": 2, "load_best_model_at_end": best}
    return steps | ({"early_stopping_patience": cfg.patience} if cfg.patience is not None else {})


def method(cfg: Any) -> Config:
    """What is trained."""
    if cfg.method in SOFT:
        return {"adapter": cfg.method, "virtual_tokens": cfg.virtual_tokens}
    if cfg.method in WHOLE:
        return {"half_fine_tuning": True} if cfg.method == "hft" else {}
    kinds: dict[str, Config] = {
        "qlora": {"adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": NF4},
        "dora": {"peft_use_dora": True},
        "rslora": {"peft_use_rslora": True},
        "lora-plus": {"loraplus_lr_ratio": cfg.lora_plus_ratio},
    }
    return lora(cfg.lora) | kinds.get(cfg.method, {})


def lora(cfg: Any) -> Config:
    return {
        "adapter": "lora",
        "lora_r": cfg.rank,
        "lora_alpha": cfg.alpha,
        "lora_dropout": cfg.dropout,
        "lora_target_modules": sorted(cfg.targets),
    }


def end_of_turn(token: str | None) -> Config:
    """Where a model ends its turns with another token than its tokenizer's EOS: without it that token is masked."""
    return {"eot_tokens": [token]} if token else {}


def machine(cfg: Any, processes: int) -> Config:
    """What only a CPU, only GPUs or only several of them need."""
    keys: Config = {"plugins": [PLUGIN], **recomputation(cfg), **kernels(cfg)}
    if cfg.deepspeed:
        keys["deepspeed"] = f"models/sft/{cfg.deepspeed}.json"
    if cfg.fsdp:
        quantized = cfg.method == "qlora"
        keys |= sharding.fsdp2(cfg.fsdp, checkpointing=cfg.gradient_checkpointing, quantized=quantized)
    if cfg.method == "hft" and processes > 1:
        keys["ddp_find_unused_parameters"] = True
    if cfg.hardware == "cpu":
        # Padding to whole sequences, for the sake of a GPU's memory, makes an evaluation of short rows four times as long.
        keys["pad_to_sequence_len"] = False
        if cfg.packing and cfg.attention == "sdpa":
            keys |= {"attend_within_documents": True, "multipack_real_batches": False}
    return keys


def kernels(cfg: Any) -> Config:
    """Whether LoRA runs by Triton: as asked, and not where it cannot; nothing leaves it to Axolotl."""
    # The kernels read weights without asking, and ZeRO-3 hands them out to who asks.
    if cfg.hardware == "cpu" or sharding.ZERO.get(cfg.deepspeed) == 3:
        return dict.fromkeys(KERNELS, False)
    return {} if cfg.kernels is None else dict.fromkeys(KERNELS, cfg.kernels)


def recomputation(cfg: Any) -> Config:
    """Gradient checkpointing, which FSDP2 does by itself and which the cached keys of a prefix exclude."""
    if cfg.fsdp:
        return {}
    keys: Config = {"gradient_checkpointing": cfg.gradient_checkpointing and cfg.method != "prefix"}
    if keys["gradient_checkpointing"] and cfg.method == "hft":
        # Reentrant checkpoints hide from DDP which weights a step did not use.
        keys["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return keys | ({"activation_offloading": True} if cfg.offload_activations else {})


def check(config: Config, hardware: str) -> None:
    """Hold `config` against Axolotl's known keys, then against its schema for a machine like `hardware`."""
    import torch
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.config import merge_input_args
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from axolotl.utils.schemas.fsdp import FSDPConfig
    from pydantic import ValidationError
    from transformers.training_args import OptimizerNames

    prepared = DictDefault(config)
    prepare_plugins(prepared)
    # Axolotl drops a key that it does not know without a word.
    parts = [part for key in DATA for part in config[key]]
    unknown = config.keys() - merge_input_args()[1].model_fields.keys()
    unknown |= config.get("fsdp_config", {}).keys() - FSDPConfig.model_fields.keys()
    unknown |= {key for part in parts for key in part.keys() - SFTDataset.model_fields.keys()}
    if unknown:
        raise SystemExit(
            f"axolotl: it has no {', '.join(sorted(unknown))}: correct temper/axolotl.py for the locked version"
        )
    optimizers = [name.value for names in (OptimizerNames, CustomSupportedOptimizers) for name in names]
    if config["optimizer"] not in optimizers:
        raise SystemExit(f"sft.optimizer is '{config['optimizer']}', expected {', '.join(optimizers)}")
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
    for name in ("prepared", "datasets", "extensions"):
        # Preprocessing that was cut short leaves a folder that looks whole, and a compilation of DeepSpeed's a lock that the
        # next one waits for; both take seconds to do again.
        shutil.rmtree(scratch / name, ignore_errors=True)
    os.environ |= {"HF_DATASETS_CACHE": str(scratch / "datasets"), "TORCH_EXTENSIONS_DIR": str(scratch / "extensions")}
    run = config | {
        **{key: [part | {"path": _rows(part, scratch)} for part in config[key]] for key in DATA},
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
    launcher.run(["-m", "temper.axolotl_plugin", str(scratch / "axolotl.yaml"), str(scratch / "log.json")], "sft")
    log: list[dict[str, Any]] = json.loads((scratch / "log.json").read_text())
    return log


def kinds(path: Path) -> tuple[str, ...]:
    """Which kinds of rows a file of audited rows has, by how they are trained on: `chat`, `text`."""
    found = {_kind(row) for row in records.read(path)}
    return tuple(kind for kind in FORMS if kind in found)


def _kind(row: records.Row) -> str:
    return "text" if "text" in row else "chat"


def _rows(part: Config, scratch: Path) -> str:
    """A file of the rows of one kind, their messages or text alone.

    Arrow wants one type a column, and tools and reference calls have as many as there are rows.
    """
    column = COLUMNS[part["type"]]
    target = scratch / f"{column}-{Path(part['path']).name}"
    rows = (row for row in records.read(part["path"]) if FORMS[_kind(row)]["type"] == part["type"])
    records.write(target, ({column: row[column]} for row in rows))
    return str(target)
