"""Abuse in answers, by a published list of words: it finds words, not meaning, and neither a polite insult nor a quotation."""

import re
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
    # What is spelled with other signs would be found without them, in ordinary text.
    texts = (str(row.get(field) or "") for row in severe)
    found = sorted({text for text in texts if re.fullmatch(r"[\w' -]*\w{2}[\w' -]*", text)})
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
