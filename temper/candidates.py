"""Candidate base models, prompted and untrained, on the same items: which is as good as the best, and at what price.

A candidate is asked without examples and with some. Scores are compared with the best one's on the items that both replied to
(temper.comparisons); of those that are not worse, the cheapest is recommended. A prompt that got no reply, however often it was
repeated, says nothing of a model: it is counted, and left out of both sides.

Which is best is seen on the items that it is then compared on, where chance favours it. So the family that is corrected is of all
pairs, not of those with the best: then no verdict is wrong with a chance of `confidence` at least, whichever result is taken for
the best. And whether prompting is enough is read off an interval that holds for all results at once (Bonferroni).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from temper import calls, comparisons, intervals, task_metrics
from temper.comparisons import NO_DIFFERENCE, Verdict
from temper.human_labels import Chat
from temper.records import Row
from temper.task_metrics import Answered, Task

ZERO, FEW = "zero-shot", "few-shot"
FORMS = ("valid_schema", "valid_json")
RIGHT = ("exact_match", "accuracy")


@dataclass
class Enough:
    """What prompting has to reach, by the low ends of intervals for all results at once, for there to be nothing to train for."""

    score: float
    format: float


class Outcome(NamedTuple):
    """Of a reply."""

    right: bool
    fits: bool
    """Whether it has the form that the task asks for."""


@dataclass(frozen=True)
class Result:
    """A candidate, prompted one way."""

    candidate: str
    prompt: str
    """ZERO or FEW."""
    outcomes: tuple[Outcome | None, ...]
    """By item, in one order for all; None where no reply came."""
    seconds: float
    """Median, for a whole answer to one caller alone."""
    tokens: int
    """Of prompt and answer, in all items."""
    usd_per_million: float
    """Tokens, of prompts and answers together."""

    @property
    def right(self) -> list[bool]:
        """Of the replies."""
        return [one.right for one in self.outcomes if one]

    @property
    def fits(self) -> list[bool]:
        """Of the replies."""
        return [one.fits for one in self.outcomes if one]

    @property
    def failed(self) -> int:
        """Prompts without a reply."""
        return self.outcomes.count(None)

    @property
    def name(self) -> str:
        return f"{self.candidate}, {self.prompt}"

    @property
    def usd_per_thousand(self) -> float:
        """Answers: examples in a prompt are paid for with each."""
        return self.usd_per_million * self.tokens / max(1, len(self.right)) / 1000


@dataclass(frozen=True)
class Recommendation:
    result: Result
    best: str
    """The name of the result with most right answers."""
    verdicts: Mapping[str, Verdict]
    """Of every other result against the best, by name."""
    reason: str
    is_enough: bool
    """Whether prompting alone reaches what is asked."""


def scored(row: Row, answer: str, tasks: Sequence[Task]) -> Outcome:
    """By the verifier, or by the row's task in conf/evaluate."""
    if "gold" in row:
        score = calls.score(answer, row["tools"], row["gold"])
        return Outcome(score.exact, score.valid_json)
    task = task_of(row, tasks)
    assert task is not None
    pair = [Answered(row["messages"][-1]["content"], answer)]
    measure = next((name for name in RIGHT if name in task.metrics), RIGHT[0])
    right = task_metrics.MEASURES[measure](task, pair)[0] == 1
    form = next((name for name in FORMS if name in task.metrics), None)
    if form:
        return Outcome(right, task_metrics.MEASURES[form](task, pair)[0] == 1)
    return Outcome(right, not task.labels or task_metrics.is_label(answer, task.labels))


def task_of(row: Row, tasks: Sequence[Task]) -> Task | None:
    return next((task for task in tasks if task_metrics.is_of(row, task)), None)


def scorable(rows: Sequence[Row], tasks: Sequence[Task]) -> list[Row]:
    """Rows whose answers can be told right from wrong."""
    return [row for row in rows if "gold" in row or ("messages" in row and "chosen" not in row and task_of(row, tasks))]


