"""A clock for any Hugging Face Trainer: what its training loop took and how many tokens it was on, padding not counted."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

CLOCK = "TEMPER_BENCH_CLOCK"  # names the file that the figures go to


class Clock(TrainerCallback):
    """Seconds from the start of the loop to its last step, without what evaluations and saves take between steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        rows = more["train_dataloader"].dataset["input_ids"]
        self.tokens = sum(len(ids) for ids in rows)
        self.seconds, self.mark = 0.0, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.seconds += time.monotonic() - self.mark
        self.mark = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.mark = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.mark = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        figures = {
            "seconds": self.seconds,
            "steps": state.global_step,
            "tokens": self.tokens * state.epoch,
            "tokens_per_second": self.tokens * state.epoch / self.seconds,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
        Path(os.environ[CLOCK]).write_text(json.dumps(figures))
