"""Direct preference optimization: TRL trains an adapter on pairs of answers, which is merged into the SFT model.

Reads   models/sft, data/preferences.jsonl
Writes  models/dpo (merged, with trl.yaml), models/dpo-adapter, reports/dpo.json, reports/plots/dpo.csv
"""

from dataclasses import dataclass
from pathlib import Path

from temper import adapters, checkpoints, curves, metrics, params, stage, tracking, training, trl

BASE, OUT, ADAPTER = Path("models/sft"), Path("models/dpo"), Path("models/dpo-adapter")
PREFERENCES = Path("data/preferences.jsonl")


@dataclass
class Lora:
    rank: int
    alpha: int
    dropout: float
    targets: list[str]


@dataclass
class Dpo:
    beta: float
    """How much leaving the SFT model costs."""
    loss: str
    lora: Lora
    learning_rate: float
    schedule: str
    warmup_ratio: float
    epochs: int
    max_steps: int | None
    global_batch: int
    max_length: int
    """Tokens of prompt and answer; what is longer is cut."""
    saves: int
    hardware: str
    precision: str
    attention: str
    micro_batch: int
    seed: int


def main() -> None:
    cfg = params.load("dpo", Dpo)
    processes = int(params.runtime()["processes"])
    if cfg.hardware != "cpu":
        training.require_gpu(cfg.hardware)
    pairs = trl.pairs(PREFERENCES)

    config = trl.render(cfg, processes)
    trl.write(config, OUT / "trl.yaml")
    training.prepare()
    trl.check(config)

    with checkpoints.scratch("dpo", cfg, (BASE, PREFERENCES)) as scratch:
        resumed = checkpoints.last(scratch / "out")
        log = trl.train(config, scratch, resumed, tracking.trackers("dpo"), processes)
        adapters.keep(scratch / "out", ADAPTER)
    adapters.merge(BASE, ADAPTER, OUT)

    curves.write("reports/plots/dpo.csv", log, trl.CURVES)
    metrics.write("reports/dpo.json", curves.summary(log) | trl.rewards(log) | {"pairs": len(pairs)})


if __name__ == "__main__":
    stage.run(main, "dpo")
