"""Split rows into train, validation, preferences and test: seeded, each category in proportion, no cluster in two of them.

Reads data/pii.jsonl.
Writes data/split/{train,validation,preferences,test}.jsonl, data/rejected/split.jsonl, reports/split.json.
"""

from dataclasses import dataclass

from temper import metrics, mismatch, params, records, splits, stage
from temper.records import Row

NAMES = ("test", "validation", "preferences", "train")


@dataclass
class Split:
    test: float
    validation: float
    preferences: float
    """Shares of each category, in [0, 1); the rest trains."""
    seed: int


def main() -> None:
    settings = params.load("split", Split)
    shares = {name: getattr(settings, name) for name in NAMES if name != "train"}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise SystemExit(
            f"split: shares {shares} leave nothing to train on: they must be at least 0 and add up to below 1"
        )
    parts = splits.parts(list(records.read("data/pii.jsonl")), shares, settings.seed)
    parts["test"], rejected = genuine(parts["test"])
    if empty := [name for name in NAMES if not parts[name] and shares.get(name, 1)]:
        raise SystemExit(f"split: no rows for {', '.join(empty)}: add data, or raise ingest.limit or the split's share")
    for name in NAMES:
        records.write(f"data/split/{name}.jsonl", parts[name])
    records.write("data/rejected/split.jsonl", rejected)
    metrics.write("reports/split.json", summary(parts, rejected))


def genuine(test: list[Row]) -> tuple[list[Row], list[Row]]:
    """(kept, rejected): a made row is no fair test, and may not train either, since its request is in the test."""
    made = [row | {"reason": "made_row_in_test"} for row in test if row["category"] == mismatch.CATEGORY]
    return [row for row in test if row["category"] != mismatch.CATEGORY], made


def summary(parts: dict[str, list[Row]], rejected: list[Row]) -> dict[str, float]:
    """Rows and share of `null` answers of each split."""
    kept = sum(map(len, parts.values()))
    counts: dict[str, float] = {"seen": kept + len(rejected), "kept": kept, "rejected_made_row_in_test": len(rejected)}
    for name, rows in parts.items():
        counts[f"kept_{name}"] = len(rows)
        counts[f"null_share_{name}"] = sum(row["gold"] is None for row in rows) / max(len(rows), 1)
    return counts


if __name__ == "__main__":
    stage.run(main, "split")
