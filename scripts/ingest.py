"""Read every source into one record format, check each row, and bring calls and `null` into balance.

Reads the sources of conf/data and the tokenizer in models/base.
Writes data/ingest, data/rejected/ingest.jsonl, reports/ingest.json.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from temper import executors, lengths, metrics, mismatch, params, records, shards, sources, stage, tally
from temper.records import Row
from temper.sources import Rules, Source, Unit

OUT = Path("data/ingest")
TOKENIZER = [Path("models/base") / name for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")]
BLOCK = 50_000  # call rows, about, that are held at a time, and among which tools are exchanged


@dataclass
class Unanswerable:
    least: float
    most: float
    """Limits of the share of questions that their passage does not answer; checked when there are questions."""
    answer: str
    """What the assistant says to one that comes without an answer."""


@dataclass
class Ingest:
    sources: list[Source]
    shard_rows: int
    """Rows of a shard, which is what a task of each later stage does; every file begins a shard of its own."""
    max_tokens: int | None
    """Of a rendered row, in the base model's tokens; null neither counts nor limits them."""
    max_bytes: int
    """Of a row as it is read: longer ones are not held in memory."""
    null_share: float
    """Of the call rows: how many have `null` as their answer, in [0, 1)."""
    unanswerable: Unanswerable
    bad_rows: str
    """`fail` at the first, or `reject` it with its reason; rows of public data at a pinned hash are always rejected."""
    limit: int | None
    """Rows of each category in a file; a large file counts as several."""
    seed: int


def main() -> None:
    settings = checked(params.load("ingest", Ingest))
    units = sources.units(settings.sources, rules(settings))
    names = [f"{number:05d}.jsonl" for number in range(len(units))]
    # What a killed run left is only of use to one that reads the same files and counts by the same tokenizer.
    inputs = sorted({unit.path for unit in units}) + [path for path in TOKENIZER if settings.max_tokens]
    counts = shards.write(
        "ingest", partial(rows_of, units, settings), names, settings, inputs, OUT, settings.shard_rows
    )
    if not counts["kept"]:
        raise SystemExit("conf/data: every row was rejected, see data/rejected/ingest.jsonl for each reason")
    counts += add_mismatched(settings, counts) + Counter(
        f"format_{unit.format}" for unit in units if not unit.span.start
    )
    found = tally.summary(Counter(shards.balanced(counts)))
    check_unanswerable(found, settings.unanswerable)
    metrics.write("reports/ingest.json", found)


def checked(settings: Ingest) -> Ingest:
    """The settings, if their values make sense; exits naming the one that does not."""
    if settings.bad_rows not in ("fail", "reject"):
        raise SystemExit(f"ingest.bad_rows is '{settings.bad_rows}': choose fail or reject in conf/ingest")
    if not 0 <= settings.null_share < 1:
        raise SystemExit(f"ingest.null_share is {settings.null_share}: choose a share from 0 to below 1 in conf/ingest")
    if settings.shard_rows < 1:
        raise SystemExit(f"ingest.shard_rows is {settings.shard_rows}: choose 1 or more in conf/ingest")
    return settings


def rules(settings: Ingest) -> Rules:
    return Rules(settings.bad_rows, settings.max_bytes, settings.unanswerable.answer)


def rows_of(units: list[Unit], settings: Ingest, number: int) -> Iterator[Row]:
    """The rows of one file, checked, measured and counted, or with their reason to leave."""
    found = lengths.fitting(sources.read(units[number], rules(settings)), settings.max_tokens, counter)
    return map(tally.counted, limited(found, settings.limit))


def limited(rows: Iterable[Row], limit: int | None) -> Iterator[Row]:
    per_category: Counter[str] = Counter()
    for row in rows:
        if "reason" in row or limit is None:
            yield row
        elif per_category[row["category"]] == limit:
            detail = f"{limit} rows of {row['category']} already"
            yield {"place": row["place"], "reason": "limit", "detail": detail}
        else:
            per_category[row["category"]] += 1
            yield row


def add_mismatched(settings: Ingest, found: Counter[str]) -> Counter[str]:
    """A last shard of null rows, as many as are missing from what was `found`, and their counts: they are among the rows seen."""
    counts: Counter[str] = Counter()
    wanted = mismatch.missing(found["kind_call"], found["null"], settings.null_share)
    if not wanted:
        return counts
    with TemporaryDirectory(dir=OUT) as folder:
        blocks = mismatch.blocks(shards.read(OUT), found["kind_call"], BLOCK, Path(folder))
        made = map(tally.counted, islice(mismatched(blocks, wanted, found["kind_call"], settings), wanted))
        written = (row for row in made if not counts.update(["seen", "kept", *row.pop("counts")]))
        if not records.write(OUT / "mismatched.jsonl", written):
            (OUT / "mismatched.jsonl").unlink()
    return counts


def mismatched(blocks: Iterable[list[Row]], wanted: int, rows: int, settings: Ingest) -> Iterator[Row]:
    """Null rows made of call rows, with their lengths: of each block its part of the `wanted`, rounded up."""
    found: dict[str, Row] = {}

    def admit(row: Row) -> bool:
        [found[row["id"]]] = lengths.fitting([row], settings.max_tokens, counter)
        return "reason" not in found[row["id"]]

    for block in blocks:
        made = mismatch.make(block, -(-wanted * len(block) // rows), admit, settings.seed)
        yield from (found[row["id"]] for row in made)
        found.clear()


@cache
def counter() -> lengths.Count:
    return lengths.counter(Path("models/base"))


def check_unanswerable(found: dict[str, float], limits: Unanswerable) -> None:
    """Exit unless the share of unanswerable questions, if there are questions, is within its limits."""
    share = found.get("unanswerable_share")
    if share is not None and not limits.least <= share <= limits.most:
        raise SystemExit(
            f"conf/data: {share:.3f} of the questions are unanswerable, ingest.unanswerable allows {limits.least} to "
            f"{limits.most}: add or remove such rows, or change the limits in conf/ingest"
        )


if __name__ == "__main__":
    stage.run(executors.importable(main), "ingest")
