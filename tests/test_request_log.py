"""What is kept of requests has no personal identifiers, stays small on disk, and reaches Langfuse in its own form."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from temper import langfuse, records, request_log, traffic
from temper.masking import Allowed
from temper.records import Row
from temper.serving import Langfuse

SECRETS = (
    "jane.roe@example.org",
    "joe.doe@example.org",
    "415-555-2671",
    "4155552671",
    "Jane Roe",
    "AKIAIOSFODNN7EXAMPLE",
)


def request(id: str = "chatcmpl-1", text: str = "Hello", said: str = "Hi", **more: Any) -> Row:
    return {
        "kind": "request",
        "id": id,
        "time": 1_700_000_000.5,
        "model": "models/dpo",
        "revision": "abc",
        "path": "/v1/chat/completions",
        "request": {"messages": [{"role": "user", "content": text}], "temperature": 0.5, **more},
        "response": {"choices": [{"index": 0, "content": said, "finish_reason": "stop"}], "ended": ""},
        "status": 200,
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "latency": {"total": 2.0, "first_token": 0.5, "guard": 0.0},
        "guard": {"verdict": "allowed", "rule": ""},
    }


def feedback(id: str = "chatcmpl-1", **given: Any) -> Row:
    empty = {"thumbs": None, "score": None, "comment": None}
    return {"kind": "feedback", "id": id, "time": 1_700_000_001.0, **empty, **given}


PERSONAL = [
    request(
        "chatcmpl-1",
        "I am Jane Roe, write to jane.roe@example.org or call 415-555-2671. Key: AKIAIOSFODNN7EXAMPLE",
        '{"name": "call", "arguments": {"number": "4155552671"}}',
        tools=[{"type": "function", "function": {"name": "call", "description": "as jane.roe@example.org likes"}}],
        stop=["jane.roe@example.org"],
    ),
    feedback("chatcmpl-1", thumbs="down", comment="not what Jane Roe asked, mail jane.roe@example.org"),
    request("chatcmpl-2", "What is 2 + 2?", "4"),
]
KEYS = request(
    "chatcmpl-3",
    "Who is it?",
    tools=[
        {
            "type": "function",
            "function": {
                "name": "reach",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "jane.roe@example.org": {"phone": [4155552671]},
                        "joe.doe@example.org": {"enum": [7]},
                    },
                },
            },
        }
    ],
)


@contextmanager
def log(tmp_path: Path, *overrides: str, **environment: str) -> Iterator[int]:
    """The log's process, and the number of the pipe that it reads."""
    file = tmp_path / "params.yaml"
    file.write_text(composed([f"serve.log.folder={tmp_path}/logs", *overrides]))
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "commands.serve_log", str(file)]
    process = subprocess.Popen(command, stdin=reader, env=os.environ | environment)
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
        assert process.wait(60) == 0


def put(number: int, *found: Row) -> None:
    for record in found:
        os.write(number, json.dumps(record).encode() + b"\n")


def test_nothing_personal_reaches_the_disk(tmp_path: Path) -> None:
    with log(tmp_path) as writer:
        put(writer, *PERSONAL)
        os.write(writer, b'{"kind": "requ\n')
    file = tmp_path / "logs" / request_log.CURRENT
    text = file.read_text()
    assert not any(secret in text for secret in SECRETS)
    assert file.stat().st_mode & 0o077 == 0
    asked, judged, plain = records.read(file)
    assert asked["request"]["messages"][0]["content"].startswith(
        "I am <PERSON>, write to <EMAIL_ADDRESS> or call <PHONE_NUMBER>"
    )
    assert json.loads(asked["response"]["choices"][0]["content"])["arguments"] == {"number": "<PHONE_NUMBER>"}
    assert json.loads(asked["response"]["choices"][0]["content"])["name"] == "call"
    assert asked["request"]["tools"][0]["function"]["name"] == "call"
    assert asked["masked"]["EMAIL_ADDRESS"] == 1
    assert judged["comment"] == "not what <PERSON> asked, mail <EMAIL_ADDRESS>"
    assert (judged["id"], judged["thumbs"]) == ("chatcmpl-1", "down")
    assert plain == PERSONAL[2] | {"time": "2023-11-14T22:13:20.500Z"}


