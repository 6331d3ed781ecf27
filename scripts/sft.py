"""Supervised fine-tuning: Axolotl trains on answers, and on raw text, what sft.method says; an adapter is merged into its base.

Reads   models/<policy>, data/audit/{train,validation}.jsonl
Writes  models/sft (merged, with axolotl.yaml), models/sft-adapter, reports/training/sft.json, reports/plots/sft.csv

Where all weights are trained models/sft-adapter is empty; a prefix or prompt, which nothing can merge, is all that models/sft has.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from temper import (
    adapters,
    axolotl,
    base_model,
    checkpoints,
    curves,
    launcher,
    metrics,
    params,
    sharding,
    stage,
    tracking,
    training,
)

OUT, ADAPTER = Path("models/sft"), Path("models/sft-adapter")
ROWS = {split: Path(f"data/audit/{split}.jsonl") for split in ("train", "validation")}


@dataclass
class Sft:
    method: str
    lora: adapters.Lora
    lora_plus_ratio: float
    """Learning rate of B over that of A."""
    virtual_tokens: int
    """Of a prefix or prompt."""
    learning_rate: float
    optimizer: str
    schedule: str
    warmup_ratio: float
    weight_decay: float
    epochs: int
    max_steps: int | None
    global_batch: int
    sequence_length: int
    packing: bool
    end_of_turn: str | None
    """The token that ends a turn, where it is not the tokenizer's EOS."""
    evals: int
    saves: int
    keep_best: bool
    """Whether the checkpoint of the lowest validation loss is kept, not the last one."""
    patience: int | None
    """Evaluations without a lower validation loss after which the run ends."""
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    gradient_checkpointing: bool
    kernels: bool | None
    """Triton code for LoRA; null leaves it to Axolotl, which takes it wherever there is a GPU."""
    offload_activations: bool
    deepspeed: str | None
    fsdp: str | None
    seed: int


def main() -> None:
    cfg, policy = params.load("sft", Sft), sys.argv[1]
    processes = launcher.processes()
    require(cfg, Path("models", policy))

    config = axolotl.render(cfg, processes, policy, {split: axolotl.kinds(rows) for split, rows in ROWS.items()})
    save_settings(cfg, config)
    training.prepare()
    axolotl.check(config, cfg.hardware)

    inputs, threads = [*checkpoints.deps("sft"), OUT / "axolotl.yaml"], params.runtime()["threads"]
    with checkpoints.scratch("sft", cfg, inputs, threads=threads, processes=processes) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = axolotl.train(config, scratch, resumed, tracking.trackers("sft"), processes)
        found = curves.summary(log) | best(config, log) | save(cfg.method, scratch / "out", Path("models", policy))
        curves.write("reports/plots/sft.csv", log)
        metrics.write("reports/training/sft.json", found)


def require(cfg: Sft, start: Path) -> None:
    """Refuse what would only fail after minutes of imports."""
    training.require(cfg)
    for file in ROWS.values():
        if not file.stat().st_size:
            raise SystemExit(f"{file}: no rows to train on: see data/rejected/ for where they went")
    training.require_context("sft.sequence_length", cfg.sequence_length, start)
    followers = [key for key, models in params.value("recipe").items() if "sft" in models]
    if cfg.method in axolotl.SOFT and followers:
        raise SystemExit(
            f"sft.method={cfg.method} leaves no weights of its own, which recipe.{followers[0]} wants: choose recipe=adapter"
        )


def save_settings(cfg: Sft, config: axolotl.Config) -> None:
    """The rendered configuration beside the weights, so that anyone can run Axolotl by hand with it."""
    axolotl.write(config, OUT / "axolotl.yaml")
    if cfg.deepspeed:
        (OUT / f"{cfg.deepspeed}.json").write_text(json.dumps(sharding.zero(cfg.deepspeed), indent=2) + "\n")


def save(method: str, trained: Path, start: Path) -> dict[str, float]:
    """The adapter and the model that came out, and how far the merged one is from the one that was trained."""
    if method in axolotl.WHOLE:
        base_model.finish(trained, start, OUT)
        ADAPTER.mkdir(parents=True)
        return {}
    adapters.keep(trained, ADAPTER)
    if method in axolotl.SOFT:
        shutil.copytree(ADAPTER, OUT, dirs_exist_ok=True)
        print(
            f"sft: {OUT} holds a {method} for PEFT: vLLM takes none, so no stage evaluates or releases it", flush=True
        )
        return {}
    return adapters.merge(start, ADAPTER, OUT, ROWS["train"], axolotl.NF4 if method == "qlora" else None)


def best(config: axolotl.Config, log: curves.Log) -> dict[str, float]:
    """The validation loss of what is kept, where that is not the last checkpoint."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry and entry["step"]]
    return {"eval_loss": min(losses)} if losses and config["load_best_model_at_end"] else {}


if __name__ == "__main__":
    stage.run(main, "training/sft")
