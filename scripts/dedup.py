"""Drop exact and near duplicates, and put rows with near-duplicate requests into one cluster.

Reads data/ingest.
Writes data/dedup, data/rejected/dedup.jsonl, reports/dedup.json.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from temper import checkpoints, duplicates, executors, metrics, params, records, shards, stage, tally
from temper.records import Row


@dataclass
class Semantic:
    similarity: float
    """Cosine of the embeddings, in [0, 1], from which two rows say the same."""
    max_words: int
    """Only rows of at most so many words are compared so."""


@dataclass
class Dedup:
    ngram: int
    """Words in a shingle."""
    bands: int
    rows: int
    """Hashes in a band."""
    threshold: float
    """Jaccard similarity of shingles, in (0, 1], from which two texts are near duplicates."""
    min_answer_words: int | None
    """Rows whose answers are alike, of at least so many words, share a cluster too; null compares no answers on their own."""
    seed: int
    semantic: Semantic | None
    """Also compare short rows by what they mean; null compares by words alone."""


def main() -> None:
    settings = checked(params.load("dedup", Dedup))
    source = shards.paths("data/ingest")
    with checkpoints.scratch("duplicates", settings, [*source, *shards.code()]) as work:
        verdicts = duplicates.find(source, as_settings(settings), work)
        names = [shard.name for shard in source]
        counts = shards.write("dedup", partial(rows_of, source, verdicts), names, settings, source)
        executors.forget(work)
    metrics.write("reports/dedup.json", {"clusters": 0} | tally.summary(Counter(shards.balanced(counts))))


def checked(settings: Dedup) -> Dedup:
    """The settings, if their values make sense; exits naming the one that does not."""
    if not 0 < settings.threshold <= 1:
        raise SystemExit(
            f"dedup.threshold is {settings.threshold}: choose a similarity above 0 and up to 1 in conf/dedup"
        )
    for name in ("ngram", "bands", "rows"):
        if getattr(settings, name) < 1:
            raise SystemExit(f"dedup.{name} is {getattr(settings, name)}: choose 1 or more in conf/dedup")
    if settings.min_answer_words is not None and settings.min_answer_words < 1:
        raise SystemExit(
            f"dedup.min_answer_words is {settings.min_answer_words}: choose 1 or more, or null, in conf/dedup"
        )
    if settings.seed < 0:
        raise SystemExit(f"dedup.seed is {settings.seed}: choose 0 or more in conf/")
    return settings


def as_settings(settings: Dedup) -> duplicates.Settings:
    meaning = settings.semantic
    semantic = duplicates.Semantic(meaning.similarity, meaning.max_words) if meaning else None
    return duplicates.Settings(
        settings.ngram,
        settings.bands,
        settings.rows,
        settings.threshold,
        settings.seed,
        semantic,
        settings.min_answer_words,
    )


def rows_of(source: list[Path], verdicts: list[Path], shard: int) -> Iterator[Row]:
    """A shard's rows, each with its cluster, and with a reason where it must leave."""
    for row in duplicates.marked(records.read(source[shard]), verdicts[shard]):
        names = [] if "reason" in row else [f"{tally.CATEGORY}{row['category']}"]
        yield row | {"counts": [*row.get("counts", ()), *names]}


if __name__ == "__main__":
    stage.run(executors.importable(main), "dedup")
