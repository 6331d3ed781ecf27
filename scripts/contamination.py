"""Keep benchmark items, and our own test requests, out of everything that is trained on.

Reads data/split/{train,validation,preferences,test}.jsonl and the benchmarks of conf/contamination.
Writes data/contamination/{train,validation,preferences}.jsonl, data/rejected/contamination.jsonl,
reports/contamination.json.
"""

from collections import Counter
from dataclasses import dataclass

from temper import benchmarks, metrics, params, record, records, stage
from temper.ngrams import Hit, Index, Item
from temper.records import Row

CHECKED = ("train", "validation", "preferences")
OWN = "test"  # the name under which our own test split is among the benchmarks


@dataclass
class Contamination:
    ngram: int
    """Words in a row that are too many to share with an item."""
    coverage_ngram: int
    max_coverage: float
    """How much of an item runs of `coverage_ngram` words may cover, in [0, 1]."""
    policy: str
    """`drop` a contaminated row, or `fail` the run."""
    benchmarks: list[benchmarks.Benchmark]


def main() -> None:
    settings = params.load("contamination", Contamination)
    if settings.policy not in ("drop", "fail"):
        raise SystemExit(f"contamination.policy is '{settings.policy}': choose drop or fail in conf/contamination")
    splits = {name: list(records.read(f"data/split/{name}.jsonl")) for name in (*CHECKED, OWN)}
    public = [item for benchmark in settings.benchmarks for item in benchmarks.items(benchmark)]
    own = [Item(OWN, row["id"], record.request(row)) for row in splits[OWN]]
    # Public items first: a row's evidence is its first hit, and those of validation rows end the run.
    evidence = [one for name in CHECKED for one in found(name, splits[name], indexed(public + own, settings))]
    evidence += found(OWN, splits[OWN], indexed(public, settings))
    records.write("data/rejected/contamination.jsonl", evidence)
    refuse(evidence, settings.policy)
    dropped = {one["id"] for one in evidence}
    for name in CHECKED:
        records.write(f"data/contamination/{name}.jsonl", [row for row in splits[name] if row["id"] not in dropped])
    metrics.write("reports/contamination.json", summary(splits, evidence, len(public) + len(own)))


def indexed(items: list[Item], settings: Contamination) -> Index:
    return Index(items, settings.ngram, settings.coverage_ngram, settings.max_coverage)


def found(split: str, rows: list[Row], index: Index) -> list[Row]:
    """Evidence for each contaminated row: its first hit, and how many items it hit."""
    hits = [(row, index.hits(f"{record.request(row)}\n{record.response(row)}")) for row in rows]
    return [_evidence(split, row, of_row) for row, of_row in hits if of_row]


def _evidence(split: str, row: Row, hits: list[Hit]) -> Row:
    first = hits[0]
    return {
        "id": row["id"],
        "split": split,
        "reason": first.item.benchmark,
        "benchmark": first.item.benchmark,
        "item": first.item.id,
        "rule": first.rule,
        "matched": first.matched,
        "coverage": round(first.coverage, 4),
        "hits": len(hits),
        "text": record.request(row),
    }


def refuse(evidence: list[Row], policy: str) -> None:
    """Exit where dropping is not allowed, or would not help: a validation or test row out of a public benchmark."""
    held_out = [one for one in evidence if one["split"] in ("validation", OWN) and one["benchmark"] != OWN]
    bad = held_out or (evidence if policy == "fail" else [])
    if not bad:
        return
    first, remedy = bad[0], "remove them from the source"
    if not held_out:
        remedy += ", or set contamination.policy=drop"
    raise SystemExit(
        f"contamination: {len(bad)} rows overlap a benchmark, the first a {first['split']} row ({first['id']}) with "
        f"{first['benchmark']} {first['item']} by {first['rule']}, all in data/rejected/contamination.jsonl: {remedy}"
    )


def summary(splits: dict[str, list[Row]], evidence: list[Row], items: int) -> dict[str, int]:
    """Counts over what is trained on; `rejected_<benchmark>` by the first benchmark that a row hit."""
    reasons = Counter(f"rejected_{one['benchmark']}" for one in evidence)
    kept = {f"kept_{name}": len(splits[name]) - sum(one["split"] == name for one in evidence) for name in CHECKED}
    seen = sum(len(splits[name]) for name in CHECKED)
    return {"seen": seen, "kept": sum(kept.values()), "items": items, **kept, **reasons}


if __name__ == "__main__":
    stage.run(main, "contamination")