def test_keys_and_numbers_are_scrubbed_as_texts_are(tmp_path: Path) -> None:
    with log(tmp_path) as writer:
        put(writer, KEYS)
    file = tmp_path / "logs" / request_log.CURRENT
    assert not any(secret in file.read_text() for secret in SECRETS)
    (record,) = records.read(file)
    (tool,) = record["request"]["tools"]
    assert tool["function"]["name"] == "reach"
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"<EMAIL_ADDRESS>": {"phone": ["<PHONE_NUMBER>"]}, "<EMAIL_ADDRESS> 2": {"enum": [7]}},
    }


def test_a_record_that_cannot_be_scrubbed_is_kept_without_its_texts_and_takes_no_other_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = request("chatcmpl-4") | {
        "request": {"messages": "Jane Roe"},
        "guard": {"verdict": "x", "rule": "Jane Roe"},
    }
    with log(tmp_path) as writer:
        put(writer, PERSONAL[0], broken, PERSONAL[2])
    file = tmp_path / "logs" / request_log.CURRENT
    assert not any(secret in file.read_text() for secret in SECRETS)
    first, withheld, last = records.read(file)
    assert first["request"]["messages"][0]["content"].startswith("I am <PERSON>")
    assert last == PERSONAL[2] | {"time": "2023-11-14T22:13:20.500Z"}
    assert (withheld["id"], withheld["status"], withheld["unscrubbed"]) == ("chatcmpl-4", 200, "AttributeError")
    assert (withheld["request"], withheld["response"]["choices"]) == ({}, [])
    assert "chatcmpl-4: kept without its texts" in capfd.readouterr().err
    # What reads logs counts it, and learns nothing from it.
    found = traffic.read([file], None, Allowed((), ()))
    assert found.counts["left_out_unscrubbed"] == 1
    assert [one.id for one in found.exchanges] == ["chatcmpl-1", "chatcmpl-2"]
    # Langfuse gets the trace of it too.
    assert [event["type"] for event in langfuse.events(withheld)] == ["trace-create", "generation-create"]


@pytest.mark.parametrize("error", request_log.FAILURES)
def test_whatever_scrubbing_ends_in_no_record_is_lost(error: type[Exception]) -> None:
    def scrub(found: list[Row]) -> Iterator[Row]:
        for record in found:
            if record["comment"] == "bad":
                raise error.__new__(error)
            yield record

    given = [feedback(str(number), comment="bad" if number == 3 else "fine") for number in range(6)]
    kept = request_log.surely(given, scrub)
    assert [record["id"] for record in kept] == [record["id"] for record in given]
    assert [record["comment"] for record in kept] == ["fine", "fine", "fine", None, "fine", "fine"]
    assert kept[3]["unscrubbed"] == error.__name__


def test_what_is_masked_follows_conf(tmp_path: Path) -> None:
    with log(tmp_path, "pii@serve.log.pii=presidio") as writer:
        put(writer, PERSONAL[0])
    (record,) = records.read(tmp_path / "logs" / request_log.CURRENT)
    assert record["request"]["messages"][0]["content"].startswith("I am Jane Roe, write to <EMAIL_ADDRESS>")


def test_the_rest_of_a_record_is_as_it_was() -> None:
    value = {"a": [1, "x", {"type": "data:image/png;base64,AAAA", "c": None}], "seed": True, "name 0": 12345678}
    texts = list(request_log.strings(value))
    assert texts == ["a", "x", "<DATA>", "c", '{"name 0": 12345678}']
    same = request_log.replaced(value, iter(["A", "X", "Y", "A", '{"name 0": 12345678}']))
    assert same == {"A": [1, "X", {"type": "Y", "A": None}], "seed": True, "name 0": 12345678}


def test_a_full_file_is_put_aside_and_the_oldest_deleted(tmp_path: Path) -> None:
    files = request_log.Files(tmp_path / "logs", max_bytes=1000, max_files=2)
    for number in range(30):
        files.write([{"kind": "request", "number": number, "text": "x" * 200}])
    kept = sorted((tmp_path / "logs").glob("requests-*.jsonl"))
    assert len(kept) == 2
    assert all(file.stat().st_size <= 1000 for file in kept)
    numbers = [row["number"] for file in [*kept, tmp_path / "logs" / request_log.CURRENT] for row in records.read(file)]
    assert numbers == list(range(30 - len(numbers), 30))


