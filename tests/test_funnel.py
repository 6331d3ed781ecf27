"""From files of every type through all data stages: each record is kept or rejected, once, whatever is between."""

import csv
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pyarrow import parquet

from scripts import audit, contamination, dedup, ingest, mix, pii, quality, split
from temper import labels, metrics, minhash, record, records, rendering, rules, shards, training
from temper.records import Row
from tests.test_audit import ChatML, SameEverywhere
from tests.test_pii import SECTION as PII
from tests.test_shards import RAY

MAX_BYTES = 2000
BROKEN = {"jsonl": "malformed", "json": "malformed", "csv": "columns"}
INGEST = {
    "sources": [
        {"kind": "file", "id": "raw/*", "revision": None, "sha256": None, "format": "prompt-completion"}
        | {"files": [], "columns": {}, "licence": "cc0-1.0"}
    ],
    "shard_rows": 40,
    "max_tokens": None,
    "max_bytes": MAX_BYTES,
    "unanswerable": {"least": 0.0, "most": 1.0, "answer": "It does not say."},
    "null_share": 0.0,
    "bad_rows": "reject",
    "limit": None,
    "seed": 17,
}
DEDUP = {"ngram": 5, "bands": 2, "rows": 2, "threshold": 0.8, "min_answer_words": 30, "seed": 17, "semantic": None}
ONE_RULE = dict.fromkeys(rules.RULES) | {"refusal": {"exempt": []}}
QUALITY = {"rules": ONE_RULE, "scorers": [], "keep_from_bucket": 0, "within": None, "sample": 10, "seed": 17}
SPLIT = {"test": 0.3, "validation": 0.1, "preferences": 0.1, "rl": 0.0, "golden": 0.1, "seed": 17}
CONTAMINATION: dict[str, Any] = {
    "ngram": 13,
    "max_items": None,
    "coverage_ngram": None,
    "max_coverage": 0.5,
    "minhash": None,
    "paraphrase": None,
    "max_own": 1000,
    "policy": "drop",
    "benchmarks": [],
}
NEAR_COPIES = {"shingle": 2, "min_words": 13, "bands": 32, "rows": 3, "min_jaccard": 0.5}
LOCAL = {"kind": "local", "workers": 1}
MIX = {"groups": None, "temperature": 1.0, "rows": 12, "seed": 17}
AUDIT = {
    "sequence_length": 700,
    "end_of_turn": None,
    "truncation": "sliding_window",
    "truncate_answers": False,
    "min_turn_tokens": 16,
    "window_overlap": 0.25,
    "compare_every": 1,
    "shown": 2,
}
STAGES = {
    "ingest": (ingest, INGEST),
    "dedup": (dedup, DEDUP),
    "quality": (quality, QUALITY),
    "pii": (pii, PII),
    "split": (split, SPLIT),
    "contamination": (contamination, CONTAMINATION),
    "mix": (mix, MIX),
    "audit": (audit, AUDIT),
}
SHARDED = list(STAGES)[: list(STAGES).index("mix")]

SINGULAR = ["quoting", "refused", "mail", "lengthy"]  # each of which a later stage has something to do with
kinds = st.sampled_from(["good", "good", "again", "near", "blank", "long", "broken", *SINGULAR])
drawn_records = st.lists(st.tuples(kinds, st.integers(0, 5)), max_size=12)
drawn_files = st.dictionaries(st.sampled_from(["jsonl", "json", "csv", "parquet"]), drawn_records, min_size=1)


def prompt(number: int) -> str:
    """A question of many words, like no other; letters only, since numbers do not tell requests apart."""
    digits = str.maketrans("0123456789", "abcdefghij")
    return " ".join(
        str(int.from_bytes(minhash.digest(f"{number}/{place}".encode()))).translate(digits) for place in range(20)
    )


