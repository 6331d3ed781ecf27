"""Passages of general text, on which evaluation sees what training made a model forget.

Reads   wheels, files or the Hub (general.sources)
Writes  data/general.jsonl (id, text), reports/general.json
"""

from collections.abc import Iterator
from dataclasses import dataclass

from temper import benchmarks, metrics, params, records, stage
from temper.benchmarks import Benchmark
from temper.records import Row

OUT = "data/general.jsonl"


@dataclass
class General:
    sources: list[Benchmark]
    """As in conf/contamination; `fields` hold prose: a text, or chats, of which every turn is read."""
    min_characters: int
    max_characters: int
    """Of a passage, which is one line of prose."""
    passages: int
    """Taken evenly from all that there are."""


def main() -> None:
    cfg = params.load("general", General)
    found = [passage for source in cfg.sources for passage in passages(source, cfg.min_characters, cfg.max_characters)]
    if not 0 < cfg.passages <= len(found):
        raise SystemExit(
            f"general: {len(found)} passages of {cfg.min_characters} to {cfg.max_characters} characters, of which general.passages "
            f"asks for {cfg.passages}: correct it, widen the limits, or add a source to conf/general"
        )
    chosen = [found[place * len(found) // cfg.passages] for place in range(cfg.passages)]
    records.write(OUT, chosen)
    sizes = [len(passage["text"].encode()) for passage in chosen]
    metrics.write("reports/general.json", {"found": len(found), "passages": len(chosen), "bytes": sum(sizes)})


def passages(source: Benchmark, least: int, most: int) -> Iterator[Row]:
    """Each line of prose of a fitting length, named by its source and place."""
    texts = (text for row in benchmarks.rows(source) for field in source.fields for text in prose(row.get(field)))
    lines = (line.strip() for text in texts for line in text.splitlines())
    fitting = (line for line in lines if least <= len(line) <= most)
    yield from ({"id": f"{source.name}/{number}", "text": line} for number, line in enumerate(fitting, start=1))


def prose(value: object) -> Iterator[str]:
    """The texts in a field: itself, or the content of each turn in lists of turns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from prose(value.get("content"))
    elif isinstance(value, list):
        for one in value:
            yield from prose(one)


if __name__ == "__main__":
    stage.run(main, "general")
