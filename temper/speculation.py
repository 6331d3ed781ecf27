"""Speculative decoding: how vLLM is told to draft, what a draft gained, and whether it pays.

Whether it keeps every answer is in temper/lossless.py. Nothing here needs vLLM: gains and speeds come as `bench` reports them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from temper import metrics

EAGLE3, NGRAM = "eagle3", "ngram"
METHODS = (NGRAM, EAGLE3)
DOMAIN, GENERIC = "domain", "generic"
REPORTS = Path("reports/bench")
PLAIN = "bf16"  # of `bench`: no speculation
SPEED = re.compile(r"c(\d+)_tokens_per_second")
STEPS = "tokens_per_step"  # of scrape.speculation


@dataclass
class Speculation:
    method: str
    """Of METHODS: NGRAM drafts from what the prompt repeats, EAGLE3 by a head that was trained for the model."""
    tokens: int
    """Drafted at a time."""
    lookup_min: int | None
    """Of the n-gram that a draft continues, in tokens; null for EAGLE3."""
    lookup_max: int | None
    checked: int
    """Test rows whose answers are held against the model's own choices."""
    generic: int
    """Passages of general text, continued from their first half, likewise."""
    max_tokens: int
    """Of such an answer, which ends where the model ends it."""
    tie: float
    """Nats between two tokens that count as equally likely."""

    def check(self, place: str) -> None:
        """Exit naming `place` where it makes no sense."""
        if self.method not in METHODS:
            fault = f"speculation.method is '{self.method}', expected {' or '.join(METHODS)}"
        elif min(self.tokens, self.checked, self.generic, self.max_tokens) < 1:
            fault = "speculation's tokens, checked, generic and max_tokens must be 1 or more"
        elif self.method == NGRAM and not 1 <= (self.lookup_min or 0) <= (self.lookup_max or 0):
            fault = f"n-grams of {self.lookup_min} to {self.lookup_max}, expected 1 or more, and the longest no shorter"
        else:
            return
        raise SystemExit(f"{place}: {fault}: correct conf/bench")

    def arguments(self, head: Path) -> list[str]:
        """Of vLLM; `head` is the folder of an EAGLE3 head."""
        if self.method == NGRAM:
            lookup = {"prompt_lookup_min": self.lookup_min, "prompt_lookup_max": self.lookup_max}
            return dotted({"method": NGRAM, "num_speculative_tokens": self.tokens, **lookup})
        return dotted(eagle3(head, self.tokens))


@dataclass(frozen=True)
class Verdict:
    """Whether speculation pays at a concurrency, by tokens a second of all answers together."""

    concurrency: int
    plain: float
    speculating: float

    @property
    def pays(self) -> bool:
        return self.speculating > self.plain

    @property
    def speedup(self) -> float:
        return self.speculating / self.plain


def eagle3(head: Path, tokens: int) -> dict[str, Any]:
    """vLLM's speculative configuration for an EAGLE-3 head."""
    return {"method": EAGLE3, "model": str(head), "num_speculative_tokens": tokens}


def dotted(config: Mapping[str, Any]) -> list[str]:
    """A speculative configuration on vLLM's command line, in the dotted form of its JSON."""
    return [part for key, value in config.items() for part in (f"--speculative-config.{key}", str(value))]


def contrast(found: Mapping[str, float]) -> dict[str, float]:
    """`gap_<figure>`: how much more a draft gains on the domain than on general text, in each figure that both have."""
    names = [
        key.removeprefix(f"{DOMAIN}_") for key in found if key.startswith(f"{DOMAIN}_") and not key.endswith("drafts")
    ]
    both = [name for name in names if f"{GENERIC}_{name}" in found]
    return {f"gap_{name}": found[f"{DOMAIN}_{name}"] - found[f"{GENERIC}_{name}"] for name in both}


def beats(report: Mapping[str, float], baseline: Mapping[str, float]) -> bool:
    """Whether a draft yields more tokens a step on the domain than another: a head must beat n-gram lookup, which is free."""
    return report[f"{DOMAIN}_{STEPS}"] > baseline[f"{DOMAIN}_{STEPS}"]


def speeds(report: Mapping[str, Any]) -> dict[int, float]:
    """Tokens a second by concurrency, of a report of `bench`."""
    return {int(found[1]): float(value) for key, value in report.items() if (found := SPEED.fullmatch(key))}


def verdicts(plain: Mapping[int, float], speculating: Mapping[int, float]) -> list[Verdict]:
    """One for each concurrency that both were measured at, in order."""
    return [Verdict(level, plain[level], speculating[level]) for level in sorted(plain.keys() & speculating.keys())]


def measured(method: str, folder: Path = REPORTS) -> list[Verdict]:
    """The verdicts on a method by the reports of `bench`; none where it measured no such variant."""
    files = [folder / f"{name}.json" for name in (PLAIN, method)]
    if not all(file.is_file() for file in files):
        return []
    return verdicts(*(speeds(metrics.read(file)) for file in files))


def schedule(found: Sequence[Verdict], tokens: int, sequences: int) -> list[list[int]]:
    """vLLM's num_speculative_tokens_per_batch_size: [first, last batch size, tokens drafted], 0 where speculation serves slower.

    A batch size goes by the next concurrency above it that was measured, one above all of them by the last, up to `sequences`.
    """
    levels = [verdict.concurrency for verdict in found]
    ends = [*(level for level in levels[:-1] if level < sequences), sequences]
    ranges: list[list[int]] = []
    for (before, end), verdict in zip(pairwise([0, *ends]), found, strict=False):
        drafted = tokens if verdict.pays else 0
        if ranges and ranges[-1][2] == drafted:
            ranges[-1][1] = end
        else:
            ranges.append([before + 1, end, drafted])
    return ranges


def told(found: Iterable[Verdict]) -> str:
    """`1: 1.42× (on), 32: 0.81× (off)`, by concurrent requests."""
    return ", ".join(f"{v.concurrency}: {v.speedup:.2f}× ({'on' if v.pays else 'off'})" for v in found)
