"""What goes wrong around a server is told from what does not, on a stand-in behind the real gateway; and once on vLLM."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import serve_callers, serve_faults, serve_start
from benchmarks.serve_callers import Reply, Target
from temper import server
from temper.lossless import Answer
from temper.server import Endpoint
from tests import serve_stand_in
from tests.test_gateway import shipped
from tests.test_serve import vllm

LIMITS: dict[str, Any] = {"concurrent": 2, "queued": 2, "body_seconds": 0.5, "write_seconds": 0.5, "max_tokens": 200}
CHATS = [[{"role": "user", "content": f"say {word} again"}] for word in ("one", "two", "three", "four")]


def started(*more: str, limits: dict[str, Any] = LIMITS) -> Endpoint:
    port = server.chosen_port(None)
    return Endpoint([sys.executable, "-m", "tests.serve_stand_in", str(port), json.dumps(limits), *more], port)


def target(url: str) -> Target:
    return Target(url, "temper", dataclasses.replace(shipped().limits, **LIMITS))


@pytest.fixture(scope="module")
def there() -> Iterator[Target]:
    with started() as endpoint:
        yield target(endpoint.url)


@pytest.mark.parametrize("name", serve_faults.FAULTS)
def test_a_server_that_holds_is_found_to_hold(there: Target, name: str) -> None:
    found = asyncio.run(serve_faults.FAULTS[name](there, CHATS, 40))
    expected: dict[str, dict[str, Any]] = {
        "bad": {"bad_wrong_status": ""},
        "queue": {"queue_asked": 8, "queue_without_time": 0, "queue_other": "", "queue_recovered": True},
        "readers": {"readers_others_failed": "", "readers_places_kept": 0, "readers_recovered": True},
        "senders": {"senders_late": 5, "senders_other": "", "senders_others_failed": ""},
        "connections": {"connections_other": "", "connections_healthy": True},
    }
    assert expected[name].items() <= found.items()
    if name == "queue":
        assert 0 < found["queue_refused"] < 8
    if name == "connections":
        assert found["connections_answered"] + found["connections_refused"] == 40


def test_a_status_that_is_not_the_right_one_is_named(there: Target) -> None:
    lower = dataclasses.replace(there.limits, max_tokens=100)  # the server takes 200
    found = asyncio.run(serve_faults.bad(Target(there.url, "temper", lower), CHATS, 0))
    assert found["bad_wrong_status"] == "too many tokens 200"


def test_a_queue_that_takes_all_is_no_queue() -> None:
    with started(limits=LIMITS | {"queued": 1000}) as endpoint:
        found = asyncio.run(serve_faults.queue(target(endpoint.url), CHATS, 0))
    assert found["queue_refused"] == 0


def test_answers_under_load_are_those_that_each_gets_alone(there: Target) -> None:
    loaded = asyncio.run(serve_faults.under_load(there, CHATS, 3, 0.5, lambda: 1.0))
    values = loaded.values()
    assert values["load_answers"] >= 3
    assert (values["load_failed"], values["load_cut"], values["load_differing"]) == (0, 0, 0)
    assert values["load_memory_growth"] == 0


def test_an_answer_that_is_anothers_is_wrong() -> None:
    with started("confused") as endpoint:
        loaded = asyncio.run(serve_faults.under_load(target(endpoint.url), CHATS, 3, 0.5, lambda: 1.0))
    assert loaded.differing
    # Without tokens there is nothing to weigh: all count.
    assert serve_faults.adjudicated(None, loaded.differing) == len(loaded.differing)  # type: ignore[arg-type]


def test_one_that_differs_by_a_tie_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's answer depends on the batch in the last bits."""
    tie, wrong, unknown = (Reply(200, answer=answer) for answer in (Answer([1], [2]), Answer([1], [3]), None))
    monkeypatch.setattr(serve_start, "bare", lambda served: started())
    monkeypatch.setattr(
        serve_faults.lossless, "gaps", lambda _client, _model, one: [0.0, 0.1 if one.tokens == [2] else 9]
    )
    served: Any = argparse.Namespace(cfg=argparse.Namespace(name="temper"))
    assert serve_faults.adjudicated(served, [tie, tie]) == 0
    assert serve_faults.adjudicated(served, [tie, wrong, wrong, unknown]) == 3


