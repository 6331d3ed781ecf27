"""Deal rows to train, validation, preferences, rl, test and golden: seeded, stratified by category, no cluster in two.

Reads data/pii.
Writes data/split (each row with its `split`), data/rejected/split.jsonl, reports/split.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from temper import executors, metrics, mismatch, params, shards, splits, stage
from temper.records import Row

DEALT = ("test", "validation", "preferences", "rl")
NAMES = (*DEALT, splits.GOLDEN, splits.REST)
HELD_OUT = ("test", splits.GOLDEN)
KEPT, NULL = "kept_", "null_"  # rows of a split, and those of them whose gold call is null, as they are counted


@dataclass
class Split:
    test: float
    validation: float
    preferences: float
    rl: float
    """Shares of each category, in [0, 1); the rest trains."""
    golden: float
    """Share of the clusters, in [0, 1)."""
    seed: int


def main() -> None:
    settings = params.load("split", Split)
    shares = {name: getattr(settings, name) for name in DEALT}
    taken = sum(shares.values()) + settings.golden
    if min(*shares.values(), settings.golden) < 0 or taken >= 1:
        raise SystemExit(
            f"split: shares {shares | {'golden': settings.golden}} leave nothing to train on: they must be at least 0 and "
            "add up to below 1"
        )
    dealt = splits.deal(map(splits.member, shards.read("data/pii")), shares, settings.golden, settings.seed)
    refuse_empty(dealt, shares)
    counts = shards.apply("split", partial(labelled, dealt), "data/pii", settings)
    metrics.write("reports/split.json", sizes(shards.balanced(counts)))


def labelled(dealt: dict[str, str], rows: Iterator[Row]) -> Iterator[Row]:
    """Each row with its split. A made row is no fair test, and may not train either, since its request is in the test."""
    for row in rows:
        split = dealt[row["cluster"]]
        if split in HELD_OUT and row["category"] == mismatch.CATEGORY:
            yield row | {"split": split, "reason": "made_row_in_test"}
        else:
            null = [f"{NULL}{split}"] if "gold" in row and row["gold"] is None else []
            yield row | {"split": split, "counts": [f"{KEPT}{split}", *null]}


def refuse_empty(dealt: dict[str, str], shares: dict[str, float]) -> None:
    found = set(dealt.values())
    if empty := [name for name in (*DEALT, splits.REST) if name not in found and shares.get(name, 1)]:
        raise SystemExit(f"split: no rows for {', '.join(empty)}: add data, or raise ingest.limit or the split's share")


def sizes(counts: dict[str, int]) -> dict[str, float]:
    """The counts, with the share of nulls in each split instead of their number."""
    kept = {f"{KEPT}{name}": counts.get(f"{KEPT}{name}", 0) for name in NAMES}
    shares = {f"null_share_{name}": counts.get(f"{NULL}{name}", 0) / max(kept[f"{KEPT}{name}"], 1) for name in NAMES}
    return {key: count for key, count in counts.items() if not key.startswith(NULL)} | kept | shares


if __name__ == "__main__":
    stage.run(executors.importable(main), "split")
