"""A model behind any OpenAI-compatible endpoint as the judge of a policy's answers, two at a time and in both orders.

Every verdict is kept in a journal under a hash of its request as soon as it arrives (temper/teacher.py), so that a killed run
goes on without asking twice. A judge does not reproduce as a verifier does: its endpoint may change the model behind a name.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

from tqdm import tqdm

from temper import hub, intervals, pairs, progress
from temper.records import Row
from temper.server import Server
from temper.teacher import Client, Request, Teacher, api_key
from temper.teacher import checked as checked_endpoint
from temper.vllm import Answer

SECTION = "preferences.judge.endpoint"
JOURNAL = Path("tmp/preferences/judge.journal.jsonl")
PROMPT = Template((Path(__file__).parent / "prompts/verdict.txt").read_text(encoding="utf-8").rstrip("\n"))
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": list(SWAPPED)}},
    "required": ["verdict"],
    "additionalProperties": False,
}
# Endpoints that decode under a schema (vLLM and OpenAI among them) cannot miss the form; most others ignore the field.
FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}


@dataclass
class Judge:
    endpoint: Teacher
    answers: int
    """Distinct samples of a prompt that are compared, each with each: n × (n - 1) requests."""
    rubric: str
    max_tokens: int
    """Of a verdict, and of the thoughts before it where the model has some."""


@dataclass(frozen=True)
class Verdict:
    word: str | None
    """A, B or tie; None for a reply that is no verdict."""
    detail: str = ""
    """What such a reply said."""


@dataclass(frozen=True)
class Meeting:
    """Two answers compared: `forth` with the first of them as A, `back` with the second as A."""

    forth: Verdict
    back: Verdict

    @property
    def is_valid(self) -> bool:
        return None not in (self.forth.word, self.back.word)

    @property
    def winner(self) -> int | None:
        """0 for the first answer and 1 for the second where both orders agree on it, else None: a tie."""
        return {("A", "B"): 0, ("B", "A"): 1}.get((self.forth.word or "", self.back.word or ""))

    @property
    def flips(self) -> bool:
        """Whether the order decides: the verdict on the same answers is another once they change places."""
        return self.is_valid and self.forth.word != SWAPPED[self.back.word or ""]


@dataclass(frozen=True)
class Contest:
    """The answers of one row that meet, distinct and whole, the most frequent first, and what came of it."""

    row: Row
    answers: tuple[str, ...]
    samples: int
    cut: int
    """Samples that ended at max_tokens: to choose one would teach not to end."""
    duplicates: int
    meetings: dict[tuple[int, int], Meeting]

    @property
    def best(self) -> tuple[int, int] | None:
        """Of the pairs (winner, loser) the one furthest apart by wins minus losses (Copeland 1951); None where there is none."""
        won = [
            (two, one) if met.winner else (one, two)
            for (one, two), met in self.meetings.items()
            if met.winner is not None
        ]
        points = Counter(winner for winner, _ in won)
        points.subtract(loser for _, loser in won)
        apart = {(winner, loser): points[winner] - points[loser] for winner, loser in won}
        furthest = max(apart, key=lambda pair: apart[pair], default=None)
        # Answers that beat each other in a circle are equals.
        return furthest if furthest and apart[furthest] > 0 else None

    @property
    def outcome(self) -> str:
        if len(self.answers) < 2:
            return "cut" if self.cut else "one_answer"
        if self.best:
            return "decided"
        return "tie" if any(met.is_valid for met in self.meetings.values()) else "invalid_verdict"

    def pair(self) -> Row | None:
        """The pair of the best and the worst answer, with the verdicts behind it."""
        if not self.best:
            return None
        best, worst = self.best
        return pairs.pair(self.row, 0, self.answers[best], self.answers[worst], "judge") | self.evidence()

    def left(self) -> Row:
        """The row as one of which no pair was made."""
        said = [verdict.detail for met in self.meetings.values() for verdict in (met.forth, met.back) if verdict.detail]
        detail = {"detail": said[0]} if said else {}
        return self.row | {"reason": self.outcome} | self.evidence() | detail

    def evidence(self) -> Row:
        """Answers, and verdicts as [place of one, place of the other, verdict with the one as A, verdict with the other as A]."""
        verdicts = [[*places, met.forth.word, met.back.word] for places, met in self.meetings.items()]
        return {"answers": list(self.answers), "verdicts": verdicts}


def checked(judge: Judge) -> Judge:
    """The settings, if they make sense; exits naming the one that does not."""
    if not judge.endpoint.model.strip():
        raise SystemExit(
            f"{SECTION}.model is empty: set model, base_url and licence of the endpoint that judges "
            f"(synthesize/teacher@{SECTION}=base serves models/base here)"
        )
    if judge.answers < 2:
        raise SystemExit(f"preferences.judge.answers is {judge.answers}: choose 2 or more")
    checked_endpoint(judge.endpoint, SECTION)
    api_key(judge.endpoint, SECTION)
    return judge


def reach(judge: Judge) -> None:
    """Exits in one line where nothing was asked yet and the endpoint cannot be: before hours of sampling, not after."""
    was_asked = JOURNAL.is_file() and JOURNAL.stat().st_size > 0
    if not judge.endpoint.start_server and not was_asked:
        with Client(judge.endpoint, JOURNAL, section=SECTION) as client:
            client.reach()


def hold(
    judge: Judge, rows: list[Row], samples: list[list[Answer]], seed: int, runtime: dict[str, Any]
) -> tuple[list[Contest], Row]:
    """A contest for each row among its samples, and what the judge was and took; exits in one line when it cannot go on."""
    entered = [enter(row, of, judge.answers) for row, of in zip(rows, samples, strict=True)]
    if not any(len(contest.answers) > 1 for contest in entered):
        return entered, {}
    with client(judge.endpoint, seed, runtime) as asked:
        work = asked.in_order(_held(asked, judge, contest, seed) for contest in entered)
        held = list(shown(asked, work, len(entered)))
        return held, bill(asked)


def enter(row: Row, samples: list[Answer], most: int) -> Contest:
    """A contest before its meetings: identical answers are one, and of more than `most` the most frequent take part."""
    whole = tuple(answer.text for answer in samples if not answer.is_cut)
    distinct = pairs.by_frequency(whole)
    cut, duplicates = len(samples) - len(whole), len(whole) - len(distinct)
    return Contest(row, tuple(distinct[:most]), len(samples), cut, duplicates, {})


@contextmanager
def client(endpoint: Teacher, seed: int, runtime: dict[str, Any]) -> Iterator[Client]:
    """A client of the endpoint, or of this repository's vLLM on a folder for the time of the block."""
    # A setting of the endpoint's own, null to leave the field out, goes before.
    endpoint = replace(endpoint, extra={"response_format": FORMAT} | endpoint.extra)
    if not endpoint.start_server:
        with Client(endpoint, JOURNAL, section=SECTION) as found:
            yield found
        return
    model = Path(endpoint.model)
    with Server(model, endpoint.dtype, seed, runtime) as server:
        served = replace(endpoint, base_url=f"{server.url}/v1", model=server.name)
        with Client(served, JOURNAL, hub.digest(model), SECTION) as found:
            yield found


