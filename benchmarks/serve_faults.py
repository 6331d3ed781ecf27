"""Load on `make serve`, and then everything that goes wrong around a server: it must give no wrong answer, say why, and come back.

    python -m benchmarks.serve_faults [--minutes 10] [--callers 16] [--connections 1000] [OVERRIDE of conf/ …]

Writes reports/benchmarks/serve_faults.json; exits with what failed, when something did.

load         Test rows, streamed and whole, by `--callers` at once for `--minutes`. Each answer is held against the one that its row
             gets when nobody else asks; vLLM's sums depend on the batch, so one that differs is then held against the model's own
             choices (temper/lossless.py). Memory is read all the while.
bad          Requests that are no JSON, of wrong types, too long for the context, larger than allowed: each has its status.
queue        Twice as many at once as may run and wait: 200, or 429 with when to come again.
readers      Callers who ask for a stream and read nothing: others are answered meanwhile, and their places are free afterwards.
senders      Callers who never send the last bytes of a request: 408, and others are answered meanwhile.
connections  So many open at once, each of which then asks: 200 or 429.
kill         The process that computes is killed under open streams: none may look like a whole answer. The server is started again
             as a supervisor would, when it has ended; the time until it answers is measured.
"""

import argparse
import asyncio
import itertools
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import serve_start
from benchmarks.serve_callers import (
    PATH,
    PATIENCE,
    Reply,
    Target,
    answers,
    ask,
    error_of,
    opened,
    request,
    status_of,
    statuses,
)
from commands.serve import Served
from temper import hardware, load, lossless, metrics, scrape
from temper.load import Chat
from temper.lossless import Answer
from temper.server import Endpoint

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "reports/benchmarks/serve_faults.json"
ROWS = REPOSITORY / "data/mix/test.jsonl"
CHATS = 48  # different ones
SEED = 17
TIE = 0.25  # nats; see temper/lossless.py
FLAT = 0.05  # of its memory that a server may gain under load
STREAMS = 8  # open when the engine is killed
EXTRA_FILES = 256  # that this process has open besides connections
LOG = "commands.serve_log"
# What must not have happened, and what must have, by names of the report.
NONE = (
    *("load_wrong", "load_failed", "load_cut", "bad_wrong_status", "queue_other", "queue_without_time"),
    *("readers_others_failed", "readers_places_kept", "senders_other", "senders_others_failed"),
    *("connections_other", "kill_taken_for_whole"),
)
HELD = (
    "senders_late",
    "queue_refused",
    "queue_recovered",
    "readers_recovered",
    "connections_healthy",
    "kill_streams",
    "kill_recovered",
)

Values = dict[str, Any]


def main() -> None:
    arguments = parsed()
    os.chdir(REPOSITORY)
    if not ROWS.is_file():
        raise SystemExit(f"{ROWS}: the rows of the default job are missing: run `make repro` first")
    allow_files(arguments.connections + EXTRA_FILES)
    chats = load.prompts(load.rows(ROWS), CHATS, SEED)
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
        overrides = [*arguments.overrides, f"serve.log.folder={folder}/logs"]
        with serve_start.prepared(overrides) as served:
            found = measured(served, partial(serve_start.ours, overrides), chats, arguments)
    about = {"machine": str(hardware.found()), "command": f"python -m benchmarks.serve_faults {' '.join(sys.argv[1:])}"}
    metrics.write(OUT, found | about)
    for key in sorted(found):
        print(f"{key:40} {found[key]}")
    if found["failed"]:
        raise SystemExit(f"benchmarks.serve_faults: failed: {found['failed']}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of load")
    parser.add_argument("--callers", type=int, default=16, help="of the load")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("overrides", nargs="*", help="of conf/, as of `make serve`")
    return parser.parse_args()


def measured(served: Served, ours: Callable[[], Endpoint], chats: list[Chat], arguments: argparse.Namespace) -> Values:
    found: Values = {}
    with ours() as endpoint:
        target = Target(endpoint.url, served.cfg.name, served.cfg.limits)
        seconds, callers = 60 * arguments.minutes, arguments.callers
        print(f"  load: {arguments.minutes:g} minutes", flush=True)
        loaded = asyncio.run(under_load(target, chats, callers, seconds, endpoint.memory_gb))
        found |= loaded.values() | {"load_minutes": arguments.minutes, "load_callers": callers}
        for name, fault in FAULTS.items():
            print(f"  {name}", flush=True)
            found |= asyncio.run(fault(target, chats, arguments.connections))
        found |= killed(endpoint, target, ours, chats)
    wrong = adjudicated(served, loaded.differing)
    found |= {"load_wrong": wrong, "connections": arguments.connections}
    return found | {"failed": ", ".join(failures(found))}


