"""No record is lost to Langfuse for its length, nor for having words in the place of a score."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from temper import langfuse
from temper.records import Row
from temper.serving import Langfuse
from tests.test_request_log import Ingestion, feedback, ingestion, request

STAMP = {"time": "2023-11-14T22:13:20.500Z"}


@contextmanager
def sender(host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[langfuse.Sender]:
    monkeypatch.setenv("PK", "pk")
    monkeypatch.setenv("SK", "sk")
    found = langfuse.Sender(Langfuse(host, "PK", "SK", 50, 0.2))
    yield found
    found.close()


def ids(received: list[Row]) -> list[str]:
    return [event["body"]["id"] for one in received for event in one["batch"]]


def test_long_records_are_sent_in_batches_of_bounded_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langfuse, "MOST_BYTES", 10_000)
    sizes: list[int] = []
    took = Ingestion.do_POST

    def noted(self: Ingestion) -> None:
        sizes.append(int(self.headers["content-length"]))
        took(self)

    monkeypatch.setattr(Ingestion, "do_POST", noted)
    with ingestion() as (host, received), sender(host, monkeypatch) as sending:
        for number in range(10):
            sending.put(request(f"chatcmpl-{number}", "é\n" * 500) | STAMP)
        sending.put(request("chatcmpl-long", "x" * 20_000) | STAMP)
    assert len(set(ids(received))) == 22
    assert sending.dropped == 0
    assert max(size for size in sizes if size < 20_000) <= 10_000
    assert len(sizes) < 22, "still more than one event at a time"


def test_a_batch_that_is_too_large_for_a_server_is_sent_in_halves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    took = Ingestion.do_POST

    def limited(self: Ingestion) -> None:
        length = int(self.headers["content-length"])
        self.refusals[:] = [413] if length > 4000 else []
        took(self)

    monkeypatch.setattr(Ingestion, "do_POST", limited)
    with ingestion() as (host, received), sender(host, monkeypatch) as sending:
        for number in range(8):
            sending.put(request(f"chatcmpl-{number}", "x" * (9000 if number == 3 else 500)) | STAMP)
    assert sorted(ids(received)) == sorted(
        f"chatcmpl-{number}{part}" for number in range(8) if number != 3 for part in ("", "-generation")
    )
    assert sending.dropped == 2
    assert "status 413): 1 events dropped" in capsys.readouterr().err


def test_a_comment_alone_is_an_event_and_beside_a_score_is_its() -> None:
    (event,) = langfuse.events(feedback(comment="wrong year") | STAMP)
    assert event["type"] == "score-create"
    expected = {"traceId": "chatcmpl-1", "name": "comment", "value": "given", "dataType": "CATEGORICAL"}
    assert event["body"] == expected | {"comment": "wrong year"}
    scores = langfuse.events(feedback(comment="wrong year", thumbs="down", score=0.5) | STAMP)
    assert [(one["body"]["name"], one["body"]["value"], one["body"]["comment"]) for one in scores] == [
        ("score", 0.5, "wrong year"),
        ("thumbs", 0, "wrong year"),
    ]
    assert langfuse.events(feedback() | STAMP) == []
