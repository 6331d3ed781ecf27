"""Who judges in the stage `judge`: a reward model of our own, or a model behind any OpenAI-compatible endpoint.

An endpoint is asked about two answers in both orders, and one wins where both agree (temper/judge.py); what it says is kept in a
journal, so that a killed run asks nothing twice. A reward model reads one answer at a time, so that order cannot count. Whether
either is worth asking is measured on comparisons that people decided: one that is no better than chance on them, or that decided
too few to tell, is not asked.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from string import Template
from typing import Any, Protocol

from tqdm import tqdm

from temper import hub, human_labels, intervals, judge, mt_bench, progress, published, reward_scores
from temper.human_labels import FIRST, SECOND, TIE, Chat, Comparison, Labelled
from temper.judge import Meeting, Verdict
from temper.mt_bench import Question, Rating
from temper.published import Published
from temper.records import Row
from temper.reward_scores import Scorer
from temper.server import Server
from temper.teacher import Client, Request, Teacher, api_key
from temper.teacher import checked as checked_endpoint

SECTION = "judge.endpoint"
VERDICTS, RATINGS = (Path(f"tmp/judge/{name}.journal.jsonl") for name in ("verdicts", "ratings"))
KINDS = ("reward", "endpoint")
CHANCE = 0.5
# Each rate that has to be better than chance, and the count of what it is of: votes on one question are not independent.
RATES = {"human_pairs_accuracy": "human_pairs_decided", "human_votes_agreement": "human_votes_agreement_questions"}
PROMPT: Template = judge.PROMPT


@dataclass
class Labels:
    """Comparisons that people decided; null for none."""

    pairs: Published | None
    """Of a chosen and a rejected answer."""
    votes: Published | None
    """MT-Bench's human judgments."""
    limit: int | None
    """Comparisons of each, spread over the file; null for all."""
    least: int
    """Pairs that the judge has to decide, and questions of votes, to be used."""


@dataclass
class Settings:
    """What a judge is: the part of section `judge` that this module reads."""

    kind: str
    """reward or endpoint."""
    weights: str
    """The folder of the reward model, or one that the endpoint is started on."""
    max_length: int
    """Tokens of a chat that a reward model reads; a comparison with a longer one has no verdict."""
    micro_batch: int
    endpoint: Teacher | None
    rubric: str
    """By which an endpoint judges."""
    verdict_tokens: int
    """Of a verdict or a rating, with the thoughts before it."""
    seed: int


@dataclass(frozen=True)
class Ruling:
    value: float | None
    """1 for the first side, 0 for the second, 0.5 for a tie, None where there is no verdict."""
    flips: bool | None
    """Whether the verdict is another in the other order; None where order cannot count, or one order has no verdict."""
    evidence: list[Any]
    """Both rewards, or the verdicts of both orders."""


class Referee(Protocol):
    name: str

    def rulings(self, comparisons: Sequence[Comparison]) -> list[Ruling]: ...

    def bill(self) -> Row: ...


class RewardModel:
    """A reward model of ours: the answer with the higher reward wins."""

    def __init__(self, scorer: Scorer) -> None:
        self.name = f"reward model {scorer.folder}"
        self._scorer = scorer

    def rulings(self, comparisons: Sequence[Comparison]) -> list[Ruling]:
        chats = [one.opening + side for one in comparisons for side in one.sides]
        scores = reward_scores.scored(self._scorer, chats)
        return [_ruled(*scores[place : place + 2]) for place in range(0, len(scores), 2)]

    def bill(self) -> Row:
        return {}


