"""Train a small guard for requests on labelled prompts, and measure it and the list of phrases on prompts that it has not seen.

Reads   data/probes.jsonl
Writes  models/guard (weights.npy, guard.json), data/guard.jsonl (each prompt's score and verdicts), reports/guard.json
"""

from dataclasses import dataclass, replace
from pathlib import Path

from temper import guard, guard_model, guard_training, intervals, metrics, offline_guard, params, records, stage

PROBES, OUT = Path("data/probes.jsonl"), Path("models/guard")


@dataclass
class Guard:
    strength: float
    """Inverse of the regularization (scikit-learn's C)."""
    false_positives: float
    """Share of held-out benign prompts of the kinds that it is trained on that may be blocked: it sets the threshold."""
    confidence: float
    seed: int
    lexical: guard.Guard
    """The list of phrases that is measured beside."""
    asked: guard.Guard | None
    """A guard with an endpoint that is measured beside; null for none."""
    asked_prompts: int
    """Prompts that the endpoint is asked about, evenly over sets."""


def main() -> None:
    cfg = params.load("guard", Guard)
    rows = guard_training.labelled(records.read(PROBES))
    prompts = guard_training.Prompts(rows, cfg.strength, cfg.seed)
    # Benign requests in service are of the kinds that it was trained on, attacks are not.
    unseen = prompts.unseen()
    scores = unseen | prompts.crossed()
    training = [row for row in rows if row["trains_guard"]]
    limit = guard_training.threshold(scores, training, cfg.false_positives)

    model = replace(prompts.trained(prompts.training), threshold=limit)
    offline_guard.write(OUT, model, {"prompts": len(training), "sets": sorted({row["set"] for row in training})})

    apart = guard_training.thresholds(scores, rows, cfg.false_positives, lambda row: guard_training.fold(row, cfg.seed))
    by_set = guard_training.thresholds(scores, rows, cfg.false_positives, lambda row: str(row["set"]))
    lexical = guard.Lexical(cfg.lexical)
    blocked = {
        "offline": {id: score >= apart.get(id, limit) for id, score in scores.items()},
        "lexical": {row["id"]: lexical.find(row["text"]) is not None for row in rows},
    }
    blocked["both"] = {id: blocked["offline"][id] or blocked["lexical"][id] for id in scores}
    values: dict[str, float] = {"threshold": limit, "n": len(rows), "trained_on": len(training)}
    for name, found in blocked.items():
        values |= guard_training.measured(name, found, rows, cfg.confidence)
    strange = [unseen[id] >= own for id, own in by_set.items()]
    values |= intervals.rate("offline_unseen_false_positives", strange, cfg.confidence)
    if cfg.asked:
        values |= guard_model.measured(cfg.asked, rows, cfg.asked_prompts, cfg.confidence, cfg.seed)
    values |= {f"n_{name}": sum(row["set"] == name for row in rows) for name in {row["set"] for row in rows}}

    shown = ("id", "set", "role")
    records.write(
        "data/guard.jsonl",
        (
            {key: row[key] for key in shown}
            | {"score": round(scores[row["id"]], 6)}
            | {name: found[row["id"]] for name, found in blocked.items()}
            for row in rows
        ),
    )
    metrics.write("reports/guard.json", values)


if __name__ == "__main__":
    stage.run(main, "guard")
