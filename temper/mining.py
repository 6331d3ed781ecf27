"""What of a log is worth a person's time: failures, answers that a model is not sure of, and requests unlike its training.

Each prompt is one row of the queue, however often it came: with its reasons, how much speaks for it, what was answered, and an
answer that may be the right one. Failures come first, then what is uncertain, then what is unlike training; each by priority.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from temper import calls, consistency, formats, record, structured
from temper.record import BadRow
from temper.records import Row
from temper.traffic import Exchange

FAILURE, UNCERTAIN, UNLIKE = "failure", "uncertain", "unlike"
DOWN, LOW, INVALID = "thumbs_down", "low_score", "invalid"
UP = "up"
CUT = ("length",)  # endings of an answer that was not whole


@dataclass
class Failures:
    low_score: float
    """A judge's score under it is a failure."""
    calls_only: bool
    """Whether an answer to a request with tools must be a call or null, as this repository trains them."""


@dataclass
class Uncertain:
    samples: int
    """Answers to a prompt, at least, to tell by."""
    cosine: float
    """Of the embeddings of two texts that mean the same, at least."""
    entropy: float
    """In [0, 1], from which a prompt is uncertain."""


@dataclass
class Prompt:
    """All exchanges with one prompt."""

    exchanges: list[Exchange]
    sampled: list[str] = field(default_factory=list)
    """More answers, asked of an endpoint."""
    faults: dict[str, float] = field(default_factory=dict)
    """Reasons of the failures with their weights, in (0, 1]."""
    failing: list[Exchange] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """Answers of exchanges that failed, in canonical form."""
    entropy: float | None = None
    """None where there are too few answers to tell."""
    suggested: str | None = None
    distance: float | None = None
    """From the nearest training row."""

    @property
    def first(self) -> Exchange:
        return self.exchanges[0]

    @property
    def shown(self) -> Exchange:
        """The exchange that a person is shown: the first with a thumb down, else the first that failed, else the last."""
        down = [one for one in self.failing if one.thumbs == "down"]
        return (down or self.failing or self.exchanges[::-1])[0]

    @property
    def answers(self) -> list[str]:
        """Every answer that was whole, and those sampled."""
        return [text for one in self.exchanges for text in whole(one)] + self.sampled


def prompts(exchanges: Iterable[Exchange]) -> list[Prompt]:
    """By prompt, in the order of their first exchange; conversations that no row of data can hold are left out."""
    found: dict[str, Prompt] = {}
    for one in exchanges:
        found.setdefault(one.prompt, Prompt([])).exchanges.append(one)
    return [prompt for prompt in found.values() if trainable(prompt.first)]


def key(turns: Sequence[Row], tools: Sequence[Row]) -> str:
    """Of a prompt: the same whichever of its exchanges is shown, and from one log to the next."""
    asked = json.dumps([turns, tools], sort_keys=True)
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def trainable(one: Exchange) -> bool:
    """Whether the request with some answer would be a row that `ingest` takes."""
    try:
        made(one, "null" if one.tools else "an answer")
    except BadRow:
        return False
    return True


def made(one: Exchange, answer: str) -> Row:
    """The request and an answer as `ingest` makes a record of them; raises BadRow for what it would reject."""
    return record.make(formats.converted(row(one.turns, one.tools, answer), "messages", ""), "mined", "", "mined")


def row(turns: Sequence[Row], tools: Sequence[Row], answer: str) -> Row:
    """As a file of raw/ has it, in the format `messages`: the tools' signatures before what a system turn says besides."""
    said = {"role": "assistant", "content": answer}
    if not tools:
        return {"messages": [*turns, said]}
    own = [turn["content"] for turn in turns[:1] if turn["role"] == "system"]
    shown = [text for text in own if not text.startswith(calls.INSTRUCTION)]
    system = {"role": "system", "content": "\n\n".join([calls.system_prompt(list(tools)), *shown])}
    return {"messages": [system, *turns[len(own) :], said], "tools": list(tools)}


def whole(one: Exchange) -> list[str]:
    """The answers that ended by themselves."""
    return [text for text, ending in zip(one.answers, one.endings, strict=True) if ending not in CUT and text.strip()]


def find_failures(prompt: Prompt, rules: Failures) -> None:
    """Note what went wrong, each reason by its gravest case, and an answer to the same prompt that was liked."""
    for one in prompt.exchanges:
        found = faults(one, rules)
        if found:
            prompt.failing.append(one)
            prompt.failed |= set(map(consistency.canonical, one.answers))
        for reason, weight in found.items():
            prompt.faults[reason] = max(weight, prompt.faults.get(reason, 0.0))
    liked = (text for one in prompt.exchanges if one.thumbs == UP and not faults(one, rules) for text in whole(one))
    prompt.suggested = next(liked, None)


def faults(one: Exchange, rules: Failures) -> dict[str, float]:
    """Reasons why an exchange failed, with their weights."""
    found = {}
    if one.thumbs == "down":
        found[DOWN] = 1.0
    if one.score is not None and one.score < rules.low_score:
        found[LOW] = 1 - one.score / rules.low_score
    if broken := invalid(one, rules.calls_only):
        found[f"{INVALID}_{broken}"] = 1.0
    return found


def invalid(one: Exchange, calls_only: bool) -> str:
    """What of an exchange's answers is no answer at all: `error`, `empty`, `cut`, `form`, `tool`, `arguments`; "" if nothing."""
    if one.status >= 500 or one.ended == "late":
        return "error"
    if one.status >= 400 or one.ended:
        return ""  # the caller left, or asked what cannot be
    if not any(text.strip() for text in one.answers):
        return "empty"
    if any(ending in CUT for ending in one.endings):
        return "cut"
    return next(filter(None, (malformed(one, text, calls_only) for text in one.answers)), "")


