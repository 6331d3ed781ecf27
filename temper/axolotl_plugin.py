"""Axolotl's side of a run: the plugin that it loads by name, and the entry point that its processes share."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin

from temper import hardware, stage, training


class Plugin(BasePlugin):
    """Lets Axolotl train on a CPU, which its own set-up refuses, and shows progress."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        # Unfiltered, a loss that is not a number shows in the log instead of as the mean of its neighbours.
        arguments: dict[str, Any] = {"logging_nan_inf_filter": False}
        if cfg.resume_from_checkpoint:
            # The run that is resumed evaluated at its start; once more would add a row to the curve.
            arguments["eval_on_start"] = False
        return arguments | ({} if hardware.found().gpus else {"use_cpu": True})

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        training.quiet_callbacks(trainer)
        return []


def run(config: Path, log: Path) -> list[dict[str, Any]]:
    """Train as `config` says; the first process writes the Trainer's log and says how fast it was."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train
    from transformers import set_seed

    cfg = load_cfg(str(config))
    try:
        data = load_datasets(cfg=cfg)
    except ValueError as error:
        raise SystemExit(
            f"sft: Axolotl refuses the rows: {error}: lower data.max_tokens or raise sft.sequence_length"
        ) from None
    started = time.monotonic()
    # Axolotl seeds the order of rows but not the adapter's first weights.
    set_seed(cfg.seed)
    _, _, trainer = train(cfg=cfg, dataset_meta=data)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        log.write_text(json.dumps(trainer.state.log_history))
        _measure(
            data.train_dataset, trainer.state, time.monotonic() - started, resumed=bool(cfg.resume_from_checkpoint)
        )
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def _measure(rows: Any, state: Any, seconds: float, resumed: bool) -> None:
    """Tokens that were trained on, padding not counted; a resumed run has no rate, since it did a part."""
    tokens = sum(len(ids) for ids in rows["input_ids"]) * state.epoch
    stage.measured(tokens=round(tokens))
    if not resumed:
        stage.measured(tokens_per_second=round(tokens / seconds, 1))


if __name__ == "__main__":
    training.prepare()
    run(Path(sys.argv[1]), Path(sys.argv[2]))
