"""Levels of load: every loop in each repeat, on a server that remembers no prompt, and what the server says of it."""

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from temper import levels, load
from temper.levels import Load
from tests.test_bench import RAW, ROWS


def settings(concurrency: list[int], requests: list[int], **changed: Any) -> Load:
    given: dict[str, Any] = {"rates": [0.5], "arrivals": 3, "max_tokens": 3, "warmup": 2, "repeats": 2} | changed
    return Load(concurrency, requests, **given)


class Counting(BaseHTTPRequestHandler):
    """A server that empties its cache and counts as vLLM does: 0.1 s of waiting for each request since the start."""

    resets = 0
    requests = 0

    def do_POST(self) -> None:
        type(self).resets += 1
        self.answer(b'{"success": true}')

    def do_GET(self) -> None:
        series = "vllm:request_queue_time_seconds"
        count = self.requests
        lines = [f'{series}_bucket{{le="0.3"}} {count}', f'{series}_bucket{{le="+Inf"}} {count}']
        self.answer("\n".join([*lines, f"{series}_sum {count / 10}", f"{series}_count {count}"]).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Counting.resets = Counting.requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_loop_runs_in_each_repeat_and_open_ones_at_a_share_of_the_fastest(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run(_url: str, _model: str, chats: list[Any], **how: Any) -> dict[str, Any]:
        asked.append(how | {"chats": [chat[0]["content"] for chat in chats], "resets": Counting.resets})
        Counting.requests += len(chats)
        # Each closed loop twice as fast as the one before.
        rate = 2.0 * (how.get("concurrency") or 1)
        same = {key: RAW[key] for key in ("failed", "errors", "duration", "itls")}
        lists = {key: [RAW[key][0]] * len(chats) for key in ("input_lens", "ttfts", "latencies", "output_lens")}
        totals = {"completed": len(chats), "total_output_tokens": 3 * len(chats)}
        return same | lists | totals | {"request_throughput": rate, "output_throughput": 3 * rate}

    monkeypatch.setattr(load, "run", run)
    values = levels.measured(url, "m", ROWS, settings([1, 4], [2, 4]), 17, "bench.bf16")

    warming, *measured = asked
    assert warming["concurrency"] == 2
    assert [one["concurrency"] for one in measured] == [1, 4, None] * 2
    assert [one["rate"] for one in measured] == [math.inf, math.inf, 4.0] * 2
    # Another draw in each repeat, and nothing of an earlier one is remembered.
    assert measured[1]["chats"] != measured[4]["chats"]
    assert [one["resets"] for one in measured] == [1, 2, 3, 4, 5, 6]
    assert (values["c1_requests"], values["c4_requests"], values["open50_requests"]) == (4, 8, 6)
    assert values["open50_rate"] == 4.0
    assert values["c4_queue_mean_ms"] == pytest.approx(100)
    assert values["c4_queue_p99_below_ms"] == 300


@pytest.mark.parametrize(("concurrency", "requests"), [([1, 8], [16]), ([0], [4]), ([8], [4]), ([], [])])
def test_levels_that_cannot_be_measured_are_refused(concurrency: list[int], requests: list[int]) -> None:
    with pytest.raises(SystemExit, match=r"^bench\.bf16: .*conf/bench$"):
        settings(concurrency, requests).loops("bench.bf16")


@pytest.mark.parametrize("changed", [{"repeats": 0}, {"rates": [0.0]}, {"max_tokens": 0}])
def test_so_are_loops_of_nothing(changed: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"^bench\.bf16: .*above zero"):
        settings([1], [2], **changed).loops("bench.bf16")


def test_a_server_without_the_route_has_nothing_to_forget(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    def missing(self: Counting) -> None:
        self.send_error(404)

    monkeypatch.setattr(Counting, "do_POST", missing)
    levels.forget(url)
