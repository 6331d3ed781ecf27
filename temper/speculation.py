"""Speculative decoding in figures: what vLLM's counters say of a draft, whether it pays, and whether it changes an answer.

Nothing here needs vLLM: counters come as the text of its /metrics, speeds as `bench` reports them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from temper import metrics

EAGLE3, NGRAM = "eagle3", "ngram"
REPORTS = Path("reports/bench")
PLAIN = "bf16"  # of `bench`: no speculation
COUNTER = re.compile(r"^vllm:(spec_decode_num_\w+?|generation_tokens)_total\{(.*)\} (\S+)$", re.MULTILINE)
POSITION = re.compile(r'(?:^|,)position="(\d+)"')
SPEED = re.compile(r"c(\d+)_tokens_per_second")
# Nats by which the likelier of two tokens may lead where the order of sums decides between them: float32 rounds logits in the
# sixth digit; bf16 has eight significant bits, steps of 0.125 between 16 and 32, where the logits of small models lie.
TIES = {"float32": 1e-3, "bfloat16": 0.25}


@dataclass
class Ngram:
    """vLLM's n-gram lookup: the last tokens are looked for in what was read so far, and what followed them there is the draft."""

    tokens: int
    """Drafted at a time."""
    min: int
    """Shortest n-gram looked for."""
    max: int


@dataclass(frozen=True)
class Counters:
    """vLLM's counters since its start, of all its engines together."""

    drafts: int = 0
    drafted: int = 0
    """Tokens."""
    accepted: int = 0
    accepted_at: tuple[int, ...] = ()
    """By position in the draft."""
    generated: int = 0
    """Tokens of answers, accepted ones among them."""

    def __sub__(self, earlier: "Counters") -> "Counters":
        before = earlier.accepted_at or (0,) * len(self.accepted_at)
        return Counters(
            self.drafts - earlier.drafts,
            self.drafted - earlier.drafted,
            self.accepted - earlier.accepted,
            tuple(late - early for late, early in zip(self.accepted_at, before, strict=True)),
            self.generated - earlier.generated,
        )


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


@dataclass(frozen=True)
class Greedy:
    """A greedy answer without speculation."""

    ids: list[int]
    likeliest: list[dict[int, float]]
    """Log-probabilities of the likeliest tokens at each of its places, by token."""


def eagle3(head: Path, tokens: int) -> dict[str, Any]:
    """vLLM's speculative configuration for an EAGLE-3 head."""
    return {"method": EAGLE3, "model": str(head), "num_speculative_tokens": tokens}


def ngram(cfg: Ngram) -> dict[str, Any]:
    """vLLM's speculative configuration for n-gram lookup; exits where it makes no sense."""
    if not (cfg.tokens >= 1 and 1 <= cfg.min <= cfg.max):
        raise SystemExit(
            f"speculation.ngram: {cfg.tokens} tokens after n-grams of {cfg.min} to {cfg.max}, expected 1 or more, the longest no "
            "shorter than the shortest: correct conf/speculation"
        )
    lookup = {"prompt_lookup_min": cfg.min, "prompt_lookup_max": cfg.max}
    return {"method": NGRAM, "num_speculative_tokens": cfg.tokens, **lookup}


def counters(exposition: str) -> Counters:
    """Read vLLM's /metrics (Prometheus' text format); all zero of a server that does not speculate and has answered nothing."""
    sums: dict[str, int] = {}
    positions: dict[int, int] = {}
    for name, labels, value in COUNTER.findall(exposition):
        if position := POSITION.search(labels):
            place = int(position[1])
            positions[place] = positions.get(place, 0) + round(float(value))
        else:
            sums[name] = sums.get(name, 0) + round(float(value))
    return Counters(
        sums.get("spec_decode_num_drafts", 0),
        sums.get("spec_decode_num_draft_tokens", 0),
        sums.get("spec_decode_num_accepted_tokens", 0),
        tuple(positions[place] for place in sorted(positions)),
        sums.get("generation_tokens", 0),
    )


def acceptance(counted: Counters, prefix: str = "") -> dict[str, float]:
    """A draft in figures, under names that begin with `prefix`.

    acceptance_length is 1 + accepted tokens / drafts, what vLLM logs: tokens of a step that had a draft, its own among them.
    acceptance_at_<i> is the share of drafts of which position i, from 0, and all before it were accepted. tokens_per_step counts
    the steps without a draft too, of which n-gram lookup has many: each step of an answer gives one token more than it accepts.
    """
    drafts, steps = max(counted.drafts, 1), max(counted.generated - counted.accepted, 1)
    found = {
        "drafts": counted.drafts,
        "acceptance": counted.accepted / max(counted.drafted, 1),
        "acceptance_length": 1 + counted.accepted / drafts,
        "tokens_per_step": max(counted.generated, 1) / steps,
    }
    found |= {f"acceptance_at_{place}": accepted / drafts for place, accepted in enumerate(counted.accepted_at)}
    return {prefix + name: value for name, value in found.items()}


def contrast(found: Mapping[str, float], method: str, domain: str, generic: str) -> dict[str, float]:
    """How much more a method gains on the domain than on general text."""
    names = ("acceptance_length", "tokens_per_step")
    return {
        f"{method}_{name}_gap": found[f"{method}_{domain}_{name}"] - found[f"{method}_{generic}_{name}"]
        for name in names
    }


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


def compared(plain: Greedy, speculating: list[int], tie: float) -> str:
    """`equal`, `tie` or `different`: whether speculation kept a greedy answer.

    Speculation computes several positions in one pass, whose sums another order gives other last bits. Where two tokens are as
    likely as each other but for these, either is the greedy one: a tie is an answer whose first other token is at most `tie` nats
    less likely than the one without speculation. What follows it has another beginning and is not compared.
    """
    differing = (place for place, (one, other) in enumerate(zip(plain.ids, speculating, strict=False)) if one != other)
    place = next(differing, None)
    if place is None:
        return "equal" if len(plain.ids) == len(speculating) else "different"
    known = plain.likeliest[place]
    lead = known[plain.ids[place]] - known.get(speculating[place], float("-inf"))
    return "tie" if lead <= tie else "different"


def lossless(plain: Sequence[Greedy], speculating: Sequence[list[int]], tie: float, prefix: str = "") -> dict[str, int]:
    """Answers, and of these those that came out equal, that part at a tie, and that speculation changed."""
    words = [compared(one, other, tie) for one, other in zip(plain, speculating, strict=True)]
    counts = {"answers": len(words), "ties": words.count("tie"), "changed": words.count("different")}
    return {prefix + name: value for name, value in counts.items()}
