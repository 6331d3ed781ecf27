"""What a server says of itself under /metrics, in Prometheus' text format, and what happened between two readings of it."""

import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]

LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
QUEUE = ("vllm:request_queue_time_seconds", "temper_queue_seconds")
"""Seconds that requests waited before an engine began with them: vLLM's, and that of temper/llama_app.py."""
DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
BY_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
GENERATED = "vllm:generation_tokens_total"
CACHED, LOOKED_UP = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"


@dataclass(frozen=True)
class Scrape:
    samples: Samples

    def since(self, before: "Scrape") -> "Scrape":
        """What was added to each counter."""
        return Scrape({key: value - before.samples.get(key, 0.0) for key, value in self.samples.items()})

    def total(self, name: str) -> float:
        """Over all labels; 0 where there is no such series."""
        return sum(value for (found, _), value in self.samples.items() if found == name)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The series `name` by the values of one of its labels."""
        found: dict[str, float] = defaultdict(float)
        for (series, labels), value in self.samples.items():
            if series == name and label in (values := dict(labels)):
                found[values[label]] += value
        return found


def added(scrapes: Iterable[Scrape]) -> Scrape:
    """Counters of several stretches of time, together."""
    found: dict[tuple[str, Labels], float] = defaultdict(float)
    for one in scrapes:
        for key, value in one.samples.items():
            found[key] += value
    return Scrape(dict(found))


def read(url: str) -> Scrape:
    """/metrics of the server at `url`, never through a proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/metrics", timeout=30) as reply:
        return parsed(reply.read().decode())


def parsed(text: str) -> Scrape:
    return Scrape(dict(_samples(text)))


def _samples(text: str) -> Iterator[tuple[tuple[str, Labels], float]]:
    for line in text.splitlines():
        if line.startswith("#") or not (match := LINE.match(line)):
            continue
        yield (match[1], frozenset(LABEL.findall(match[2] or ""))), float(match[3])


def queue(during: Scrape) -> dict[str, float]:
    """Milliseconds that requests waited: their mean, and the bound that the 99th percentile is below, as buckets tell it.

    Buckets begin at 300 ms, so the percentile itself is not known: interpolation would give all of a short wait as half a bucket.
    """
    name = next((one for one in QUEUE if during.total(f"{one}_count")), None)
    if name is None:
        return {}
    count = during.total(f"{name}_count")
    found = {"queue_mean_ms": 1000 * during.total(f"{name}_sum") / count}
    buckets = sorted((float(bound), below) for bound, below in during.by(f"{name}_bucket", "le").items())
    bound = next((bound for bound, below in buckets if below >= 0.99 * count), float("inf"))
    return found | ({"queue_p99_below_ms": 1000 * bound} if bound < float("inf") else {})


def speculation(during: Scrape) -> dict[str, float]:
    """What drafts were worth; nothing of a server that does not speculate, which has no such series, and no
    acceptance where nothing was drafted.

    acceptance is the share of drafted tokens that the model accepted, acceptance_at_<i> the share of drafts of which position i,
    from 0, and all before it were. acceptance_length is 1 + accepted tokens / drafts, vLLM's definition: tokens of a step that had
    a draft, the model's own among them. tokens_per_step counts the steps without a draft too, of which n-gram lookup has many:
    each step of an answer gives one token more than it accepts.
    """
    if not any(name == DRAFTS for name, _ in during.samples):
        return {}
    accepted, generated, drafts = (during.total(name) for name in (ACCEPTED, GENERATED, DRAFTS))
    found = {"drafts": drafts, "tokens_per_step": max(generated, 1.0) / max(generated - accepted, 1.0)}
    if not drafts:
        return found
    found |= {"acceptance": accepted / max(during.total(DRAFTED), 1.0), "acceptance_length": 1 + accepted / drafts}
    places = during.by(BY_POSITION, "position")
    return found | {f"acceptance_at_{place}": places[place] / drafts for place in sorted(places, key=int)}


def cached(during: Scrape) -> dict[str, float]:
    """Share of prompt tokens that the prefix cache held already; nothing where none was looked up."""
    looked_up = during.total(LOOKED_UP)
    return {"prefix_cached": during.total(CACHED) / looked_up} if looked_up else {}
