"""From a user's own file to rows, and what happens to the rows that are not fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from scripts import ingest
from temper import calls, chat, metrics, mismatch, record, records

VERBS = ["paint", "measure", "translate", "cook", "repair", "forecast", "borrow", "deliver", "compose", "weigh"]
NOUNS = ["fence", "river", "poem", "lentils", "bicycle", "storm", "novel", "parcel", "symphony", "melon"]


def words(_: Path) -> Callable[[list[dict[str, str]]], int]:
    """Stands in for the base model's tokenizer, which a test without models/base has not."""
    return lambda messages: sum(len(message["content"].split()) for message in messages)


def line(number: int, answer: str | None = None) -> dict[str, Any]:
    tool = {"name": f"{VERBS[number]}_{NOUNS[number]}", "parameters": {"properties": {"size": {"type": "integer"}}}}
    call = {"name": tool["name"], "arguments": {"size": number}}
    user = f"Please {VERBS[number]} a {NOUNS[number]} sized {number}"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer or json.dumps(call)}]
    return {"messages": messages, "tools": [tool]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that runs the stage over raw/*.jsonl in an empty tree and returns its metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat, "counter", words)
    Path("raw").mkdir()

    def stage(**settings: Any) -> dict[str, Any]:
        source = {"kind": "file", "id": "raw/*.jsonl", "revision": None, "sha256": None, "format": "messages"}
        section = {
            "sources": [source | {"files": [], "licence": "cc0-1.0"} | settings.pop("source", {})],
            "max_tokens": 100,
            "null_share": 0.0,
            "bad_rows": "fail",
            "limit": None,
            "seed": 17,
        }
        OmegaConf.save({"ingest": section | settings}, "params.yaml")
        ingest.main()
        return metrics.read("reports/ingest.json")

    return stage


def write(*lines: Any, name: str = "chats") -> None:
    texts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    Path(f"raw/{name}.jsonl").write_bytes(b"\n".join(texts) + b"\n")


def test_own_rows_are_read_in_order(run: Callable[..., dict[str, Any]]) -> None:
    write(line(1), line(0), name="b")
    write(line(2), name="a")
    assert run()["kept"] == 3
    rows = list(records.read("data/ingest.jsonl"))
    assert [row["gold"]["arguments"]["size"] for row in rows] == [[2], [1], [0]]
    assert [row["source"] for row in rows] == ["a.jsonl", "b.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b'{"messages": [', "not JSON"),
        (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
        (b"[1]", "a list, where each line must be one JSON object"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "roles are assistant"),
        ({"messages": [{"role": "user", "content": ""}]}, "a user turn without content"),
    ],
)
def test_a_bad_line_is_named_or_set_aside(run: Callable[..., dict[str, Any]], bad: Any, found: str) -> None:
    write(line(0), bad, line(1))
    with pytest.raises(SystemExit) as refusal:
        run()
    message = str(refusal.value)
    assert message.startswith(f"raw/chats.jsonl:2: {found}")
    assert message.endswith("set ingest.bad_rows to reject")
    assert "\n" not in message
    assert not Path("data").exists()

    found_metrics = run(bad_rows="reject")
    assert (found_metrics["seen"], found_metrics["kept"]) == (3, 2)
    [left] = records.read("data/rejected/ingest.jsonl")
    assert left["place"] == "raw/chats.jsonl:2"
    assert found in left["detail"]
    assert found_metrics[f"rejected_{left['reason']}"] == 1


def test_a_source_that_is_not_there_or_empty_or_changed(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(SystemExit, match=r"^raw/\*\.jsonl: no such file: correct `id`"):
        run()
    Path("raw/none.jsonl").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"^raw/none\.jsonl: empty"):
        run(bad_rows="reject")
    write(line(0), name="none")
    with pytest.raises(SystemExit, match=r"^raw/none\.jsonl: sha256 is [0-9a-f]{64}, conf/data expects 00"):
        run(source={"id": "raw/none.jsonl", "sha256": "0" * 64})
    with pytest.raises(SystemExit, match="no reader for 'file/parquet': choose one of wheel/bfcl, file/messages"):
        run(source={"format": "parquet"})


def test_a_file_whose_edits_dvc_would_not_notice_is_refused(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0))
    Path("elsewhere.jsonl").write_bytes(Path("raw/chats.jsonl").read_bytes())
    with pytest.raises(SystemExit, match=r"^elsewhere\.jsonl: outside raw/"):
        run(source={"id": "elsewhere.jsonl"})
    digest = hashlib.sha256(Path("elsewhere.jsonl").read_bytes()).hexdigest()
    assert run(source={"id": "elsewhere.jsonl", "sha256": digest})["kept"] == 1


def test_settings_that_make_no_sense(run: Callable[..., dict[str, Any]]) -> None:
    write(line(0))
    with pytest.raises(SystemExit, match=r"ingest\.bad_rows is 'skip': choose fail or reject"):
        run(bad_rows="skip")
    with pytest.raises(SystemExit, match=r"ingest\.null_share is 1\.0"):
        run(null_share=1.0)
    with pytest.raises(SystemExit, match="every row was rejected"):
        run(max_tokens=1)


def test_long_rows_and_rows_beyond_the_limit_are_rejected(run: Callable[..., dict[str, Any]]) -> None:
    long = line(3)
    long["messages"][0]["content"] += " very" * 100
    write(line(0), long, line(1), line(2))
    found = run(limit=2)
    assert (found["seen"], found["kept"], found["rejected_too_long"], found["rejected_limit"]) == (4, 2, 1, 1)
    assert found["tokens_max"] <= 100


def test_missing_nulls_are_requests_under_tools_that_cannot_serve_them(run: Callable[..., dict[str, Any]]) -> None:
    write(*(line(number) for number in range(10)), line(3, "null"))
    found = run(null_share=0.5)
    rows = list(records.read("data/ingest.jsonl"))
    made = [row for row in rows if row["category"] == mismatch.CATEGORY]
    assert found["null_share"] == 0.5
    assert found["seen"] == found["kept"] == len(rows) == 20
    assert len({record.request(row) for row in made}) == len(made) == 9
    for row in made:
        [verb] = [verb for verb in VERBS if verb in record.request(row)]
        assert record.response(row) == "null"
        assert row["gold"] is None
        assert verb not in row["tools"][0]["name"]
        assert row["messages"][0]["content"] == calls.system_prompt(row["tools"])


def test_the_seed_chooses_the_made_rows(run: Callable[..., dict[str, Any]]) -> None:
    write(*(line(number) for number in range(10)))

    def made(seed: int) -> bytes:
        run(null_share=0.3, seed=seed)
        return Path("data/ingest.jsonl").read_bytes()

    assert made(1) == made(1)
    assert made(1) != made(2)
