"""What traffic and training rows are compared by: lengths, languages, kinds of answer, and what requests and tools are about.

Answers of a model differ from the reference answers that it was trained on without any drift: it may write shorter ones, or say
`null` too often, since its first day. So where there are answers of its own to held-out prompts, those of the log are compared with
these.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from temper import calls, consistency, drift, language
from temper.drift import Sample, Vectors
from temper.records import Row
from temper.traffic import Exchange

REQUESTS, TOOLS, REQUEST_LENGTH = "requests", "tools", "request_length"
ANSWER_LENGTH, ANSWER_KIND = "answer_length", "answer_kind"
EMBEDDED = (REQUESTS, TOOLS)
# Of prose that tells a language: a shorter request tells none.
MIN_LETTERS, MAX_SYMBOLS = 20, 0.5
Embedded = Mapping[str, Any]
"""Vectors of unit length by text."""


@dataclass(frozen=True)
class Said:
    """What is compared of a row or an exchange."""

    request: str
    answer: str
    """"" where there was none."""
    tools: str
    """Their signatures; "" without tools."""

    def text(self, feature: str) -> str:
        return {REQUESTS: self.request, TOOLS: self.tools}[feature]


def of_training(rows: Iterable[Row]) -> Iterator[Said]:
    """Each row once, however often it trains; texts and preference pairs have no request with its answer."""
    seen: set[str] = set()
    for row in rows:
        if row.get("kind", "call") in ("call", "chat") and row["id"] not in seen:
            seen.add(row["id"])
            asked = "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
            yield Said(asked, row["messages"][-1]["content"], signatures(row.get("tools") or []))


def of_traffic(exchanges: Iterable[Exchange]) -> list[Said]:
    """Each prompt once: training rows repeat none, and the tests take rows to be independent."""
    first = {one.prompt: one for one in reversed(list(exchanges))}
    return [
        Said(one.asked, one.answers[0] if one.answers else "", signatures(one.tools))
        for one in reversed(first.values())
    ]


def signatures(tools: Sequence[Row]) -> str:
    return "\n".join(map(calls.signature, tools))


def halves(said: Sequence[Said], seed: int) -> tuple[list[Said], list[Said]]:
    """An index, and the rows that are held against it as traffic is."""
    order = np.random.default_rng(seed).permutation(len(said))
    middle = len(said) // 2
    index, compared = ([said[place] for place in part] for part in (order[:middle], order[middle:]))
    return index, compared


def samples(said: Sequence[Said], index: Sequence[Said], vectors: Embedded, least: int) -> dict[str, Sample]:
    """Every feature that enough of the rows have."""
    found = {
        REQUEST_LENGTH: Sample(numbers=np.array([len(one.request) for one in said], dtype=np.float64)),
        "language": Sample(categories=tuple(tongue(one.request) for one in said)),
    }
    for feature in EMBEDDED:
        rows, known = (stacked([one.text(feature) for one in part], vectors) for part in (said, index))
        if len(known):
            found[feature] = Sample(vectors=rows, distances=drift.nearest(rows, known))
    enough = {feature: sample for feature, sample in found.items() if size(sample) >= least}
    return enough | of_answers([one.answer for one in said], least)


def of_answers(answers: Iterable[str], least: int) -> dict[str, Sample]:
    """The features of answers; nothing where there are fewer than `least`."""
    given = [answer for answer in answers if answer]
    if len(given) < least:
        return {}
    return {
        ANSWER_LENGTH: Sample(numbers=np.array([len(answer) for answer in given], dtype=np.float64)),
        ANSWER_KIND: Sample(categories=tuple(map(kind, given))),
    }


def size(sample: Sample) -> int:
    return next(len(one) for one in (sample.numbers, sample.categories, sample.vectors) if one is not None)


def stacked(texts: Iterable[str], vectors: Embedded) -> Vectors:
    rows = [vectors[text] for text in texts if text]
    return np.array(rows) if rows else np.zeros((0, 0))


def texts(said: Iterable[Said]) -> set[str]:
    """What has to be embedded."""
    return {one.text(feature) for one in said for feature in EMBEDDED} - {""}


def tongue(text: str) -> str:
    found = language.guess(text, MIN_LETTERS, MAX_SYMBOLS)
    return found[0] if found else "unknown"


def kind(answer: str) -> str:
    """`call`, `null`, `json` or `text`."""
    if consistency.is_call(answer):
        return "null" if calls.parse(answer) is None else "call"
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return "text"
    return "json"