def failures(found: Values) -> list[str]:
    """What did not hold, by its name in the report."""
    failed = [f"{name} {found[name]}" for name in NONE if found[name]]
    failed += [f"not {name}" for name in HELD if not found[name]]
    if found["load_memory_growth"] > FLAT:
        failed.append(f"load_memory_growth {found['load_memory_growth']:.1%}")
    return failed


@dataclass
class Loaded:
    replies: list[Reply]
    differing: list[Reply]
    """Whole ones whose text is not that of the same chat asked alone."""
    memory_gb: list[float]
    seconds: float

    def values(self) -> Values:
        good = [one for one in self.replies if one.status == 200 and one.whole]
        latencies = [one.seconds for one in good]
        return {
            "load_answers": len(good),
            "load_failed": sum(one.status != 200 for one in self.replies),
            "load_cut": sum(one.status == 200 and not one.whole for one in self.replies),
            "load_differing": len(self.differing),
            "load_requests_per_second": len(good) / self.seconds,
            "load_e2e_p50_ms": 1000 * load.percentile(latencies, 50),
            "load_e2e_p99_ms": 1000 * load.percentile(latencies, 99),
            "load_memory_gb": statistics.median(self.memory_gb),
            "load_memory_growth": growth(self.memory_gb),
        }


async def under_load(
    target: Target, chats: list[Chat], callers: int, seconds: float, memory_gb: Callable[[], float]
) -> Loaded:
    """Ask for `seconds`, each of `callers` the next chat as soon as it has an answer, every other one streamed."""
    async with target.client() as client:
        alone = [(await ask(client, target.body(chat))).text for chat in chats]
        loaded, numbers = Loaded([], [], [], seconds), itertools.count()
        ending = time.monotonic() + seconds

        async def call() -> None:
            while time.monotonic() < ending:
                number = next(numbers)
                place = number % len(chats)
                reply = await ask(client, target.body(chats[place], stream=bool(number // len(chats) % 2)))
                loaded.replies.append(reply)
                if reply.whole and reply.status == 200 and reply.text != alone[place]:
                    loaded.differing.append(reply)

        async def watch() -> None:
            while True:
                loaded.memory_gb.append(await asyncio.to_thread(memory_gb))
                await asyncio.sleep(seconds / 200)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(call() for _ in range(callers)))
        watching.cancel()
    return loaded


def growth(memory: list[float]) -> float:
    """Of the last quarter over the second: the first is still filling caches."""
    quarter = len(memory) // 4
    if not quarter:
        return 0.0
    before, after = (statistics.median(memory[place * quarter : (place + 1) * quarter]) for place in (1, 3))
    return after / before - 1


def adjudicated(served: Served, differing: list[Reply]) -> int:
    """How many answers that were others than alone are not the model's own choices either.

    llama.cpp answers one at a time and always alike, so there all of them are wrong.
    """
    answers = {(tuple(one.answer.prompt), tuple(one.answer.tokens)) for one in differing if one.answer}
    if not answers:
        return len(differing)
    with (
        serve_start.bare(served) as endpoint,
        httpx.Client(base_url=endpoint.url, timeout=600, trust_env=False) as client,
    ):
        judge = partial(lossless.gaps, client, served.cfg.name)
        wrong = {one for one in answers if max(judge(Answer(*map(list, one))), default=0.0) > TIE}
    unknown = sum(one.answer is None for one in differing)
    return unknown + sum(
        (tuple(one.answer.prompt), tuple(one.answer.tokens)) in wrong for one in differing if one.answer
    )


async def bad(target: Target, chats: list[Chat], _connections: int) -> Values:
    limits, good = target.limits, target.body(chats[0])
    long = [{"role": "user", "content": "word " * (limits.body_bytes // 8)}]
    cases: list[tuple[str, int, bytes | dict[str, Any]]] = [
        ("no JSON", 400, b'{"model": '),
        ("a list", 400, b"[1, 2]"),
        ("not UTF-8", 400, b'{"model": "\xff"}'),
        ("nested", 400, b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ("nothing", 400, b""),
        ("no messages", 400, {"model": target.model}),
        ("messages of text", 400, good | {"messages": "Hi"}),
        ("an unknown role", 400, good | {"messages": [{"role": "robot", "content": 1}]}),
        ("temperature of text", 400, good | {"temperature": "hot"}),
        ("temperature below zero", 400, good | {"temperature": -1}),
        ("too many tokens", 400, good | {"max_tokens": limits.max_tokens + 1}),
        ("too many answers", 400, good | {"n": limits.choices + 1}),
        ("longer than the context", 400, good | {"messages": long}),
        ("another model", 404, good | {"model": "other"}),
        ("larger than allowed", 413, b" " * (limits.body_bytes + 1)),
    ]
    wrong = {}
    async with target.client() as client:
        for name, status, body in cases:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            # As JSON, or the engine would refuse each for being of another kind.
            reply = await client.post(PATH, content=content, headers={"content-type": "application/json"})
            if reply.status_code != status or not error_of(reply):
                wrong[name] = reply.status_code
        alive = (await ask(client, good)).status == 200
    told = ", ".join(f"{name} {status}" for name, status in wrong.items())
    return {"bad_requests": len(cases), "bad_wrong_status": told or ("" if alive else "no answer afterwards")}


async def queue(target: Target, chats: list[Chat], _connections: int) -> Values:
    count = 2 * (target.limits.concurrent + target.limits.queued)
    async with target.client() as client:
        bodies = (target.body(chats[number % len(chats)], ignore_eos=True) for number in range(count))
        asked = (ask(client, body) for body in bodies)
        replies = await asyncio.gather(*asked)
        recovered = await answers(client, target, chats[0])
    refused = [reply for reply in replies if reply.status == 429]
    return {
        "queue_asked": count,
        "queue_refused": len(refused),
        "queue_without_time": sum("retry-after" not in reply.headers for reply in refused),
        "queue_other": statuses(replies, {200, 429}),
        "queue_recovered": recovered,
    }


async def readers(target: Target, chats: list[Chat], _connections: int) -> Values:
    """Each takes a place of those that may run, and reads no more than its first bytes."""
    long = target.body(chats[0], stream=True, max_tokens=target.limits.max_tokens, ignore_eos=True)
    # A quarter of the places that may run.
    count = max(1, target.limits.concurrent // 4)
    slow = [(await opened(target, few_bytes=True))[1] for _ in range(count)]
    for writer in slow:
        writer.write(request(target, long))
        await writer.drain()
    async with target.client() as client:
        started = time.monotonic()
        replies = [await ask(client, target.body(chat)) for chat in chats[:4]]
        seconds = (time.monotonic() - started) / len(replies)
        for writer in slow:
            writer.close()
        recovered = await answers(client, target, chats[0])
    kept = await emptied(target)
    return {
        "readers": count,
        "readers_others_failed": statuses(replies, {200}),
        "readers_others_seconds": seconds,
        "readers_places_kept": kept,
        "readers_recovered": recovered,
    }


async def senders(target: Target, chats: list[Chat], _connections: int) -> Values:
    """One more than may be answered and wait."""
    count = target.limits.concurrent + target.limits.queued + 1
    whole = request(target, target.body(chats[0]))
    open_ = [await opened(target) for _ in range(count)]
    for _, writer in open_:
        writer.write(whole[:-10])
        await writer.drain()
    async with target.client() as client:
        replies = await asyncio.gather(*(ask(client, target.body(chat)) for chat in chats[:2]))
    found = await asyncio.gather(*(status_of(reader, target.limits.body_seconds + 10) for reader, _ in open_))
    for _, writer in open_:
        writer.close()
    other = Counter(status for status in found if status != 408)
    told = ", ".join(f"{number} × {status}" for status, number in other.items())
    return {
        "senders": count,
        "senders_late": found.count(408),
        "senders_other": told,
        "senders_others_failed": statuses(replies, {200}),
    }


async def connections(target: Target, chats: list[Chat], count: int) -> Values:
    """All are open before the first one asks."""
    pairs = await asyncio.gather(*(opened(target) for _ in range(count)))
    asked = [request(target, target.body(chats[number % len(chats)], max_tokens=4)) for number in range(count)]
    started = time.monotonic()
    for (_, writer), body in zip(pairs, asked, strict=True):
        writer.write(body)
    async with target.client() as client:
        healthy, *found = await asyncio.gather(
            healthy_within(client), *(status_of(reader, PATIENCE) for reader, _ in pairs)
        )
        seconds = time.monotonic() - started
        for _, writer in pairs:
            writer.close()
        recovered = await answers(client, target, chats[0])
    counted = Counter(found)
    other = {status: number for status, number in counted.items() if status not in (200, 429)}
    return {
        "connections_answered": counted[200],
        "connections_refused": counted[429],
        "connections_other": ", ".join(f"{number} × {status}" for status, number in other.items()),
        "connections_seconds": seconds,
        "connections_healthy": healthy and recovered,
    }


def killed(endpoint: Endpoint, target: Target, ours: Callable[[], Endpoint], chats: list[Chat]) -> Values:
    """Kill what computes under open streams, wait for the server to end, start it again, and wait for an answer."""
    victim = computing(endpoint)
    replies, killed_at = asyncio.run(killed_under(target, chats, victim))
    deadline = killed_at + PATIENCE
    while endpoint.status() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = endpoint.status()
    with ours() as again:
        fresh = Target(again.url, target.model, target.limits)
        recovered = asyncio.run(first_answer(fresh, chats[0]))
        seconds = time.monotonic() - killed_at
    # An answer that had come to its end before the kill is whole indeed.
    cut = [reply for reply in replies if not reached_limit(reply, target.limits.max_tokens)]
    return {
        "kill_streams": len(cut),
        "kill_taken_for_whole": sum(reply.whole for reply in cut),
        "kill_ended_status": ended if ended is not None else "still running",
        "kill_recovered": recovered and ended is not None,
        "kill_recovery_seconds": seconds,
    }


async def killed_under(target: Target, chats: list[Chat], victim: int) -> tuple[list[Reply], float]:
    """Streams that were open when the process `victim` was killed, as their callers saw them end."""
    begun = asyncio.Semaphore(0)
    async with target.client() as client:
        bodies = [
            target.body(chat, stream=True, max_tokens=target.limits.max_tokens, ignore_eos=True) for chat in chats
        ]
        tasks = [asyncio.create_task(ask(client, body, begun.release)) for body in bodies[:STREAMS]]
        # At least one has begun: with an engine that answers one at a time, the others wait.
        async with asyncio.timeout(PATIENCE):
            await begun.acquire()
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        return list(await asyncio.gather(*tasks)), killed_at


def reached_limit(reply: Reply, tokens: int) -> bool:
    """Whether it has as many tokens as it was asked for; of an engine that tells no tokens none has."""
    return reply.whole and reply.answer is not None and len(reply.answer.tokens) == tokens


async def first_answer(target: Target, chat: Chat) -> bool:
    async with target.client() as client:
        return await answers(client, target, chat)


def computing(endpoint: Endpoint) -> int:
    """The process that computes: of those without children the one with the most memory, the log's set aside."""
    family = [psutil.Process(pid) for pid in endpoint.family()]
    leaves = [one for one in family if not one.children() and LOG not in one.cmdline()]
    return int(max(leaves, key=lambda one: one.memory_info().rss).pid)


async def emptied(target: Target) -> int:
    """Requests that are still under way, by the server's own count, when all callers have left for as long as it waits for them."""
    deadline = time.monotonic() + target.limits.write_seconds + 30
    active = 0.0
    while time.monotonic() < deadline:
        active = (await asyncio.to_thread(scrape.read, target.url)).total("temper_requests_active")
        if not active:
            break
        await asyncio.sleep(0.25)
    return int(active)


async def healthy_within(client: httpx.AsyncClient) -> bool:
    """Whether /health answers while all others wait."""
    with suppress(httpx.HTTPError):
        return (await client.get("/health")).status_code == 200
    return False


def allow_files(count: int) -> None:
    """Let this process, and the server that it starts, open as many; exits when it may not."""
    lowest, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if highest != resource.RLIM_INFINITY and highest < count:
        raise SystemExit(f"benchmarks.serve_faults: {count} files wanted, {highest} allowed: lower --connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(lowest, count), highest))


Fault = Callable[[Target, list[Chat], int], Coroutine[Any, Any, Values]]
FAULTS: dict[str, Fault] = {
    "bad": bad,
    "queue": queue,
    "readers": readers,
    "senders": senders,
    "connections": connections,
}


if __name__ == "__main__":
    main()
