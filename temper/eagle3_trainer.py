"""speculators' trainer in a process of its own: what `speculators train` runs, and every figure that it logs on a line of a file.

python -m temper.eagle3_trainer RUN     RUN is the JSON that temper/draft.py writes

On a CPU the trainer's look-ups of an accelerator get an answer; on a GPU nothing of the package is touched.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper import progress, stage


class Lines(logging.Handler):
    """Appends what the package's logger of metrics says to `file`, and prints where the training is once a minute."""

    def __init__(self, file: Path, epochs: int) -> None:
        super().__init__(logging.INFO)
        self.file, self.epochs = file, epochs
        self.said, self.step = time.monotonic(), 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "speculators.metrics" or not isinstance(record.msg, Mapping) or "epoch" not in record.msg:
            return
        with self.file.open("a") as out:
            out.write(json.dumps({"step": getattr(record, "step", 0), **record.msg}) + "\n")
        if not progress.on_terminal() and time.monotonic() - self.said >= progress.INTERVAL:
            self.say(record.msg["epoch"], getattr(record, "step", 0))

    def say(self, epoch: int, step: int) -> None:
        now = time.monotonic()
        pace = (now - self.said) / max(step - self.step, 1)
        print(f"draft: epoch {epoch + 1}/{self.epochs}, step {step}, {pace:.2f} s a step", flush=True)
        self.said, self.step = now, step


def stand_in() -> None:
    """Answer for the accelerator that speculators 0.9.0 looks for: the device of its model, its checkpoints and its autocast."""
    import torch
    from speculators.train import checkpointer, cli, trainer

    class Trainer(trainer.Trainer):
        def setup_trainer(self) -> None:
            self.device_type = "cpu"
            super().setup_trainer()

    torch.accelerator.synchronize = lambda *_, **__: None
    trainer.get_local_rank = lambda: torch.device("cpu")
    checkpointer.get_current_device = lambda: "cpu"
    cli.Trainer = Trainer
    # Autocast of a CPU knows 16 bits alone; in float32 there is nothing to cast.
    warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype is not supported")
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")


def main(run: dict[str, Any]) -> None:
    progress.quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from speculators.train.cli import main as train
    from speculators.train.config import TrainConfig

    torch.set_num_threads(run["threads"])
    if run["on_cpu"]:
        stand_in()
    config = TrainConfig.resolve(run["arguments"])
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger().addHandler(Lines(Path(run["metrics"]), config.trainer.epochs))
    train(config)


if __name__ == "__main__":
    stage.bind_to_parent()
    main(json.loads(Path(sys.argv[1]).read_text()))
