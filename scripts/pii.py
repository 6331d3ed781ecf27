"""Replace personal identifiers by typed placeholders, in requests, answers, tools and gold calls alike.

Reads data/dedup.jsonl.
Writes data/pii.jsonl, reports/pii.json.
"""

from collections import Counter
from dataclasses import dataclass

from temper import calls, masking, metrics, params, presidio, records, stage
from temper.records import Row


@dataclass
class Pii:
    model: str
    """An installed spaCy model."""
    entities: list[str]
    """Presidio's names of what to replace; whatever is not listed stays."""
    min_score: float
    """Presidio's confidence, in [0, 1]."""


def main() -> None:
    settings = params.load("pii", Pii)
    find = presidio.finder(settings.model, settings.entities, settings.min_score)
    rows = list(records.read("data/dedup.jsonl"))
    kinds = [identifiers(row, find) for row in rows]
    records.write("data/pii.jsonl", map(masking.masked, rows, kinds))
    metrics.write("reports/pii.json", summary(kinds, settings.entities))


def identifiers(row: Row, find: presidio.Find) -> dict[str, str]:
    """Every identifier in a row's prose, with its kind. Signatures and calls are no prose: what they repeat is found there."""
    formal = {calls.system_prompt(row["tools"]), calls.answer(row["gold"])}
    prose = [turn["content"] for turn in row["messages"] if turn["content"] not in formal]
    return {text: kind for one in prose for text, kind in find(one).items()}


def summary(kinds: list[dict[str, str]], entities: list[str]) -> dict[str, int]:
    """No row leaves: distinct identifiers of each row by kind, and the rows that had one."""
    found = Counter(kind for of_row in kinds for kind in of_row.values())
    counts = {f"found_{entity}": found[entity] for entity in entities}
    return {"seen": len(kinds), "kept": len(kinds), "rows_masked": sum(map(bool, kinds)), **counts}


if __name__ == "__main__":
    stage.run(main, "pii")