def pair(kind: str, number: int) -> tuple[str, str]:
    said = {"good": prompt(number), "near": f"{prompt(number)} please", "long": "x" * MAX_BYTES}
    said |= {name: prompt(100 * place + number) for place, name in enumerate(SINGULAR, start=1)}
    said["quoting"] += f" {prompt(number)}"
    answers = {"blank": " ", "refused": "I'm sorry, but I can't help with that.", "mail": "Write to ada@example.com."}
    answers["lengthy"] = " ".join(prompt(1000 + number + part) for part in range(0, 300, 100))
    return said.get(kind, prompt(number % 3)), answers.get(kind, "Yes.")


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
        patch.setattr(rendering, "Prompts", SameEverywhere)
        patch.setattr(training, "prepare", lambda: None)
        patch.setattr(labels, "Labeller", lambda *_: ChatML())
        sections: dict[str, Any] = {name: section for name, (_, section) in STAGES.items()}
        OmegaConf.save(sections | {"executor": {"kind": "local", "workers": 1}}, "params.yaml")
        Path("raw").mkdir()
        base = [(kind, number) for kind in ("good", "quoting") for number in range(10, 30)]
        base += [(kind, number) for kind in ("refused", "mail", "lengthy") for number in range(10, 20)]
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
        check_counts("ingest", len(expected))
        records.write(contamination.PASSAGES, [])
        for before, stage in pairwise(SHARDED):
            STAGES[stage][0].main()
            came = ids(shards.read(f"data/{before}"))
            assert ids(chain(shards.read(f"data/{stage}"), rows_left(stage))) == came, stage
            check_counts(stage, came.total())
        assert set(left("quality", "id").values()) == {"refusal"}
        assert not any("@example.com" in record.response(row) for row in shards.read("data/pii"))
        check_mix()
        check_audit()
        for stage in ("quality", "contamination", "mix", "audit"):
            assert rows_left(stage), f"{stage} had nothing to reject"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_neither_the_number_of_shards_nor_the_executor_changes_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    sections = {name: section for name, (_, section) in STAGES.items()}
    sections["contamination"] = CONTAMINATION | {"coverage_ngram": 8, "minhash": NEAR_COPIES}
    OmegaConf.save(sections | {"executor": LOCAL}, "params.yaml")
    Path("raw").mkdir()
    written("jsonl", [(kind, number) for kind in ("good", "near", *SINGULAR) for number in range(20)])
    ingest.main()
    rows = list(shards.read("data/ingest"))
    records.write(contamination.PASSAGES, [])
    found = {}
    for executor, pieces in ((LOCAL, 1), (LOCAL, 7), (LOCAL, 64), (RAY, 3)):
        OmegaConf.save(sections | {"executor": executor}, "params.yaml")
        shutil.rmtree("data/ingest")
        for number in range(pieces):
            records.write(f"data/ingest/{number:05d}.jsonl", rows[number::pieces])
        for stage in SHARDED[1:]:
            STAGES[stage][0].main()
        mix.main()
        left = chain(*(records.read(path) for path in Path("data/rejected").glob("*.jsonl")))
        ends = ids(left), ids(chain(*(records.read(path) for path in Path("data/mix").glob("*.jsonl"))))
        found[executor["kind"], pieces] = ends
    first, *others = found.values()
    assert all(len(part) > 20 for part in first)
    assert others == [first] * len(others)


def check_mix() -> None:
    """Every row is in the file of its split, at least once, or among those left out."""
    mix.main()
    came = list(shards.read("data/contamination"))
    written = {path.stem: ids(records.read(path)) for path in Path("data/mix").glob("*.jsonl")}
    assert written["train"].total() == MIX["rows"]
    for row in came:
        assert (row["id"] in written[row["split"]]) != (row["id"] in left("mix", "id"))
    check_counts("mix", len(came))


def check_audit() -> None:
    """Every row of the mix is written, whole or as windows, or rejected, as often as it is there."""
    audit.main()
    for name in audit.SPLITS:
        came = ids(records.read(f"data/mix/{name}.jsonl"))
        written = {row.get("origin", row["id"]) for row in records.read(f"data/audit/{name}.jsonl")}
        rejected = ids(row for row in rows_left("audit") if row["split"] == name)
        assert written.isdisjoint(rejected)
        assert written | rejected.keys() == came.keys()
        assert all(came[id] == times for id, times in rejected.items())
    assert metrics.read("reports/audit.json")["windows"], "no row was cut"
    check_counts("audit", sum(ids(records.read(f"data/mix/{name}.jsonl")).total() for name in audit.SPLITS))


def check_counts(stage: str, seen: int) -> None:
    counts = metrics.read(f"reports/{stage}.json")
    rejected = sum(number for name, number in counts.items() if name.startswith("rejected_"))
    assert (counts["seen"], counts["kept"] + rejected) == (seen, seen), stage


def rows_left(stage: str) -> list[Row]:
    return list(records.read(f"data/rejected/{stage}.jsonl"))


def left(stage: str, key: str) -> dict[str, str]:
    """Why each row left, by `key`; none of them twice."""
    rows = rows_left(stage)
    found = {row[key]: row["reason"] for row in rows}
    assert len(found) == len(rows)
    return found


def ids(rows: Iterable[Row]) -> Counter[str]:
    return Counter(row["id"] for row in rows)
