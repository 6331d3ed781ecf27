"""Rows whose answer is `null`, made by giving a request the tools of another row."""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from temper import calls, record, records
from temper.records import Row

CATEGORY = "mismatched"
# Shorter words (get, by, of) say nothing about what a function does.
WORD = re.compile(r"[A-Z]?[a-z]{3,}")


def missing(rows: int, nulls: int, share: float) -> int:
    """How many null rows to add to `rows`, of which `nulls` are null, so that they are `share` of all; 0 when there are enough."""
    return max(0, round((share * rows - nulls) / (1 - share)))


def blocks(rows: Iterable[Row], count: int, size: int, folder: Path) -> Iterator[list[Row]]:
    """The `count` call rows among `rows`, in sorted blocks of about `size`.

    Both are by content: neither the rows' order nor their files or shards matter. At most `size` rows or a block are held; all
    are written to the empty `folder` on the way.
    """
    number = -(-count // size)
    remaining = (row for row in rows if record.kind(row) == "call")
    while batch := list(islice(remaining, size)):
        parts: dict[int, list[bytes]] = defaultdict(list)
        for row in batch:
            parts[int(_content(row)[0], 16) % number].append(records.line(row))
        for part, lines in parts.items():
            with (folder / f"{part:05d}").open("ab") as out:
                out.writelines(lines)
    for path in sorted(folder.iterdir()):
        yield sorted(records.read(path), key=_content)


def _content(row: Row) -> tuple[str, str]:
    """The id that a call row would have wherever it came from, and its own."""
    return record.identified({key: row[key] for key in ("messages", "tools", "gold")})["id"], row["id"]


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