def test_memory_is_flat_when_the_last_quarter_is_as_the_second() -> None:
    assert serve_faults.growth([1.0] * 5 + [2.0] * 15) == 0  # caches fill in the first
    assert serve_faults.growth([1.0 + place / 100 for place in range(100)]) == pytest.approx(0.5 / 1.37, abs=0.01)
    assert serve_faults.growth([1.0, 2.0]) == 0


STREAM = b'data: {"prompt_token_ids": [5], "choices": [{"delta": {"content": "a"}, "token_ids": [7]}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop", "token_ids": [2]}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (STREAM + END + DONE, True),
        (STREAM + END, False),
        (STREAM + DONE, False),
        (STREAM + END[:20], False),
        (STREAM + b'data: {"error": {"message": "engine died"}}\n\n' + END + DONE, False),
        (b"", False),
    ],
)
def test_a_stream_is_whole_when_the_server_ended_it(body: bytes, whole: bool) -> None:
    text, is_whole, answer = serve_callers.streamed(body)
    assert is_whole == whole
    if whole:
        assert (text, answer) == ("a", Answer([5], [7, 2]))


def test_a_body_that_is_no_answer_is_none() -> None:
    assert serve_callers.complete(b'{"error": {}}') == ("", False, None)
    assert serve_callers.complete(b"<html>")[1] is False


@pytest.mark.parametrize(("tokens", "whole", "told"), [(9, True, True), (8, True, False), (9, False, False)])
def test_only_an_answer_of_all_its_tokens_had_ended_before_the_kill(tokens: int, whole: bool, told: bool) -> None:
    reply = Reply(200, whole=whole, answer=Answer([1], [7] * tokens))
    assert serve_faults.reached_limit(reply, 9) == told
    assert not serve_faults.reached_limit(Reply(200, whole=True), 9)


def test_all_of_it_ends_in_one_report_with_what_failed() -> None:
    """The worker killed under open streams too: none looks whole, and the server that is started again answers."""
    given = argparse.Namespace(minutes=0.02, callers=3, connections=20)
    served: Any = argparse.Namespace(cfg=argparse.Namespace(name="temper", limits=target("").limits))
    found = serve_faults.measured(served, started, CHATS, given)
    # A second is too short for memory to settle.
    assert [one for one in serve_faults.failures(found) if "memory" not in one] == [], found
    assert (found["kill_taken_for_whole"], found["kill_ended_status"], found["kill_recovered"]) == (0, 1, True)
    assert 0 < found["kill_recovery_seconds"] < 60
    broken = found | {"load_wrong": 2, "queue_refused": 0, "load_memory_growth": 0.2, "senders_other": "3 × 0"}
    said = ["load_wrong 2", "senders_other 3 × 0", "not queue_refused", "load_memory_growth 20.0%"]
    assert serve_faults.failures(broken) == said


def test_more_connections_than_files_are_refused_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_faults.resource, "getrlimit", lambda _: (64, 100))
    with pytest.raises(SystemExit, match=r"101 files wanted, 100 allowed: lower --connections"):
        serve_faults.allow_files(101)


def test_the_stand_in_speaks_http(there: Target) -> None:
    with httpx.Client(base_url=there.url, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        reply = client.post("/v1/chat/completions", json=there.body(CHATS[0]))
    assert reply.json()["choices"][0]["message"]["content"] == "say one again"
    assert serve_stand_in.wrong({"model": "other"}) == 404


@pytest.mark.engine
def test_vllm_behind_the_gateway_holds(tmp_path: Path) -> None:
    limits = ["serve.limits.max_tokens=1500", "serve.limits.body_seconds=2", "serve.limits.write_seconds=5"]
    overrides = [*vllm(tmp_path), *limits, f"serve.log.folder={tmp_path}/logs"]
    given = argparse.Namespace(minutes=0.1, callers=6, connections=100)
    with serve_start.prepared(overrides) as served:
        found = serve_faults.measured(served, partial(serve_start.ours, overrides), CHATS, given)
    # Six seconds are too few for a server's memory to settle.
    assert [one for one in serve_faults.failures(found) if "memory" not in one] == [], found