class Ingestion(BaseHTTPRequestHandler):
    """A stand-in for Langfuse's ingestion API."""

    received: list[dict[str, Any]]
    refusals: list[int]
    errors: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = self.refusals.pop(0) if self.refusals else 207
        if status == 207:
            self.received.append({"path": self.path, "authorization": self.headers["authorization"], **body})
        answer = json.dumps(
            {"successes": [{"id": one["id"], "status": 201} for one in body["batch"]], "errors": self.errors}
        )
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def ingestion(*refusals: int, errors: Sequence[dict[str, Any]] = ()) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    received: list[dict[str, Any]] = []
    told = {"received": received, "refusals": list(refusals), "errors": list(errors)}
    handler = type("Handler", (Ingestion,), told)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{stub.server_port}", received
        stub.shutdown()


def test_traces_reach_langfuse_scrubbed_and_in_batches(tmp_path: Path) -> None:
    with ingestion() as (host, received):
        keys = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
        with log(tmp_path, f"serve.langfuse.host={host}", "serve.langfuse.seconds=0.2", **keys) as writer:
            put(writer, *PERSONAL)
    assert not any(secret in json.dumps(received) for secret in SECRETS)
    assert {one["path"] for one in received} == {"/api/public/ingestion"}
    assert received[0]["authorization"] == "Basic " + base64.b64encode(b"pk:sk").decode()
    assert len(received) < len(PERSONAL)
    events = [event for one in received for event in one["batch"]]
    assert len({event["id"] for event in events}) == len(events)
    kinds = [event["type"] for event in events]
    assert kinds == ["trace-create", "generation-create", "score-create", "trace-create", "generation-create"]
    generation, score = events[1]["body"], events[2]["body"]
    assert generation["traceId"] == score["traceId"] == events[0]["body"]["id"] == "chatcmpl-1"
    assert generation["usageDetails"] == {"input": 3, "output": 2, "total": 5}
    assert generation["startTime"] == "2023-11-14T22:13:18.500000+00:00"
    assert generation["completionStartTime"] == "2023-11-14T22:13:19+00:00"
    assert generation["modelParameters"] == {"temperature": 0.5}
    assert (score["name"], score["value"]) == ("thumbs", 0)


@pytest.mark.parametrize(("refusals", "taken"), [((503, 429), 1), ((400,), 0)], ids=["for a while", "for good"])
def test_what_langfuse_refuses(
    refusals: tuple[int, ...], taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(langfuse, "BACKOFF", 0.01)
    monkeypatch.setenv("PK", "pk")
    monkeypatch.setenv("SK", "sk")
    with ingestion(*refusals) as (host, received):
        sender = langfuse.Sender(Langfuse(host, "PK", "SK", 10, 0.05))
        sender.put(request() | {"time": "2023-11-14T22:13:20.500Z"})
        sender.close()
    assert len(received) == taken
    assert sender.dropped == (0 if taken else 2)
    assert ("dropped" in capsys.readouterr().err) is not bool(taken)


def test_events_that_langfuse_refuses_of_a_batch_that_it_takes_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PK", "pk")
    monkeypatch.setenv("SK", "sk")
    with ingestion(errors=[{"id": "1", "status": 400, "message": "no"}]) as (host, received):
        sender = langfuse.Sender(Langfuse(host, "PK", "SK", 10, 0.05))
        sender.put(request() | {"time": "2023-11-14T22:13:20.500Z"})
        sender.close()
    assert (len(received), sender.dropped) == (1, 1)
    assert "the first with status 400): 1 events dropped" in capsys.readouterr().err


def test_a_langfuse_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langfuse, "BACKOFF", 0.01)
    monkeypatch.setattr(langfuse, "PENDING", 5)
    monkeypatch.setenv("PK", "pk")
    monkeypatch.setenv("SK", "sk")
    sender = langfuse.Sender(Langfuse("http://127.0.0.1:9", "PK", "SK", 1, 0.01))
    started = time.monotonic()
    for _ in range(100):
        sender.put(request() | {"time": "2023-11-14T22:13:20.500Z"})
    assert time.monotonic() - started < 1
    sender.close()
    assert sender.dropped >= 100
