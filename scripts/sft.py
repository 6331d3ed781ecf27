"""Supervised fine-tuning: Axolotl trains an adapter on the answers, which is merged into the base.

Reads   models/base, data/contamination/{train,validation}.jsonl
Writes  models/sft (merged, with axolotl.yaml), models/sft-adapter, reports/sft.json, reports/plots/sft.csv
"""

import json
from dataclasses import dataclass
from pathlib import Path

from temper import adapters, axolotl, checkpoints, curves, metrics, params, stage, tracking, training

BASE, OUT, ADAPTER = Path("models/base"), Path("models/sft"), Path("models/sft-adapter")
INPUTS = (BASE, Path("data/contamination/train.jsonl"), Path("data/contamination/validation.jsonl"))


@dataclass
class Lora:
    rank: int
    alpha: int
    dropout: float
    targets: list[str]


@dataclass
class Sft:
    lora: Lora
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    sequence_length: int
    packing: bool
    weight_decay: float
    evals: int
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    deepspeed: str | None
    seed: int


def main() -> None:
    cfg = params.load("sft", Sft)
    processes = int(params.runtime()["processes"])
    require(cfg, INPUTS)

    config = axolotl.render(cfg, processes)
    save_settings(cfg, config)
    training.prepare()
    axolotl.check(config, cfg.hardware)

    with checkpoints.scratch("sft", cfg, INPUTS) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = axolotl.train(config, scratch, resumed, tracking.trackers("sft"), processes)
        adapters.keep(scratch / "out", ADAPTER)
    adapters.merge(BASE, ADAPTER, OUT)

    curves.write("reports/plots/sft.csv", log)
    metrics.write("reports/sft.json", curves.summary(log))


def require(cfg: Sft, inputs: tuple[Path, ...]) -> None:
    """Refuse what would only fail after minutes of imports."""
    if cfg.hardware != "cpu":
        training.require_gpu(cfg.hardware)
    for file in inputs[1:]:
        if not file.stat().st_size:
            raise SystemExit(f"{file}: no rows to train on: see data/rejected/ for where they went")


def save_settings(cfg: Sft, config: axolotl.Config) -> None:
    """The rendered configuration beside the weights, so that anyone can run Axolotl by hand with it."""
    axolotl.write(config, OUT / "axolotl.yaml")
    if cfg.deepspeed:
        (OUT / f"{cfg.deepspeed}.json").write_text(json.dumps(axolotl.deepspeed(cfg.deepspeed), indent=2) + "\n")


if __name__ == "__main__":
    stage.run(main, "sft")
