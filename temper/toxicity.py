"""Abuse in answers, by a published list of words: it finds words, not meaning, and neither a polite insult nor a quotation."""

from dataclasses import dataclass

from temper import benchmarks
from temper.benchmarks import Benchmark
from temper.phrases import Phrases


@dataclass
class Lexicon:
    source: Benchmark
    """Rows with a phrase in the one field."""
    severity: str | None
    """The field with a row's number; null: all rows count."""
    least: float
    """Of that number."""


def load(lexicon: Lexicon) -> Phrases:
    """The phrases of the list that are severe enough; exits where there are none."""
    field = lexicon.source.fields[0]
    rows = benchmarks.rows(lexicon.source)
    severe = (row for row in rows if lexicon.severity is None or _number(row, lexicon.severity) >= lexicon.least)
    found = sorted({str(row[field]) for row in severe if any(map(str.isalnum, str(row.get(field) or "")))})
    if not found:
        raise SystemExit(
            f"safety.lexicon: {lexicon.source.file} has no '{field}' as severe as {lexicon.least:g}: correct conf/safety"
        )
    return Phrases(found)


def _number(row: dict[str, object], field: str) -> float:
    try:
        return float(str(row[field]))
    except (KeyError, ValueError):
        raise SystemExit(f"safety.lexicon.severity: '{field}' is no number of every row: correct conf/safety") from None