class Endpoint:
    """A model behind an endpoint, asked in both orders."""

    def __init__(self, client: Client, settings: Settings, model: str) -> None:
        self.name = f"{model} ({client.teacher.place})"
        self._client, self._settings = client, settings

    def rulings(self, comparisons: Sequence[Comparison]) -> list[Ruling]:
        work = self._client.in_order(self._met(one) for one in comparisons)
        return [_met(meeting) for meeting in self._shown(work, len(comparisons))]

    def ratings(
        self, questions: Sequence[Question], answers: Sequence[Sequence[str]], prompts: dict[str, Row]
    ) -> list[Rating]:
        """MT-Bench's: each turn of each question's answers."""
        asked = product(zip(questions, answers, strict=True), (1, 2))
        work = (self._rated(question, of, turn, prompts) for (question, of), turn in asked)
        return list(self._client.in_order(work))

    def bill(self) -> Row:
        return judge.bill(self._client)

    def _shown(self, work: Iterator[Meeting], total: int) -> Iterator[Meeting]:
        """`work` as it passes, with a bar on a terminal and a line a minute elsewhere."""
        clock = progress.Clock()
        bar = tqdm(work, total=total, unit="comparisons", disable=not progress.on_terminal())
        for done, meeting in enumerate(bar, start=1):
            if bar.disable and (line := clock.line(done, total)):
                print(f"judge: {line}", flush=True)
            yield meeting

    async def _met(self, one: Comparison) -> Meeting:
        conversation = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in one.opening)
        first, second = (transcript(side) for side in one.sides)
        orders = ((first, second), (second, first))
        return Meeting(*await asyncio.gather(*(self._verdict(conversation, *order) for order in orders)))

    async def _verdict(self, conversation: str, first: str, second: str) -> Verdict:
        text = PROMPT.substitute(rubric=self._settings.rubric, conversation=conversation, first=first, second=second)
        reply = await self._client.ask(self._request([{"role": "user", "content": text}]))
        word = None if reply.failure or reply.truncated else judge.parsed(reply.text)
        return Verdict(word, "" if word else (reply.detail or reply.text))

    async def _rated(self, question: Question, answers: Sequence[str], turn: int, prompts: dict[str, Row]) -> Rating:
        reply = await self._client.ask(self._request(mt_bench.asked(question, answers, turn, prompts)))
        return Rating(question, turn, None if reply.failure else mt_bench.rating(reply.text))

    def _request(self, messages: Chat) -> Request:
        return Request(messages, 0.0, 1.0, self._settings.verdict_tokens, self._settings.seed)


@dataclass(frozen=True)
class Standing:
    """What a judge is worth, by comparisons that people decided."""

    values: Row
    """Metrics: accuracy and agreement with intervals, and what was not measured."""
    reason: str
    """Why it is unusable; empty for one that is better than chance on enough of them."""

    @property
    def is_usable(self) -> bool:
        return not self.reason


def checked(settings: Settings) -> Settings:
    """The settings, if they make sense; exits naming the one that does not."""
    if settings.kind not in KINDS:
        raise SystemExit(f"judge.kind is '{settings.kind}': choose {' or '.join(KINDS)}")
    if settings.kind == "endpoint":
        if settings.endpoint is None or not settings.endpoint.model.strip():
            raise SystemExit(
                f"{SECTION}.model is empty: choose judge=endpoint, and set model, base_url and licence of the endpoint that judges "
                f"(synthesize/teacher@{SECTION}=base serves models/base here)"
            )
        checked_endpoint(settings.endpoint, SECTION)
        api_key(settings.endpoint, SECTION)
    return settings


@contextmanager
def seated(settings: Settings, runtime: dict[str, Any]) -> Iterator[Referee]:
    """The judge that compares, for the time of the block."""
    if settings.kind == "reward":
        yield RewardModel(reward_scores.reward(Path(settings.weights), settings.max_length, settings.micro_batch))
        return
    with asked(settings, runtime, VERDICTS, {"response_format": judge.FORMAT}) as endpoint:
        yield endpoint


@contextmanager
def asked(settings: Settings, runtime: dict[str, Any], journal: Path, extra: dict[str, Any]) -> Iterator[Endpoint]:
    """The endpoint, or this repository's vLLM on the folder that it names; `extra` goes into each request, a setting before it."""
    assert settings.endpoint is not None
    teacher = replace(settings.endpoint, extra=extra | settings.endpoint.extra)
    if not teacher.start_server:
        with Client(teacher, journal, section=SECTION) as client:
            yield Endpoint(client, settings, teacher.model)
        return
    model = Path(teacher.model)
    with Server(model, teacher.dtype, settings.seed, runtime) as server:
        served = replace(teacher, base_url=f"{server.url}/v1", model=server.name)
        with Client(served, journal, hub.digest(model), SECTION) as client:
            yield Endpoint(client, settings, str(model))


