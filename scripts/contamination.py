"""Keep benchmark items, and our own test and golden rows, out of everything that is trained on.

Reads data/split, data/general.jsonl and the benchmarks of conf/contamination.
Writes data/contamination, data/rejected/contamination.jsonl, reports/contamination.json.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from temper import (
    benchmarks,
    checkpoints,
    containment,
    metrics,
    nearcopies,
    ngrams,
    params,
    paraphrase,
    records,
    shards,
    stage,
)
from temper.containment import Gate
from temper.ngrams import Item
from temper.records import Row

OWN = ("test", "golden")  # our held-out splits, each a benchmark of that name
MEASURED = (*OWN, "validation")  # where a public item ends the run: without the row, figures would mean another set
PASSES = ("ngram", "coverage", "minhash", "paraphrase")
GENERAL = "general"  # passages by which evaluation tells what a model forgot: trained on, they would hide it
SOURCE, PASSAGES, REJECTED = "data/split", "data/general.jsonl", "data/rejected/contamination.jsonl"


@dataclass
class Contamination:
    ngram: int | None
    """Words in a row that are too many to share with an item; null switches the pass off."""
    max_items: int | None
    """Items that may share such a run before it is boilerplate, which tells nothing; null for no limit."""
    coverage_ngram: int | None
    """Null switches the pass off."""
    max_coverage: float
    """How much of an item runs of `coverage_ngram` words may cover, in [0, 1]."""
    minhash: nearcopies.Rules | None
    paraphrase: paraphrase.Rules | None
    max_own: int
    """Items of our own test and golden rows that every pass looks for; were there more, n-grams alone look for all of them."""
    policy: str
    """`drop` a contaminated row, or `fail` the run."""
    benchmarks: list[benchmarks.Benchmark]


def main() -> None:
    settings = checked(params.load("contamination", Contamination))
    public = [item for benchmark in settings.benchmarks for item in benchmarks.items(benchmark)]
    public += [Item(GENERAL, row["id"], row["text"]) for row in records.read(PASSAGES)]
    own, too_short = containment.own_items(row for row in shards.read(SOURCE) if row["split"] in OWN)
    gate = gate_of(settings, public, own)
    with checkpoints.scratch("gate", settings, [SOURCE, PASSAGES, *shards.code()]) as work:
        containment.save(gate, work / "gate.pickle")
        counts = shards.apply(
            "contamination", partial(containment.checked_by, work / "gate.pickle", OWN), SOURCE, settings
        )
    refuse(records.read(REJECTED), settings.policy)
    counted = shards.balanced(counts) | {"items_too_short": too_short}
    metrics.write("reports/contamination.json", counted | looked_for(gate, settings) | summary(records.read(REJECTED)))


def checked(settings: Contamination) -> Contamination:
    """The settings, if their values make sense; exits naming the one that does not."""
    if settings.policy not in ("drop", "fail"):
        raise SystemExit(f"contamination.policy is '{settings.policy}': choose drop or fail in conf/contamination")
    if settings.ngram and settings.coverage_ngram and settings.coverage_ngram > settings.ngram:
        raise SystemExit(
            f"contamination.coverage_ngram is {settings.coverage_ngram}, above ngram ({settings.ngram}): choose no more than that"
        )
    if not (settings.ngram or settings.coverage_ngram or settings.minhash or settings.paraphrase):
        raise SystemExit("contamination: every pass is off: switch on ngram at least, in conf/contamination")
    names = Counter([*OWN, GENERAL, *(benchmark.name for benchmark in settings.benchmarks)])
    if taken := [name for name, times in names.items() if times > 1]:
        raise SystemExit(
            f"contamination.benchmarks: two benchmarks are named '{taken[0]}' ({', '.join(OWN)} and {GENERAL} are our own): "
            f"rename one in conf/contamination"
        )
    return settings


def gate_of(settings: Contamination, public: list[Item], own: list[Item]) -> Gate:
    """Public items come first: a row's evidence is its first hit, and those of held-out rows end the run."""
    runs = ngrams.Rules(settings.ngram, settings.coverage_ngram, settings.max_coverage, settings.max_items)
    if len(own) <= settings.max_own:
        return Gate(public + own, runs, settings.minhash, settings.paraphrase)
    if not (settings.ngram or settings.coverage_ngram):
        raise SystemExit(
            f"contamination: {len(own)} items of our own, above max_own ({settings.max_own}), and ngram and coverage_ngram are "
            "off: switch one on, or raise max_own in conf/contamination"
        )
    return Gate(public, runs, settings.minhash, settings.paraphrase, verbatim=own)


def refuse(evidence: Iterable[Row], policy: str) -> None:
    """Exit where dropping is not allowed, or would not help: a held-out row out of a public benchmark.

    A validation row that hits our own test or golden split is dropped like a training row.
    """
    found = [{key: one[key] for key in ("id", "split", "benchmark", "item", "rule")} for one in evidence]
    held_out = [one for one in found if one["split"] in MEASURED and one["benchmark"] not in OWN]
    bad = held_out or (found if policy == "fail" else [])
    if not bad:
        return
    first, remedy = bad[0], "remove them from the source"
    if not held_out:
        remedy += ", or set contamination.policy=drop"
    raise SystemExit(
        f"contamination: {len(bad)} rows overlap a benchmark, the first a {first['split']} row ({first['id']}) with "
        f"{first['benchmark']} {first['item']} by {first['rule']}, all in {REJECTED}: {remedy}"
    )


def looked_for(gate: Gate, settings: Contamination) -> dict[str, int]:
    """`benchmark_<name>` with the items of each benchmark, and `pass_<name>`: 1 for a pass that ran, 0 for one that is off."""
    items = {(item.benchmark, item.id) for item in gate.items}
    sizes = Counter(benchmark for benchmark, _ in items)
    names = [*(benchmark.name for benchmark in settings.benchmarks), GENERAL, *OWN]
    passes = (settings.ngram, settings.coverage_ngram, settings.minhash, settings.paraphrase)
    return {
        "items": len(items),
        "items_verbatim_only": gate.verbatim,
        **{f"benchmark_{name}": sizes[name] for name in names},
        **{f"pass_{name}": int(bool(setting)) for name, setting in zip(PASSES, passes, strict=True)},
    }


def summary(evidence: Iterable[Row]) -> dict[str, int]:
    """Rows kept of each split, and `found_<pass>` by every pass that hit a row."""
    kept = Counter(f"kept_{row['split']}" for row in shards.read("data/contamination"))
    passes = Counter(f"found_{name}" for one in evidence for name in passes_of(one))
    return {"kept_train": 0, **kept, **passes}


def passes_of(evidence: Row) -> set[str]:
    """The passes that found a row; `13-gram` and whole items of fewer words are the pass `ngram`."""
    rules = {hit["rule"] for hit in (evidence, *evidence["other_hits"])}
    return {"ngram" if rule.endswith("-gram") else rule for rule in rules}


if __name__ == "__main__":
    stage.run(main, "contamination")
