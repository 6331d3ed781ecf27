"""Rows grown from seed examples by a teacher: Self-Instruct, Evol-Instruct, rewording, and distilled answers.

Every method gives rows in an order that depends on the seeds, the settings and the teacher's replies alone. A row that
leaves carries its `reason` and what was proposed; one that stays carries its `provenance`. Requests get seeds of their own,
so that a repeated run asks the same things.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from temper import calls, licences, progress, record
from temper.record import BadRow
from temper.records import Row
from temper.rouge import WORD
from temper.seeds import Chat, Seed, identity
from temper.teacher import Client, Reply, Request

T = TypeVar("T")
PROMPTS = Path(__file__).parent / "prompts"
SHORT_REFUSAL = 80  # words; Evol-Instruct's second rule
# Evol-Instruct's third rule. Not in it, since each may be a whole answer: a, i, no, not, and numbers.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "about after all also an and any are as at be been but by can did do does for from had has have he her his how if"
        " in into is it its just me more most my of on or our out over she so some such than that the their them then there"
        " these they this those to too up very was we were what when where which while who why will with would you your",
    )
)


@dataclass
class Sampling:
    temperature: float
    top_p: float
    max_tokens: int
    """Of any reply."""


@dataclass(frozen=True)
class Work:
    """What every method works with."""

    client: Client
    sampling: Sampling
    method: str
    seed: int

    async def ask(self, chat: Chat, name: str, temperature: float | None = None) -> Reply:
        """A reply to `chat`; `name` says what it is for, and gives the request its seed."""
        chosen = self.sampling.temperature if temperature is None else temperature
        number = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:4]) // 2
        return await self.client.ask(
            Request(chat, chosen, self.sampling.top_p, self.sampling.max_tokens, number),
        )

    async def fill(self, template: str, name: str, temperature: float | None = None, **values: object) -> Reply:
        """A reply to a prompt of temper/prompts/."""
        text = prompt(template, **values)
        return await self.ask([{"role": "user", "content": text}], f"{name}/{template}", temperature)

    async def judge(self, template: str, **values: object) -> Reply:
        return await self.fill(template, "judge", 0.0, **values)

    def row(self, seed: Seed, request: str, answer: str, parents: Iterable[str], **evidence: object) -> Row:
        """A row that stays, in the messages format, with where it comes from."""
        teacher = self.client.teacher
        provenance = {
            "method": self.method,
            "teacher": teacher.model,
            "teacher_licence": teacher.licence,
            "endpoint": teacher.place,
            "parents": list(parents),
            **evidence,
        }
        turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        licence = licences.together([teacher.licence, seed.carried.get("licence")])
        made = {"messages": [*seed.head, *turns], "licence": licence, "provenance": provenance}
        return record.identified(seed.carried | made)

    def left(self, reason: str, parents: Iterable[str], request: str, answer: str = "", **evidence: Any) -> Row:
        """A row that leaves; without `messages`, so that a glob over raw/ cannot take it for data."""
        proposal = {"request": request, "answer": answer}
        return {"reason": reason, "method": self.method, "parents": list(parents), "proposal": proposal, **evidence}

    def shown(
        self, items: Iterable[T], total: int, what: str, counts: Callable[[T], bool] = lambda _: True
    ) -> Iterator[T]:
        """`items` as they pass, with a bar on a terminal and a line a minute elsewhere; `counts` says which are steps."""
        from tqdm import tqdm

        clock, done, first = progress.Clock(), 0, 0
        with tqdm(total=total, unit=what, disable=not progress.on_terminal()) as bar:
            for item in items:
                if counts(item):
                    done += 1
                    bar.update()
                    if self.client.asked == 0:
                        # Read from the journal, which says nothing about how long the rest takes.
                        clock, first = progress.Clock(), done
                    elif bar.disable and (line := clock.line(done, total, first)):
                        print(f"{what}: {line}", flush=True)
                yield item


def flaw(reply: Reply, tools: list[Row]) -> str | None:
    """Why an answer is none: no text, cut off, a short refusal (rule 2), no content words (rule 3), not a call."""
    if reason := unusable(reply):
        return reason
    if tools:
        return None if is_call(reply.text, tools) else "bad_call"
    words = WORD.findall(reply.text.lower())
    if "sorry" in words and len(words) < SHORT_REFUSAL:
        return "refusal"
    return None if set(words) - STOP_WORDS else "no_content"


def unusable(reply: Reply) -> str | None:
    """Why there is no whole text in a reply."""
    if reason := reply.failure or garbled(reply.text):
        return reason
    if reply.truncated:
        return "truncated"
    return None if unwrapped(reply.text) else "empty"


def garbled(text: str) -> str | None:
    """The reason for which no record may hold a text (a NUL character); None for a good one."""
    try:
        identity([], text)
    except BadRow as error:
        return error.reason
    return None


def is_call(text: str, tools: list[Row]) -> bool:
    """Whether an answer is null or a call that one of the tools takes."""
    try:
        call = calls.parse(text)
    except ValueError:
        return False
    if call is None:
        return True
    gold = {
        "name": call["name"],
        "arguments": {key: [calls.accepting(value)] for key, value in call["arguments"].items()},
    }
    return any(tool["name"] == call["name"] for tool in tools) and calls.score(text, tools, gold).exact


def unwrapped(text: str) -> str:
    """A text without the label or the quotes that teachers like to put around it."""
    text = re.sub(r"^#?(rewritten|created|reworded) (prompt|request)#?:?\s*", "", text.strip(), flags=re.IGNORECASE)
    inner = text[1:-1]
    return inner.strip() if text[:1] == text[-1:] == '"' and '"' not in inner else text


def answered(work: Work, seed: Seed, request: str, reply: Reply, parents: Iterable[str], **evidence: object) -> Row:
    if reason := flaw(reply, seed.tools):
        return work.left(reason, parents, request, reply.text, detail=reply.detail, **evidence)
    return work.row(seed, request, reply.text, parents, **evidence)


def conversation(seed: Seed) -> str:
    return seed.request if not seed.head else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in seed.chat)


def setting(seed: Seed) -> str:
    """What a prompt says about the system turn of a seed; "" without one."""
    return prompt("setting", system=seed.system) if seed.system else ""


def prompt(name: str, **values: object) -> str:
    return _template(name).substitute(values)


@cache
def _template(name: str) -> Template:
    return Template((PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n"))
