"""What the gateway counts, as Prometheus series beside the engine's own.

Plain numbers of the server's process, read when /metrics is asked for: a request costs no lock.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

BOUNDS = (
    0.0001,
    0.0003,
    0.001,
    0.003,
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
)  # seconds that the guard took of a request
WAITS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds in a queue
SCORES = 256  # of the judge, over which the mean is taken
REVISIONS = 8  # of which scores are kept: callers name them


class Series:
    def __init__(self, revision: str = "") -> None:
        self.revision = revision
        self.requests: Counter[str] = Counter()
        """By status."""
        self.verdicts: Counter[tuple[str, str]] = Counter()
        """Requests that the guard saw, by verdict and status."""
        self.bytes: Counter[str] = Counter()
        """`in` of requests, `out` of answers."""
        self.guard_seconds = 0.0
        self.guard_buckets = [0] * (len(BOUNDS) + 1)
        self.active = 0
        self.arriving = 0
        """Bytes of bodies on their way."""
        self.logged = 0
        self.dropped = 0
        self.thumbs: Counter[str] = Counter()
        self.scores: dict[str, deque[float]] = {}
        """By revision, that of the last one last."""

    def guarded(self, verdict: str, status: str, seconds: float) -> None:
        self.verdicts[verdict, status] += 1
        self.guard_seconds += seconds
        self.guard_buckets[bisect_left(BOUNDS, seconds)] += 1

    def scored(self, revision: str, score: float) -> None:
        """Of an answer of `revision`, which another replica may have given."""
        of = self.scores.pop(revision, deque(maxlen=SCORES))
        of.append(score)
        self.scores[revision] = of
        if len(self.scores) > REVISIONS:
            del self.scores[next(iter(self.scores))]

    def collect(self) -> Iterator[Any]:
        """Prometheus' families of metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labelled: dict[tuple[str, str, tuple[str, ...]], dict[tuple[str, ...], int]] = {
            ("temper_requests", "Requests by status.", ("status",)): {(s,): n for s, n in self.requests.items()},
            (
                "temper_guard_requests",
                "Requests that the guard saw, by its verdict and their status.",
                ("verdict", "status"),
            ): {(*labels,): number for labels, number in self.verdicts.items()},
            ("temper_bytes", "Bytes of requests and of answers.", ("direction",)): {
                (d,): n for d, n in self.bytes.items()
            },
            ("temper_feedback", "Feedback by its thumb.", ("thumb",)): {(t,): n for t, n in self.thumbs.items()},
        }
        for (name, text, labels), values in labelled.items():
            family = CounterMetricFamily(name, text, labels=labels)
            for values_of, number in values.items():
                family.add_metric(values_of, number)
            yield family
        yield CounterMetricFamily("temper_log_records", "Records handed to the log.", self.logged)
        yield CounterMetricFamily("temper_log_dropped", "Records dropped because the log was behind.", self.dropped)
        yield GaugeMetricFamily("temper_requests_active", "Requests under way.", self.active)
        yield GaugeMetricFamily(
            "temper_bytes_arriving", "Bytes of requests that have not arrived whole.", self.arriving
        )
        means = {(revision,): sum(of) / len(of) for revision, of in self.scores.items()}
        gauges = {
            ("temper_release", "1 by the revision of the model that is served."): {(self.revision,): 1.0},
            ("temper_judge_score", f"Mean of the last {SCORES} scores of a revision's answers."): means,
        }
        for (name, text), by_revision in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=("revision",))
            for labels_of, of_revision in by_revision.items():
                gauge.add_metric(labels_of, of_revision)
            yield gauge
        yield HistogramMetricFamily(
            "temper_guard_seconds",
            "Seconds that the guard took of a request.",
            cumulative(BOUNDS, self.guard_buckets),
            self.guard_seconds,
        )

    def register(self) -> None:
        """Show the series where the engine's are shown."""
        from prometheus_client import REGISTRY

        REGISTRY.register(self)


class Waits:
    """Seconds that requests waited in a queue, for an engine that has no series of its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.buckets = [0] * (len(WAITS) + 1)

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.buckets[bisect_left(WAITS, seconds)] += 1

    def collect(self) -> Iterator[Any]:
        """Prometheus' family of metrics."""
        from prometheus_client.core import HistogramMetricFamily

        buckets = cumulative(WAITS, self.buckets)
        yield HistogramMetricFamily("temper_queue_seconds", "Seconds until requests began.", buckets, self.seconds)

    def register(self) -> None:
        """Show the series where the engine's are shown."""
        from prometheus_client import REGISTRY

        REGISTRY.register(self)


def cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """(bound, how many were at most that large), as Prometheus has a histogram."""
    return list(zip([*map(str, bounds), "+Inf"], map(float, accumulate(counts)), strict=True))
