"""Replace personal identifiers and secrets by placeholders or fake values, in requests, answers, tools and gold calls alike.

Reads data/quality.
Writes data/pii, data/rejected/pii.jsonl, reports/pii.json.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from temper import executors, masking, metrics, params, presidio, pseudonyms, shards, stage
from temper.masking import Allowed, StandIn
from temper.presidio import Search
from temper.records import Row

FOUND = "found_"


@dataclass
class Pii:
    model: str
    """An installed spaCy model or a folder with one; loaded only if people, places or other tagged kinds are asked for."""
    entities: list[str]
    """Presidio's names of what to replace, and SECRET_KEY, PRIVATE_KEY, CONNECTION_STRING; whatever is not listed stays."""
    min_score: float
    """Presidio's confidence, in [0, 1]."""
    replace: str
    """`placeholder` or `fake`."""
    seed: int
    """Of the fake values."""
    allow: list[str]
    """Identifiers that stay, whatever their case."""
    allow_patterns: list[str]
    """Regular expressions; an identifier that one matches as a whole stays."""


def main() -> None:
    settings = params.load("pii", Pii)
    presidio.check(search(settings))
    counts = shards.apply("pii", work(settings), "data/quality", settings)
    none = dict.fromkeys(["rows_masked", *(f"{FOUND}{entity}" for entity in settings.entities)], 0)
    metrics.write("reports/pii.json", none | shards.balanced(counts))


def search(settings: Pii) -> Search:
    return Search(settings.model, tuple(settings.entities), settings.min_score)


def work(settings: Pii) -> shards.Work:
    """Rows with their identifiers replaced; none leaves."""
    allowed = Allowed(tuple(settings.allow), tuple(settings.allow_patterns))
    allowed.check()
    return partial(scrubbed, search=search(settings), allowed=allowed, stand_in=stand_in(settings))


def scrubbed(rows: Iterator[Row], search: Search, allowed: Allowed, stand_in: StandIn) -> Iterator[Row]:
    """The rows without their identifiers. Counted are rows that had one, and of each kind the distinct ones of each row."""
    for row in masking.scrubbed(rows, search, allowed, stand_in):
        found: Counter[str] = Counter(row.get("masked", {}))
        names = [f"{FOUND}{kind}" for kind in found.elements()]
        yield row | {"counts": ["rows_masked", *names] if names else []}


def stand_in(settings: Pii) -> StandIn:
    ways: dict[str, StandIn] = {
        "placeholder": masking.placeholder,
        "fake": partial(pseudonyms.fake, seed=settings.seed),
    }
    if settings.replace not in ways:
        raise SystemExit(f"pii.replace is '{settings.replace}': choose {' or '.join(ways)} in conf/pii")
    return ways[settings.replace]


if __name__ == "__main__":
    stage.run(executors.importable(main), "pii")