def standing(referee: Referee, labels: Labels, confidence: float, seed: int) -> Standing:
    """What the judge says of comparisons that people decided; it is unusable where they do not show it better than chance."""
    values: Row = {}
    readers = {"pairs": (labels.pairs, human_labels.pairs), "votes": (labels.votes, human_labels.votes)}
    for name, (labelled, read) in readers.items():
        why = published.missing(labelled)
        if why or labelled is None:
            values[f"human_{name}"] = why
            continue
        found = read(labelled, labels.limit)
        rulings = referee.rulings([one.comparison for one in found])
        values |= {f"human_{name}": labelled.name} | measured(name, found, rulings, confidence, seed)
    return Standing(values, unusable(values, labels.least))


def measured(
    name: str, labelled: Sequence[Labelled], rulings: Sequence[Ruling], confidence: float, seed: int
) -> dict[str, float]:
    """Metrics of a judge on one kind of labels."""
    verdicts = [ruling.value for ruling in rulings]
    bias = order_bias(f"human_{name}", rulings, confidence)
    if name == "pairs":
        return human_labels.accuracy("human_pairs", labelled, verdicts, confidence) | bias
    return human_labels.agreement("human_votes", labelled, verdicts, confidence, seed) | bias


def unusable(values: Row, least: int) -> str:
    """Why a judge with these metrics is not to be used, empty where it is: better than chance on all labels that there are, and on
    `least` of each kind. Five of five are better than chance by their interval, and no measure of a judge."""
    rates = {key: count for key, count in RATES.items() if count in values}
    if not rates:
        return "not measured on any comparison that people decided"
    for key, count in rates.items():
        if values[count] < least:
            return f"too few to tell: {count} is {values[count]}, fewer than judge.labels.least ({least})"
        if not values[f"{key}_low"] > CHANCE:
            low, high = (100 * values[f"{key}_{end}"] for end in ("low", "high"))
            return f"no better than chance: {key} is {100 * values[key]:.1f}% ({low:.1f}–{high:.1f})"
    return ""


def order_bias(name: str, rulings: Sequence[Ruling], confidence: float) -> dict[str, float]:
    """How often the order of two answers decides, of a judge that reads both at once (Zheng et al. 2023, position bias)."""
    flips = [ruling.flips for ruling in rulings if ruling.flips is not None]
    without = {f"{name}_without_verdict": sum(ruling.value is None for ruling in rulings)}
    return without | (intervals.rate(f"{name}_flips", flips, confidence) if flips else {})


def contest(row: Row, own: Sequence[str], base: Sequence[str]) -> Comparison:
    """A model's answer to a row, first, and the base's."""
    first, second = ([{"role": "assistant", "content": of[0]}] for of in (own, base))
    return Comparison(row["id"], row["messages"][:-1], (first, second))


def shown(one: Comparison, ruling: Ruling) -> Row:
    """A verdict with what it is on."""
    own, base = (side[-1]["content"] for side in one.sides)
    return {"id": one.id, "prompt": one.opening, "answer": own, "base": base, **asdict(ruling)}


def told(values: Row) -> list[str]:
    """Parts of a line for a terminal: what is known of the judge beside what it says."""
    if not values["usable"]:
        return [f"{values['judge']} is unusable, so nothing is judged by it: {values['unusable_because']}"]
    rates = ("human_pairs_accuracy", "human_votes_agreement", "win_rate", "length_controlled_win_rate")
    spans = {key: tuple(values[f"{key}{end}"] for end in ("", "_low", "_high")) for key in rates if key in values}
    shown = [f"{key} {value:.3f} ({low:.3f}–{high:.3f})" for key, (value, low, high) in spans.items()]
    return [str(values["judge"]), *shown, f"against the base: {values.get('win_verdict', 'no verdict')}"]


def transcript(side: Chat) -> str:
    """A side as the judge reads it: the answer, or where there are further turns, each with its role."""
    if len(side) == 1:
        return side[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in side)


def _ruled(first: float | None, second: float | None) -> Ruling:
    if first is None or second is None:
        return Ruling(None, None, [first, second])
    return Ruling(TIE if first == second else FIRST if first > second else SECOND, None, [first, second])


def _met(meeting: Meeting) -> Ruling:
    words = [meeting.forth.word, meeting.back.word]
    if not meeting.is_valid:
        said = next((one.detail for one in (meeting.forth, meeting.back) if one.detail), "")
        return Ruling(None, None, [*words, " ".join(said.split())[:200]])
    return Ruling({0: FIRST, 1: SECOND}.get(meeting.winner, TIE), meeting.flips, words)  # type: ignore[arg-type]