def malformed(one: Exchange, answer: str, calls_only: bool) -> str:
    """What is wrong with an answer's form, by the request's tools or its own schema."""
    if one.wants_call and (calls_only or consistency.is_call(answer)):
        return misfit(answer, one.tools)
    form = one.request.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in ("json_object", "json_schema"):
        return ""
    schema = ((form or {}).get("json_schema") or {}).get("schema", {}) if kind == "json_schema" else {"type": "object"}
    return "" if fits(answer, schema) else "form"


def misfit(answer: str, tools: Sequence[Row]) -> str:
    """Why an answer is no call that the tools take, nor null."""
    try:
        call = calls.parse(answer)
    except ValueError:
        return "form"
    if call is None or not tools:
        return ""
    named = [tool for tool in tools if tool["name"] == call["name"]]
    if not named:
        return "tool"
    known = named[0]["parameters"].get("properties", {})
    takes = structured.schema(named) if known else {}
    strange = set(call["arguments"]) - set(known) if known else set()
    return "arguments" if strange or not fits(answer, takes) else ""


def fits(answer: str, schema: Any) -> bool:
    """Whether an answer is JSON of a schema; one that is no schema asks for nothing."""
    try:
        value = json.loads(answer)
        validator = _validator(json.dumps(schema, sort_keys=True))
        return validator is None or validator.is_valid(value)
    except (ValueError, RecursionError):
        return False


@lru_cache(10_000)
def _validator(schema: str) -> Draft202012Validator | None:
    """Of a schema as JSON; None where it is none."""
    found = json.loads(schema)
    try:
        Draft202012Validator.check_schema(found)
    except SchemaError:
        return None
    return Draft202012Validator(found)


def find_uncertain(found: Sequence[Prompt], rules: Uncertain, embed: consistency.Embed) -> None:
    """Note how sure the model is of each prompt that has answers enough, and what it says most often."""
    asked = [prompt for prompt in found if len(prompt.answers) >= rules.samples]
    groups = [prompt.answers for prompt in asked]
    for prompt, group, of in zip(asked, groups, consistency.classes(groups, embed, rules.cosine), strict=True):
        prompt.entropy = consistency.entropy(of)
        prompt.suggested = prompt.suggested or suggestion(prompt, group, of)


def suggestion(prompt: Prompt, answers: Sequence[str], of: Sequence[int]) -> str | None:
    """What was answered most often and well formed, without what a failure answered; None where nothing is left."""
    wrong = [text for text in answers if consistency.canonical(text) in prompt.failed]
    kept = [
        (text, place)
        for text, place in zip(answers, of, strict=True)
        if text not in wrong and not malformed(prompt.first, text, calls_only=True)
    ]
    return consistency.majority(*zip(*kept, strict=True)) if kept else None


def praised(prompt: Prompt, high_score: float, rules: Failures) -> str | None:
    """An answer that somebody liked or a judge scored high, well formed and liked by all who said something; None without one."""
    if prompt.faults:
        return None
    for one in prompt.exchanges:
        liked = one.thumbs == UP or (one.score is not None and one.score >= high_score)
        if liked and len(one.answers) == 1 and not invalid(one, rules.calls_only):
            return one.answers[0]
    return None


def queue(
    found: Sequence[Prompt], rules: Uncertain, unlike: Callable[[Prompt], bool], most: Mapping[str, int]
) -> list[Row]:
    """The rows to label, by reason and priority, of each reason at most as many as `most` allows."""
    ranked: dict[str, list[tuple[float, int, str, Row]]] = {FAILURE: [], UNCERTAIN: [], UNLIKE: []}
    for prompt in found:
        if reason := reason_of(prompt, rules, unlike):
            value = priority(prompt, reason)
            ranked[reason].append((-value, -len(prompt.exchanges), prompt.first.id, entry(prompt, reason, value)))
    return [one[-1] for reason, rows in ranked.items() for one in sorted(rows, key=lambda one: one[:3])[: most[reason]]]


def reason_of(prompt: Prompt, rules: Uncertain, unlike: Callable[[Prompt], bool]) -> str | None:
    if prompt.faults:
        return FAILURE
    if prompt.entropy is not None and prompt.entropy >= rules.entropy:
        return UNCERTAIN
    return UNLIKE if unlike(prompt) else None


def priority(prompt: Prompt, reason: str) -> float:
    """Of a failure the weights of its reasons and how uncertain it is, together; of others the entropy or the distance."""
    if reason == UNLIKE:
        return prompt.distance or 0.0
    return sum(prompt.faults.values()) + (prompt.entropy or 0.0)


def entry(prompt: Prompt, reason: str, value: float) -> Row:
    """A row of the queue; `label` is for a person to fill in."""
    one = prompt.shown
    return {
        "id": one.id,
        "prompt": key(one.turns, one.tools),
        "reason": reason,
        "reasons": sorted(prompt.faults),
        "priority": round(value, 4),
        "entropy": None if prompt.entropy is None else round(prompt.entropy, 4),
        "requests": len(prompt.exchanges),
        "model": one.model,
        "time": one.time.isoformat(),
        "messages": one.turns,
        "tools": one.tools,
        "answer": one.answers[0] if one.answers else "",
        "comments": [text for each in prompt.exchanges for text in each.comments],
        "suggested": prompt.suggested,
        "label": None,
    }
