"""Rows whose answer is `null`, made by giving a request the tools of another row."""

import random
import re
from collections.abc import Callable, Iterator

from temper import calls, record
from temper.records import Row

CATEGORY = "mismatched"
# Shorter words (get, by, of) say nothing about what a function does.
WORD = re.compile(r"[A-Z]?[a-z]{3,}")


def missing(rows: list[Row], share: float) -> int:
    """How many null rows to add so that they are `share` of all; 0 when there are enough."""
    nulls = sum(row["gold"] is None for row in rows)
    return max(0, round((share * len(rows) - nulls) / (1 - share)))


def make(rows: list[Row], count: int, admit: Callable[[Row], bool], seed: int) -> list[Row]:
    """At most `count` rows, each the request of a call row under other tools, and only those that `admit` admits."""
    random_order = random.Random(f"{seed}/{CATEGORY}")
    origins = [row for row in rows if _is_plain_call(row)]
    random_order.shuffle(origins)
    made: list[Row] = []
    for origin in origins:
        if len(made) == count:
            break
        made.extend(row for row in _first(_twins(origin, rows, random_order), admit))
    return made


def _twins(origin: Row, rows: list[Row], random_order: random.Random, tries: int = 20) -> Iterator[Row]:
    """The request of `origin` under the tools of up to `tries` other rows that cannot serve it."""
    wanted = _words(f"{origin['gold']['name']} {record.request(origin)}")
    for other in random_order.sample(rows, min(tries, len(rows))):
        names = record.tool_names(other)
        # A tool that shares a word with the request or with the function that serves it may serve it too.
        if names and wanted.isdisjoint(_words(" ".join(names))) and origin["gold"]["name"] not in names:
            yield _twin(origin, other)


def _twin(origin: Row, other: Row) -> Row:
    system, user, answer = origin["messages"]
    system = system | {"content": calls.system_prompt(other["tools"])}
    messages = [system, user, answer | {"content": calls.answer(None)}]
    twin = origin | {"messages": messages, "tools": other["tools"], "gold": None, "category": CATEGORY}
    return record.identified(twin)


def _is_plain_call(row: Row) -> bool:
    """One request under a system turn of ours, so that its tools can be exchanged."""
    system, *turns = row["messages"]
    return row["gold"] is not None and len(turns) == 2 and system["content"] == calls.system_prompt(row["tools"])


def _first(rows: Iterator[Row], admit: Callable[[Row], bool]) -> list[Row]:
    return [row for row in [next(filter(admit, rows), None)] if row is not None]


def _words(text: str) -> set[str]:
    return {word.lower() for word in WORD.findall(text)}
