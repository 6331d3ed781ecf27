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
EVERYTHING = {"all": mixing.Group(["*"], None, 1)}


@dataclass
class Mix:
    groups: dict[str, mixing.Group] | None
    temperature: float
    """At least 1: 1 leaves the groups' sizes as they are, more evens them out; of groups without weights."""
    rows: int | None
    """Training rows in all, copies counted, 1 or more; null for as many as there are."""
    seed: int


def main() -> None:
    settings = checked(params.load("mix", Mix))
    groups = settings.groups or EVERYTHING
    members, seen = [], 0
    for row in shards.read(SOURCE):
        seen += 1
        if row["split"] == TRAIN:
            members.append((mixing.group_of(row["source"], groups), row["id"]))
    sizes = Counter(group for group, _ in members)
    weights = {name: group.weight for name, group in groups.items()}
    counted = {name: sizes[name] * group.copies for name, group in groups.items()}
    wanted = mixing.targets(counted, weights, settings.temperature, settings.rows)
    copies = mixing.copies(members, wanted, settings.seed)

    written: Counter[str] = Counter()
    records.write("data/mix/train.jsonl", (row for row in trained(copies) if not written.update([row["id"]])))
    counts = {name: records.write(f"data/mix/{name}.jsonl", split(name)) for name in OTHERS}
    dropped = (row | {"reason": "downsampled"} for row in split(TRAIN) if not copies[row["id"]])
    rejected = records.write("data/rejected/mix.jsonl", dropped)
    found = summary(seen, written, counts, rejected)
    metrics.write("reports/mix.json", shards.balanced(found) | {f"rows_{name}": wanted[name] for name in groups})


def checked(settings: Mix) -> Mix:
    """The settings, if their values make sense; exits naming the one that does not."""
    if settings.temperature < 1:
        raise SystemExit(f"mix.temperature is {settings.temperature}: choose 1 or more in conf/mix")
    weights = [group.weight for group in (settings.groups or EVERYTHING).values()]
    if settings.temperature != 1 and (not settings.groups or any(weight is not None for weight in weights)):
        raise SystemExit(
            f"mix.temperature is {settings.temperature}, which only groups without weights take: set it to 1, or name such "
            f"groups in conf/mix"
        )
    if few := [name for name, group in (settings.groups or EVERYTHING).items() if group.copies < 1]:
        raise SystemExit(f"mix.groups.{few[0]}.copies: choose 1 or more in conf/mix")
    if settings.rows is not None and settings.rows < 1:
        raise SystemExit(f"mix.rows is {settings.rows}: choose 1 or more, or null for all, in conf/mix")
    return settings


def split(name: str) -> Iterator[Row]:
    return (row for row in shards.read(SOURCE) if row["split"] == name)


def trained(copies: dict[str, int]) -> Iterator[Row]:
    """Every row that trains once, then those that train a second time, and so on: copies lie far apart."""
    for turn in range(max(copies.values(), default=0)):
        yield from (row for row in split(TRAIN) if copies[row["id"]] > turn)


def summary(seen: int, trained: Counter[str], others: dict[str, int], rejected: int) -> Counter[str]:
    """Rows, each counted once; `trained` has how often each was written, and `repeated` are the copies beyond the first."""
    return Counter(
        {
            "seen": seen,
            "kept": len(trained) + sum(others.values()),
            "rejected_downsampled": rejected,
            "repeated": trained.total() - len(trained),
            "kept_train": len(trained),
            **{f"kept_{name}": count for name, count in others.items()},
        }
    )


if __name__ == "__main__":
    stage.run(main, "mix")
