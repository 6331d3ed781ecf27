"""From files of every type through ingest, dedup and split: each record is kept or rejected, once, whatever is between."""

import csv
import io
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pyarrow import parquet

from scripts import dedup, ingest, split
from temper import metrics, minhash, record, records, shards
from temper.records import Row

MAX_BYTES = 2000
BROKEN = {"jsonl": "malformed", "json": "malformed", "csv": "columns"}
INGEST = {
    "sources": [
        {"kind": "file", "id": "raw/*", "revision": None, "sha256": None, "format": "prompt-completion"}
        | {"files": [], "columns": {}, "licence": "cc0-1.0"}
    ],
    "shard_rows": 20,
    "max_tokens": None,
    "max_bytes": MAX_BYTES,
    "unanswerable": {"least": 0.0, "most": 1.0, "answer": "It does not say."},
    "null_share": 0.0,
    "bad_rows": "reject",
    "limit": None,
    "seed": 17,
}
DEDUP = {"ngram": 5, "bands": 2, "rows": 2, "threshold": 0.8, "min_answer_words": 30, "seed": 17, "semantic": None}
SPLIT = {"test": 0.3, "validation": 0.0, "preferences": 0.0, "rl": 0.0, "golden": 0.1, "seed": 17}
SECTIONS = {"ingest": INGEST, "dedup": DEDUP, "split": SPLIT, "executor": {"kind": "local", "workers": 1}}

kinds = st.sampled_from(["good", "good", "again", "near", "blank", "long", "broken"])
drawn_records = st.lists(st.tuples(kinds, st.integers(0, 5)), max_size=12)
drawn_files = st.dictionaries(st.sampled_from(["jsonl", "json", "csv", "parquet"]), drawn_records, min_size=1)


def prompt(number: int) -> str:
    """A question of many words, like no other; letters only, since numbers do not tell requests apart."""
    digits = str.maketrans("0123456789", "abcdefghij")
    return " ".join(str(minhash.digest(f"{number}/{place}")).translate(digits) for place in range(20))


def pair(kind: str, number: int) -> tuple[str, str]:
    said = {"good": prompt(number), "near": f"{prompt(number)} please", "long": "x" * MAX_BYTES}
    return said.get(kind, prompt(number % 3)), " " if kind == "blank" else "Yes."


def written(ending: str, drawn: list[tuple[str, int]]) -> dict[str, str | None]:
    """Writes raw/many.<ending>; returns the reason of each record, by its place, or None if it is a good one."""
    pairs = [pair(kind, number) for kind, number in drawn]
    rows = [dict(zip(("prompt", "completion"), one, strict=True)) for one in pairs]
    lines = [
        '{"prompt": }' if kind == "broken" else json.dumps(row) for (kind, _), row in zip(drawn, rows, strict=True)
    ]
    content = io.BytesIO()
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    elif ending == "csv":
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["prompt", "completion"])
        writer.writerows(["one cell"] if kind == "broken" else one for (kind, _), one in zip(drawn, pairs, strict=True))
        content.write(table.getvalue().encode())
    else:
        text = "\n".join(lines) if ending == "jsonl" else "[" + ",\n".join(lines) + "]"
        content.write(text.encode())
    path = Path(f"raw/many.{ending}")
    path.write_bytes(content.getvalue())
    reasons = {"blank": "empty", "long": "too_big", "broken": BROKEN.get(ending)}
    places = {"jsonl": ":{}", "csv": ":{}"}.get(ending, ":row {}")
    first = 2 if ending == "csv" else 1
    return {f"{path}{places.format(first + at)}": reasons.get(kind) for at, (kind, _) in enumerate(drawn)}


@given(drawn_files)
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])  # to shrink takes minutes
def test_every_record_is_kept_or_rejected_once(drawn: dict[str, list[tuple[str, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEMPER_SCRATCH", f"{folder}/scratch")
        OmegaConf.save(SECTIONS, "params.yaml")
        Path("raw").mkdir()
        base = [("good", number) for number in range(10, 30)]
        drawn = drawn | {"jsonl": base + drawn.get("jsonl", [])}
        expected: dict[str, str | None] = {}
        said: Counter[str] = Counter()
        for ending, of_file in drawn.items():
            reasons = written(ending, of_file) if of_file else {}
            expected |= reasons
            good = [one for one, why in zip(of_file, reasons.values(), strict=True) if why is None]
            said.update(pair(kind, number)[0] for kind, number in good)
        ingest.main()
        assert left("ingest", "place") == {place: why for place, why in expected.items() if why}
        kept = list(shards.read("data/ingest"))
        assert Counter(map(record.request, kept)) == said
        dedup.main()
        everyone = ids("dedup")
        assert everyone == Counter(row["id"] for row in kept)
        shutil.copytree("data/dedup", "data/pii")
        split.main()
        assert ids("split") == Counter(row["id"] for row in shards.read("data/dedup"))
        for stage, seen in (("ingest", len(expected)), ("dedup", everyone.total())):
            counts = metrics.read(f"reports/{stage}.json")
            rejected = sum(number for name, number in counts.items() if name.startswith("rejected_"))
            assert (counts["seen"], counts["kept"] + rejected) == (seen, seen)


def rows_left(stage: str) -> list[Row]:
    return list(records.read(f"data/rejected/{stage}.jsonl"))


def left(stage: str, key: str) -> dict[str, str]:
    """Why each row left, by `key`; none of them twice."""
    rows = rows_left(stage)
    found = {row[key]: row["reason"] for row in rows}
    assert len(found) == len(rows)
    return found


def ids(stage: str) -> Counter[str]:
    return Counter(row["id"] for row in [*shards.read(f"data/{stage}"), *rows_left(stage)])