def parsed(text: str) -> str | None:
    """The verdict in `{"verdict": "A"}`, B or tie; None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    word = found["verdict"] if isinstance(found, dict) and found.keys() == {"verdict"} else None
    return word if isinstance(word, str) and word in SWAPPED else None


def conversation(row: Row) -> str:
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"][:-1])


def shown(client: Client, contests: Iterable[Contest], total: int) -> Iterator[Contest]:
    """`contests` as they pass, with a bar on a terminal and a line a minute elsewhere."""
    clock, first = progress.Clock(), 0
    bar = tqdm(contests, total=total, unit="prompts", disable=not progress.on_terminal())
    for done, contest in enumerate(bar, start=1):
        if client.asked == 0:
            # Read from the journal, which says nothing about how long the rest takes.
            clock, first = progress.Clock(), done
        elif bar.disable and (line := clock.line(done, total, first)):
            print(f"judge: {line}", flush=True)
        yield contest


def bill(client: Client) -> Row:
    """Who judged and what it took, whichever run paid for it; nothing that tells a machine, a port or a key."""
    teacher, usage = client.teacher, client.usage
    return {
        "judge_model": teacher.model,
        "judge_endpoint": teacher.place,
        "judge_licence": teacher.licence,
        "judge_requests": len(usage.keys),
        "judge_requests_unanswered": usage.unanswered,
        "judge_prompt_tokens": usage.prompt_tokens,
        "judge_completion_tokens": usage.completion_tokens,
        "judge_usd": usage.usd(teacher),
    }


def summary(contests: list[Contest], confidence: float) -> dict[str, float]:
    """Prompts by outcome, duplicates, and how much the place of an answer decides.

    judge_flips: share of comparisons whose verdict is another in the other order; the rest is what Zheng et al. 2023
    (arXiv:2306.05685) call consistent. judge_first: share of verdicts for an answer that are for the one that comes first, 0.5
    without a bias.
    """
    outcomes = Counter(contest.outcome for contest in contests)
    met = [meeting for contest in contests for meeting in contest.meetings.values()]
    words = [verdict.word for meeting in met for verdict in (meeting.forth, meeting.back)]
    valid = [meeting for meeting in met if meeting.is_valid]
    return {
        **{
            f"judge_prompts_{name}": outcomes[name]
            for name in ("decided", "tie", "one_answer", "cut", "invalid_verdict")
        },
        "judge_samples": sum(contest.samples for contest in contests),
        "judge_samples_cut": sum(contest.cut for contest in contests),
        "judge_duplicates": sum(contest.duplicates for contest in contests),
        "judge_answers": sum(len(contest.answers) for contest in contests),
        "judge_comparisons": len(met),
        "judge_comparisons_decided": sum(meeting.winner is not None for meeting in met),
        "judge_comparisons_tied": sum(meeting.winner is None for meeting in valid),
        "judge_verdicts": len(words),
        "judge_verdicts_invalid": words.count(None),
        **intervals.rate("judge_flips", [meeting.flips for meeting in valid], confidence),
        **intervals.rate("judge_first", [word == "A" for word in words if word in ("A", "B")], confidence),
    }


async def _held(client: Client, judge: Judge, contest: Contest, seed: int) -> Contest:
    places = list(combinations(range(len(contest.answers)), 2))
    found = await asyncio.gather(*(_meeting(client, judge, contest, one, two, seed) for one, two in places))
    return replace(contest, meetings=dict(zip(places, found, strict=True)))


async def _meeting(client: Client, judge: Judge, contest: Contest, one: int, two: int, seed: int) -> Meeting:
    orders = [(contest.answers[one], contest.answers[two]), (contest.answers[two], contest.answers[one])]
    asked = (_verdict(client, judge, conversation(contest.row), *order, seed) for order in orders)
    return Meeting(*await asyncio.gather(*asked))


async def _verdict(client: Client, judge: Judge, conversation: str, first: str, second: str, seed: int) -> Verdict:
    text = PROMPT.substitute(rubric=judge.rubric, conversation=conversation, first=first, second=second)
    reply = await client.ask(Request([{"role": "user", "content": text}], 0.0, 1.0, judge.max_tokens, seed))
    word = None if reply.failure or reply.truncated else parsed(reply.text)
    said = "" if word else " ".join((reply.detail or reply.text).split())[:200]
    return Verdict(word, said)
