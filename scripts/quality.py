"""Drop rows that break a rule, and rows that none of three scorers finds better than the worst of their category.

Reads data/dedup, and the model that a scorer names.
Writes data/quality, data/rejected/quality.jsonl, reports/quality.json, reports/plots/quality.csv.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from temper import buckets, checkpoints, executors, metrics, params, ranks, rules, scorers, shards, stage, tally
from temper.records import Row
from temper.rules import Rules
from temper.scorers import Scorer

SOURCE = "data/dedup"
OTHER_PROMPT = "other_system_prompt"


@dataclass
class Quality:
    rules: Rules
    scorers: list[Scorer]
    """None of them: rules alone."""
    keep_from_bucket: int
    """A row is kept when the best of its buckets, 0 to 19, is at least this; 0 keeps all, and reports the buckets."""
    within: str | None
    """The field whose values are ranked apart, such as category; null ranks all rows together."""
    sample: int
    """Rows that scorers learn from, and that tell each category's instruction."""
    seed: int


def main() -> None:
    settings = checked(params.load("quality", Quality))
    source = shards.paths(SOURCE)
    prompts = rules.commonest_instructions(scorers.sample(shards.read(SOURCE), settings.sample, settings.seed))
    with checkpoints.scratch("ranks", settings, [*source, *shards.code()]) as work:
        ranks.judge(source, settings.rules, prompts, work)
        learnt = scorers.sample(ranks.passing(work), settings.sample, settings.seed)
        fitted = {
            one.name: scorers.fit(one, learnt, settings.within, settings.seed) for one in settings.scorers if learnt
        }
        counts = ranks.assign(fitted, settings.within, work)
        names = [shard.name for shard in source]
        graded = shards.write(
            "quality", partial(rows_of, work, settings.keep_from_bucket, prompts), names, settings, source
        )
        executors.forget(work)
    buckets.write("reports/plots/quality.csv", counts)
    found = {OTHER_PROMPT: 0} | tally.summary(Counter(shards.balanced(graded)))
    metrics.write("reports/quality.json", found | buckets.metrics(counts))


def checked(settings: Quality) -> Quality:
    """The settings, if their values make sense; exits naming the one that does not."""
    if not 0 <= settings.keep_from_bucket < buckets.COUNT:
        raise SystemExit(f"quality.keep_from_bucket is {settings.keep_from_bucket}: choose 0 to 19 in conf/quality")
    action = settings.rules.system_prompt.action if settings.rules.system_prompt else "report"
    if action not in ("report", "reject"):
        raise SystemExit(
            f"quality.rules.system_prompt.action is '{action}': choose report or reject, or null for the rule"
        )
    names = [scorer.name for scorer in settings.scorers]
    if len({*names, "bucket", "maximum"}) < len(names) + 2:
        raise SystemExit(
            f"quality.scorers are named {', '.join(names)}: each needs its own name, not bucket or maximum"
        )
    return settings


def rows_of(work: Path, keep_from: int, prompts: dict[str, str], shard: int) -> Iterator[Row]:
    """A shard's rows, with a reason where they must leave.

    Counted are those kept of each category, and those whose instruction is not their category's, rejected for it or not.
    """
    for row in ranks.graded(work, keep_from, shard):
        names = [OTHER_PROMPT] if rules.differs(row, prompts) else []
        names += [] if "reason" in row else [f"{tally.CATEGORY}{row.get('category', '')}"]
        yield row | {"counts": names}


if __name__ == "__main__":
    stage.run(executors.importable(main), "quality")