def examples(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows drawn by seed, of each category in turn, those without a right call first: a prompt must show both."""
    groups: dict[tuple[bool, str], list[Row]] = {}
    for row in random.Random(seed).sample(list(rows), len(rows)):
        groups.setdefault((row.get("gold") is not None, str(row["category"])), []).append(row)
    queues = [groups[key] for key in sorted(groups)]
    drawn = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return drawn[:count]


def prompt(row: Row, shown: Sequence[Row]) -> Chat:
    """The row's chat without its answer, its system turn first, then the examples, each with the instructions that it came with."""
    system, rest = (
        [turn for turn in row["messages"][:-1] if (turn["role"] == "system") == is_it] for is_it in (True, False)
    )
    chat: Chat = [*system]
    for one in shown:
        chat += [
            {"role": "user", "content": _whole(one)},
            {"role": "assistant", "content": one["messages"][-1]["content"]},
        ]
    return [*chat, *rest]


def _whole(row: Row) -> str:
    """What an example asks, with its instructions."""
    return "\n\n".join(turn["content"] for turn in row["messages"][:-1] if turn["role"] in ("system", "user"))


def recommended(results: Sequence[Result], enough: Enough, confidence: float, seed: int) -> Recommendation:
    """The cheapest of those that are as good as the best, and whether prompting alone will do."""
    best = max(results, key=lambda one: (fmean(one.right), fmean(one.fits), -one.usd_per_thousand, -one.seconds))
    verdicts = against(best, results, confidence, seed)
    alike = {name for name, verdict in verdicts.items() if verdict.outcome == NO_DIFFERENCE}
    equals = [one for one in results if one is best or one.name in alike]
    chosen = min(equals, key=lambda one: (one.usd_per_thousand, one.seconds, -fmean(one.right)))
    for_all = 1 - (1 - confidence) / len(results)
    reach = {
        name: intervals.wilson(sum(of), len(of), for_all)
        for name, of in (("score", chosen.right), ("format", chosen.fits))
    }
    is_enough = reach["score"][0] >= enough.score and reach["format"][0] >= enough.format
    reason = _reason(chosen, best, equals, len(results)) + _left_out(results) + _next(reach, enough, is_enough)
    return Recommendation(chosen, best.name, verdicts, reason, is_enough)


def against(best: Result, results: Sequence[Result], confidence: float, seed: int) -> dict[str, Verdict]:
    """Every other result against the best, by name, corrected for all pairs; those that share no reply with it are not there."""
    family = {}
    for pair in combinations(results, 2):
        one, other = pair if pair[0] is not best else pair[::-1]
        replies = zip(one.outcomes, other.outcomes, strict=True)
        if both := [(first.right, second.right) for first, second in replies if first and second]:
            after, before = np.array(both, dtype=np.float64).T[:, None]
            family[one.name, other.name] = comparisons.difference(after, before, confidence, seed)
    judged = comparisons.judged(family, confidence)
    return {name: verdict for (name, other), verdict in judged.items() if other == best.name}


def table(results: Sequence[Result], found: Recommendation, confidence: float) -> list[str]:
    """A Markdown table, the recommended one marked."""
    head = (
        "",
        "right",
        "form",
        "against the best",
        "seconds an answer",
        "USD a million tokens",
        "USD a thousand answers",
        "no reply",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    told = {name: comparisons.told(verdict) for name, verdict in found.verdicts.items()}
    for one in results:
        mark = f"**{one.name}**" if one is found.result else one.name
        verdict = "the best" if one.name == found.best else told.get(one.name, "no reply in common")
        costs = (money(one.usd_per_million), money(one.usd_per_thousand))
        cells = (
            mark,
            _percent(one.right, confidence),
            _percent(one.fits, confidence),
            verdict,
            f"{one.seconds:.2f}",
            *costs,
            str(one.failed),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def values(results: Sequence[Result], found: Recommendation, confidence: float) -> dict[str, Any]:
    """Flat metrics of every result, and the recommendation."""
    made: dict[str, Any] = {
        "recommended": found.result.candidate,
        "recommended_prompt": found.result.prompt,
        "reason": found.reason,
        "prompting_is_enough": int(found.is_enough),
        "items": len(results[0].outcomes),
    }
    for one in results:
        name = f"{one.candidate}_{one.prompt.replace('-', '_')}"
        made |= intervals.rate(f"{name}_right", one.right, confidence) | intervals.rate(
            f"{name}_format", one.fits, confidence
        )
        made |= {f"{name}_seconds": one.seconds, f"{name}_tokens": one.tokens, f"{name}_failed": one.failed}
        made |= {
            f"{name}_usd_per_million_tokens": one.usd_per_million,
            f"{name}_usd_per_thousand_answers": one.usd_per_thousand,
        }
        if verdict := found.verdicts.get(one.name):
            made |= {f"{name}_verdict": verdict.outcome, f"{name}_p": verdict.p}
    return made


def local_price(usd_per_hour: float, tokens_per_second: float) -> float:
    """USD a million tokens of a machine that is busy all the time."""
    return usd_per_hour / 3600 / tokens_per_second * 1e6 if tokens_per_second else math.inf


def typical(seconds: Sequence[float]) -> float:
    return median(seconds) if seconds else math.nan


def money(usd: float) -> str:
    return "0 (own machine)" if not usd else f"{usd:.4g}"


def _reason(chosen: Result, best: Result, equals: Sequence[Result], count: int) -> str:
    right = f"{sum(chosen.right)} of {len(chosen.right)} right"
    if len(equals) == 1:
        return (
            f"{chosen.name} has {right}, more than every other beyond chance"
            if count > 1
            else f"{chosen.name} has {right}"
        )
    price = "the cheapest" if chosen.usd_per_thousand else "the fastest, none having a price,"
    others = f"{len(equals)} of {count} between which these items show no difference"
    behind = "" if chosen is best else f" (the most, {sum(best.right)}, has {best.name})"
    return f"{chosen.name} has {right}{behind} and is {price} of {others}"


def _left_out(results: Sequence[Result]) -> str:
    failed = [f"{one.failed} of {one.name}" for one in results if one.failed]
    return f". Without a reply, and left out of both sides: {', '.join(failed)}" if failed else ""


def _next(reach: Mapping[str, tuple[float, float]], enough: Enough, is_enough: bool) -> str:
    if is_enough:
        return ". Prompting alone is enough: what is asked is reached without training"
    wanted = {"score": enough.score, "format": enough.format}
    short = [
        f"{name} {100 * reach[name][0]:.0f}% of {100 * wanted[name]:.0f}%"
        for name in wanted
        if reach[name][0] < wanted[name]
    ]
    return (
        f". Prompting alone is not enough: by the low ends of the intervals {' and '.join(short)} wanted, so train it"
    )


def _percent(outcomes: Sequence[bool], confidence: float) -> str:
    low, high = intervals.wilson(sum(outcomes), len(outcomes), confidence)
    return f"{100 * sum(outcomes) / max(1, len(outcomes)):.1f}% ({100 * low:.1f}–{100 * high:.1f})"
