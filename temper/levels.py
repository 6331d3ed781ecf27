"""Levels of load on a server, one after the other and all again: closed loops by their callers, open ones by their rate."""

import json
import math
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from temper import load, scrape
from temper.load import Chat
from temper.records import Row
from temper.scrape import Scrape


@dataclass
class Load:
    concurrency: list[int]
    requests: list[int]
    """Of each closed loop, a repeat."""
    rates: list[float]
    """Of open loops, as shares of the most requests a second that a closed one reached."""
    arrivals: int
    """Requests of each open loop, a repeat."""
    max_tokens: int
    """Of every answer, no fewer and no more."""
    warmup: int
    """Requests before all others, uncounted."""
    repeats: int

    def loops(self, place: str) -> list[tuple[int, int]]:
        """(concurrency, requests) of each closed loop; exits naming `place` when one cannot be measured."""
        if len(self.concurrency) != len(self.requests) or not self.concurrency:
            found = f"{len(self.requests)} requests for {len(self.concurrency)} concurrency levels"
            raise SystemExit(f"{place}: {found}, expected one each: correct conf/bench")
        pairs = list(zip(self.concurrency, self.requests, strict=True))
        for concurrency, requests in pairs:
            if not 0 < concurrency <= requests:
                found = f"{requests} requests at concurrency {concurrency}"
                raise SystemExit(f"{place}: {found}, expected at least as many: correct conf/bench")
        if min(self.repeats, self.max_tokens, self.arrivals) < 1 or any(rate <= 0 for rate in self.rates):
            raise SystemExit(f"{place}: repeats, max_tokens, arrivals and rates must be above zero: correct conf/bench")
        return pairs


@dataclass
class Level:
    """A loop, and all repeats of it."""

    count: int
    """Requests of a repeat."""
    concurrency: int | None = None
    """Of a closed loop."""
    share: float = 0.0
    """Of an open one, whose rate it says."""
    rate: float = math.inf
    """Requests a second."""
    results: list[Row] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)
    """What the server counted meanwhile."""


def measured(url: str, model: str, rows: list[Row], cfg: Load, seed: int, place: str) -> dict[str, float]:
    """Figures of every loop, `c<concurrency>_…` and `open<share in percent>_…`, all repeats in turn."""
    if cfg.warmup:
        warming = load.prompts(rows, cfg.warmup, seed)
        load.run(url, model, warming, max_tokens=cfg.max_tokens, concurrency=cfg.warmup)
    closed = {f"c{concurrency}": Level(count, concurrency=concurrency) for concurrency, count in cfg.loops(place)}
    opened = {f"open{100 * share:.0f}": Level(cfg.arrivals, share=share) for share in cfg.rates}
    fastest = 0.0
    for repeat in range(cfg.repeats):
        for name, level in (closed | opened).items():
            chats = load.prompts(rows, level.count, seed + repeat)
            result = once(url, model, chats, cfg.max_tokens, level, seed + repeat, f"{place}, {name}")
            if repeat == 0 and level.concurrency:
                fastest = max(fastest, result["request_throughput"])
                for one in opened.values():
                    one.rate = one.share * fastest
    found = [of_level(name, level) for name, level in (closed | opened).items()]
    return {key: value for of in found for key, value in of.items()}


def once(url: str, model: str, chats: list[Chat], max_tokens: int, level: Level, seed: int, place: str) -> Row:
    """One repeat, on a server whose prefix cache is empty, added to its level."""
    forget(url)
    before = scrape.read(url)
    result = load.run(
        url, model, chats, max_tokens=max_tokens, concurrency=level.concurrency, rate=level.rate, seed=seed
    )
    load.check(result, place, max_tokens)
    level.results.append(result)
    level.scrapes.append(scrape.read(url).since(before))
    print(f"{place}: {result['output_throughput']:.0f} tokens/s", flush=True)
    return result


def of_level(name: str, level: Level) -> dict[str, float]:
    """Figures of a level: what the client saw, and what the server says of its queue, prefix cache and draft."""
    during = scrape.added(level.scrapes)
    told = scrape.queue(during) | scrape.cached(during) | scrape.speculation(during)
    told |= {"rate": level.rate} if level.share else {}
    return load.figures(level.results, name) | {f"{name}_{key}": value for key, value in told.items()}


def forget(url: str) -> None:
    """Empty vLLM's prefix cache, so that no repeat finds its prompts computed; other servers have no such route."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(100):
        try:
            with direct.open(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST"), timeout=30) as reply:
                if json.load(reply)["success"]:
                    return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
            raise
        # A request that has just ended may hold its blocks for a moment.
        time.sleep(0.1)
    raise SystemExit(f"{url}: vLLM does not empty its prefix cache, though nothing is under way")
