"""Read every source into one record format, check each row, and bring calls and `null` into balance.

Reads the sources of conf/data and the tokenizer in models/base.
Writes data/ingest.jsonl, data/rejected/ingest.jsonl, reports/ingest.json.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from temper import chat, metrics, mismatch, params, record, records, stage
from temper.record import BadRow
from temper.records import Row
from temper.sources import Candidate, Source, candidates

Tokens = Callable[[Row], int]


@dataclass
class Ingest:
    sources: list[Source]
    max_tokens: int
    """Of a rendered row, in the base model's tokens."""
    null_share: float
    """Of the rows: how many have `null` as their answer, in [0, 1)."""
    bad_rows: str
    """`fail` at the first, or `reject` it with its reason; rows of public data at a pinned hash are always rejected."""
    limit: int | None
    """Rows of each category."""
    seed: int


@dataclass
class Sieve:
    """Rows taken and rows left, each of these with its place and reason."""

    settings: Ingest
    tokens: Tokens
    kept: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    per_category: Counter[str] = field(default_factory=Counter)

    def take(self, candidate: Candidate) -> None:
        try:
            row = self._checked(candidate)
        except BadRow as error:
            self.rejected.append({"place": candidate.place, "reason": error.reason, "detail": str(error)})
        else:
            self.per_category[row["category"]] += 1
            self.kept.append(row)

    def _checked(self, candidate: Candidate) -> Row:
        try:
            row = candidate.read()
        except BadRow as error:
            if self.settings.bad_rows == "fail" and candidate.correctable:
                remedy = "correct it, or set ingest.bad_rows to reject"
                raise SystemExit(f"{candidate.place}: {error}: {remedy}") from None
            raise
        if (length := self.tokens(row)) > self.settings.max_tokens:
            raise BadRow("too_long", f"{length} tokens")
        if self.per_category[row["category"]] == self.settings.limit:
            raise BadRow("limit", f"{self.settings.limit} rows of {row['category']} already")
        return row


def main() -> None:
    settings = checked(params.load("ingest", Ingest))
    count = chat.counter(Path("models/base"))

    def tokens(row: Row) -> int:
        return count(row["messages"])

    sieve = Sieve(settings, tokens)
    for source in settings.sources:
        for candidate in candidates(source):
            sieve.take(candidate)
    rows = sieve.kept + mismatched(sieve.kept, tokens, settings)
    if not rows:
        raise SystemExit("conf/data: every row was rejected, see data/rejected/ingest.jsonl for each reason")
    records.write("data/ingest.jsonl", rows)
    records.write("data/rejected/ingest.jsonl", sieve.rejected)
    metrics.write("reports/ingest.json", summary(rows, sieve.rejected, tokens))


def checked(settings: Ingest) -> Ingest:
    """The settings, if their values make sense; exits naming the one that does not."""
    if settings.bad_rows not in ("fail", "reject"):
        raise SystemExit(f"ingest.bad_rows is '{settings.bad_rows}': choose fail or reject in conf/ingest")
    if not 0 <= settings.null_share < 1:
        raise SystemExit(f"ingest.null_share is {settings.null_share}: choose a share from 0 to below 1 in conf/ingest")
    return settings


def mismatched(rows: list[Row], tokens: Tokens, settings: Ingest) -> list[Row]:
    """The null rows that are missing for the wanted share."""
    count = mismatch.missing(rows, settings.null_share)
    return mismatch.make(rows, count, lambda row: tokens(row) <= settings.max_tokens, settings.seed)


def summary(rows: list[Row], rejected: list[Row], tokens: Tokens) -> dict[str, float]:
    """Counts (the mismatched rows made here are among those seen), null share and lengths in tokens."""
    lengths = [tokens(row) for row in rows]
    return {
        "seen": len(rows) + len(rejected),
        "kept": len(rows),
        **record.counts(rejected, "reason", "rejected"),
        **record.counts(rows, "category", "category"),
        "null_share": sum(row["gold"] is None for row in rows) / len(rows),
        "tokens": sum(lengths),
        "tokens_median": median(lengths),
        "tokens_p90": quantiles([*lengths, lengths[-1]], n=10)[-1],
        "tokens_max": max(lengths),
    }


if __name__ == "__main__":
    stage.run(main, "ingest")
