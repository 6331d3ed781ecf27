"""Drop exact and near duplicates, and put rows with near-duplicate requests into one cluster.

Reads data/ingest.jsonl.
Writes data/dedup.jsonl, data/rejected/dedup.jsonl, reports/dedup.json.
"""

from dataclasses import dataclass

from temper import duplicates, metrics, minhash, params, record, records, stage
from temper.records import Row


@dataclass
class Dedup:
    ngram: int
    """Words in a shingle."""
    bands: int
    rows: int
    """Hashes in a band."""
    seed: int


def main() -> None:
    settings = params.load("dedup", Dedup)
    processes = params.runtime()["processes"]
    rows = list(records.read("data/ingest.jsonl"))
    unique, exact = without_exact(rows)
    kept, near = without_near(unique, settings, processes)
    clustered = with_clusters(kept, settings, processes)
    records.write("data/dedup.jsonl", clustered)
    records.write("data/rejected/dedup.jsonl", exact + near)
    metrics.write("reports/dedup.json", summary(rows, clustered, exact + near))


def without_exact(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(kept, rejected): rows whose turns all equal an earlier row's, apart from case and spacing, are rejected."""
    firsts = duplicates.exact(["\n".join(turn["content"] for turn in row["messages"]) for row in rows])
    kept = [row for position, row in enumerate(rows) if firsts[position] == position]
    rejected = [
        row | {"reason": "exact", "kept": rows[first]["id"], "cluster": rows[first]["id"]}
        for position, (row, first) in enumerate(zip(rows, firsts, strict=True))
        if first != position
    ]
    return kept, rejected


def without_near(rows: list[Row], settings: Dedup, processes: int) -> tuple[list[Row], list[Row]]:
    """(kept, rejected): rows like an earlier one in request and answer, under tools of the same names, are rejected.

    The system turn is no part of the text: most of its words are the tools', so that two requests to one tool would look
    alike. Other tools make another question, even of the same request.
    """
    texts = [f"{record.request(row)}\n{record.response(row)}" for row in rows]
    firsts = minhash.clusters(texts, _settings(settings, normalise_numbers=False), processes)
    first_of: dict[tuple[int, tuple[str, ...]], Row] = {}
    kept, rejected = [], []
    for row, first in zip(rows, firsts, strict=True):
        earlier = first_of.setdefault((first, record.tool_names(row)), row)
        if earlier is row:
            kept.append(row)
        else:
            rejected.append(row | {"reason": "near", "kept": earlier["id"], "cluster": rows[first]["id"]})
    return kept, rejected


def with_clusters(rows: list[Row], settings: Dedup, processes: int) -> list[Row]:
    """Each row with its cluster, named after its first row: near-duplicate requests, whatever their numbers."""
    requests = [record.request(row) for row in rows]
    firsts = minhash.clusters(requests, _settings(settings, normalise_numbers=True), processes)
    return [row | {"cluster": rows[first]["id"]} for row, first in zip(rows, firsts, strict=True)]


def summary(rows: list[Row], kept: list[Row], rejected: list[Row]) -> dict[str, float]:
    return {
        "seen": len(rows),
        "kept": len(kept),
        **record.counts(rejected, "reason", "rejected"),
        **record.counts(kept, "category", "category"),
        "clusters": len({row["cluster"] for row in kept}),
    }


def _settings(settings: Dedup, *, normalise_numbers: bool) -> minhash.Settings:
    return minhash.Settings(settings.ngram, settings.bands, settings.rows, settings.seed, normalise_numbers)


if __name__ == "__main__":
    stage.run(main, "dedup")
