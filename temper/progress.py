"""How long work shows itself: bars on a terminal, one line a minute elsewhere, and vendors without their chatter."""

import logging
import os
import sys
import time
import warnings

INTERVAL = 60.0  # seconds between two lines


def quiet() -> None:
    """Silence what vendors print at import and, off a terminal, every bar. Call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Bitsandbytes looks for CPU kernels on the Hub, which nothing here uses, and warns that it is offline.
    warnings.filterwarnings("ignore", message="Skipping publisher trust check")
    if not on_terminal():
        os.environ["TQDM_DISABLE"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def on_terminal() -> bool:
    return sys.stderr.isatty()


class Clock:
    """Says when the next line is due, so that a log stays readable however fast the steps are."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self.started = self.last = time.monotonic()

    def line(self, step: int, last_step: int, first_step: int = 0) -> str | None:
        """`step N/M, R s a step, ETA …` when a line is due, else None; `first_step` is where this process began."""
        now = time.monotonic()
        if (now - self.last < self.interval and step < last_step) or step <= first_step:
            return None
        self.last = now
        pace = (now - self.started) / (step - first_step)
        return f"step {step}/{last_step}, {pace:.2f} s a step, {pace * (last_step - step) / 60:.1f} min left"
