"""Sample each group of sources up or down into what trains, and write every split as the one file that its readers take.

Reads data/contamination.
Writes data/mix/{train,validation,preferences,rl,test,golden}.jsonl, data/rejected/mix.jsonl, reports/mix.json.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from temper import metrics, mixing, params, records, shards, stage
from temper.records import Row

SOURCE = "data/contamination"
TRAIN = "train"
OTHERS = ("validation", "preferences", "rl", "test", "golden")
EVERYTHING = {"all": mixing.Group(["*"], None)}


@dataclass
class Mix:
    groups: dict[str, mixing.Group] | None
    temperature: float
    """At least 1: 1 leaves the groups' sizes as they are, more evens them out."""
    rows: int | None
    """Training rows in all, copies counted; null for as many as there are."""
    seed: int


def main() -> None:
    settings = params.load("mix", Mix)
    if settings.temperature < 1:
        raise SystemExit(f"mix.temperature is {settings.temperature}: choose 1 or more in conf/mix")
    groups = settings.groups or EVERYTHING
    members = [(mixing.group_of(row["source"], groups), row["id"]) for row in split(TRAIN)]
    sizes = Counter(group for group, _ in members)
    weights = {name: group.weight for name, group in groups.items()}
    wanted = mixing.targets({name: sizes[name] for name in groups}, weights, settings.temperature, settings.rows)
    copies = mixing.copies(members, wanted, settings.seed)

    records.write("data/mix/train.jsonl", trained(copies))
    counts = {name: records.write(f"data/mix/{name}.jsonl", split(name)) for name in OTHERS}
    dropped = (row | {"reason": "downsampled"} for row in split(TRAIN) if not copies[row["id"]])
    rejected = records.write("data/rejected/mix.jsonl", dropped)
    metrics.write(
        "reports/mix.json", summary(copies, counts, rejected) | {f"rows_{name}": wanted[name] for name in groups}
    )


def split(name: str) -> Iterator[Row]:
    return (row for row in shards.read(SOURCE) if row["split"] == name)


def trained(copies: dict[str, int]) -> Iterator[Row]:
    """Every row that trains once, then those that train a second time, and so on: copies lie far apart."""
    for turn in range(max(copies.values(), default=0)):
        yield from (row for row in split(TRAIN) if copies[row["id"]] > turn)


def summary(copies: dict[str, int], others: dict[str, int], rejected: int) -> dict[str, int]:
    """Rows, each counted once; `repeated` are the copies beyond the first."""
    kept = sum(count > 0 for count in copies.values())
    return {
        "seen": len(copies) + sum(others.values()),
        "kept": kept + sum(others.values()),
        "rejected_downsampled": rejected,
        "repeated": sum(copies.values()) - kept,
        "kept_train": kept,
        **{f"kept_{name}": count for name, count in others.items()},
    }


if __name__ == "__main__":
    stage.run(main, "mix")
