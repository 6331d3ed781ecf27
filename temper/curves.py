"""Training curves and the numbers that sum them up, from the log of a Hugging Face Trainer."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Log = list[dict[str, Any]]


def write(path: str | Path, log: Log, columns: Iterable[str] = ()) -> None:
    """One row a logged step: step, loss, eval_loss, learning_rate and `columns`; no wall times, so that reruns are equal."""
    names = list(dict.fromkeys(["step", "loss", "eval_loss", "learning_rate", *columns]))
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        kept = {name: _text(entry[name]) for name in names if name in entry}
        rows.setdefault(entry["step"], {}).update(kept)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as out:
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows) if rows[step].keys() != {"step"})


def summary(log: Log) -> dict[str, float]:
    """first_loss, train_loss (mean over the last tenth of the steps), eval_loss (last), steps, and epochs over the rows.

    Steps whose loss is no number, which only health.finite=null lets pass, are counted; among the last tenth they end the run.
    """
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    if not losses:
        raise SystemExit(
            "training: no step was logged: the data gives fewer rows than one global batch; add rows or lower it"
        )
    tail = losses[-math.ceil(len(losses) / 10) :]
    if bad := [step for step, loss in tail if not math.isfinite(loss)]:
        raise SystemExit(
            f"training: the loss is not finite at step {bad[0]} of {losses[-1][0]}, and has not recovered: lower the learning "
            "rate, or use precision fp32"
        )
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    train_loss = sum(loss for _, loss in tail) / len(tail)
    values = {"first_loss": finite[0], "train_loss": train_loss, "steps": losses[-1][0]}
    values |= {"steps_not_finite": len(losses) - len(finite)} if len(finite) < len(losses) else {}
    evals = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    values |= {"eval_loss": evals[-1]} if evals else {}
    return values | ({"epochs": log[-1]["epoch"]} if "epoch" in log[-1] else {})


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
