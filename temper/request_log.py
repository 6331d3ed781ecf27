"""The log of requests and answers: JSON lines without personal identifiers, in files of bounded size.

A record of `kind` `request` has id, time, model, revision, path, request, response, status, usage, latency (seconds) and the
guard's verdict; one of `kind` `feedback` has the id of the answer that it is about, thumbs, score and comment.

What could not be scrubbed is not written: such a record has `unscrubbed`, the error's name, in the place of all texts.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import regex

from temper import masking, records, request_text, structured
from temper.masking import Allowed, StandIn
from temper.presidio import Search
from temper.records import Row

TEXTS = ("request", "response", "comment", "guard")  # of a record: what people or models wrote
CURRENT = "requests.jsonl"
SIGNATURE = re.compile(r"(?m)^([\w.-]+)\(")  # of calls.signature
# Keys that are no caller's words: those of OpenAI's requests and answers, of JSON schemas and of a record. All others are scrubbed.
FORM = request_text.KEPT | {
    *("role", "content", "name", "type", "text", "refusal", "thinking", "reasoning", "reasoning_content", "image_url"),
    *("url", "detail", "tool_calls", "tool_call_id", "function_call", "function", "id", "index", "arguments", "strict"),
    *("json_schema", "schema", "parameters", "properties", "required", "items", "enum", "const", "description"),
    *("title", "default", "examples", "format", "pattern", "minimum", "maximum", "additionalProperties", "anyOf"),
    *("oneOf", "allOf", "$ref", "$defs", "choices", "ended", "finish_reason", "verdict", "rule"),
}
NUMBERED = re.compile(r"(?:name|arguments) \d+")  # of replies.texts: the calls of an answer
DIGITS = 7  # of a number from which on it may be a telephone's or a card's
# What is kept of a record whose texts could not be scrubbed: nothing that anybody wrote.
UNWRITTEN = ("kind", "id", "time", "model", "revision", "path", "status", "usage", "latency", "thumbs", "score")
# What taggers, and readers of JSON and code, raise at a text that they were not made for.
FAILURES: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, re.error, regex.error),
)
Scrub = Callable[[list[Row]], Iterator[Row]]


def surely(found: list[Row], scrub: Scrub) -> list[Row]:
    """The records as `scrub` leaves them. One that it fails at is kept without its texts, and takes no other with it."""
    try:
        return list(scrub(found))
    except FAILURES as error:
        if len(found) > 1:
            return [kept for record in found for kept in surely([record], scrub)]
        return [withheld(found[0], type(error).__name__)]


def withheld(record: Row, error: str) -> Row:
    """A record of which nobody's words are left, for they could not be scrubbed; `unscrubbed` says so, and why."""
    empty: Row = {"comment": None}
    if record["kind"] == "request":
        empty = {"request": {}, "response": {"choices": [], "ended": ""}, "guard": {"verdict": None, "rule": ""}}
    rest = {key: record[key] for key in UNWRITTEN if key in record}
    return rest | empty | {"time": timestamp(record["time"]), "unscrubbed": error}


def scrubbed(found: list[Row], search: Search, allowed: Allowed, stand_in: StandIn) -> Iterator[Row]:
    """The records with a stand-in wherever an identifier stood, the same one in all of a record's texts."""
    for record, kinds in zip(found, personal(found, search, allowed), strict=True):
        turns = masking.masked(_searchable(record), kinds, stand_in)["messages"]
        written = iter([turn["content"] for turn in turns])
        texts = {key: replaced(record[key], written) for key in TEXTS if key in record}
        counts = {"masked": dict(sorted(Counter(kinds.values()).items()))} if kinds else {}
        yield record | texts | {"time": timestamp(record["time"])} | counts


def personal(found: list[Row], search: Search, allowed: Allowed) -> Iterator[dict[str, str]]:
    """For each record the identifiers in its texts, with their kinds."""
    rows = [_searchable(record) for record in found]
    for record, kinds in zip(found, masking.identifiers(rows, search, allowed), strict=True):
        # A name in a call is not a person's, though taggers take it for one.
        own = tool_names(record)
        yield {text: kind for text, kind in kinds.items() if text not in own}


def _searchable(record: Row) -> Row:
    """The texts of a record as the turns of a row."""
    texts = (text for key in TEXTS for text in strings(record.get(key), key))
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def tool_names(record: Row) -> set[str]:
    """The tools of a request, whether it lists them or its system turn has their signatures."""
    request = record.get("request") or {}
    try:
        names = {tool["name"] for tool in structured.functions(request.get("tools"))}
    except ValueError:
        names = set()
    turns = [turn.get("content") for turn in request.get("messages") or () if turn.get("role") == "system"]
    return names.union(*(SIGNATURE.findall(text) for text in turns if isinstance(text, str)))


def strings(value: Any, key: str = "") -> Iterator[str]:
    """What is to be scrubbed in a value, in its order: strings, long numbers after their `key`, and keys that are not of the FORM.

    Of a file in a data URL there is only that there was one.
    """
    if isinstance(value, str):
        yield "<DATA>" if value.startswith("data:") else value
    elif is_long(value):
        yield json.dumps({key: value})
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from () if is_of_form(name) else strings(name)
            yield from strings(inner, name)


def replaced(value: Any, written: Iterator[str]) -> Any:
    """`value` with what `strings` has of it replaced by `written`, in its order. Keys that come out alike are numbered."""
    if isinstance(value, str):
        return next(written)
    if is_long(value):
        return next(iter(json.loads(next(written)).values()))
    if isinstance(value, list):
        return [replaced(inner, written) for inner in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = key if is_of_form(key) else unused(next(written), found)
        found[name] = replaced(inner, written)
    return found


def is_of_form(key: str) -> bool:
    return key in FORM or NUMBERED.fullmatch(key) is not None


def is_long(value: Any) -> bool:
    """Whether a number has as many digits as those that name a person."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= 10 ** (DIGITS - 1)


def unused(name: str, taken: Container[str]) -> str:
    """`name`, or the first of `name 2`, `name 3`, … that is free."""
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def batches(number: int, most: int = 1 << 20) -> Iterator[list[Row]]:
    """The records that arrive at the open pipe `number`, as many at once as are there, until nobody writes any more."""
    rest = b""
    while piece := os.read(number, most):
        *lines, rest = (rest + piece).split(b"\n")
        if found := [record for line in lines if (record := parsed(line))]:
            yield found


def parsed(line: bytes) -> Row | None:
    """A record; None for the end of one whose beginning went to a reader that died."""
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


class Files:
    """Append records to folder/requests.jsonl, which is put aside once it is full; only its owner may read it."""

    def __init__(self, folder: Path, max_bytes: int, max_files: int) -> None:
        self.folder, self.max_bytes, self.max_files = folder, max_bytes, max_files
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, found: list[Row]) -> None:
        text = b"".join(map(records.line, found))
        current = self.folder / CURRENT
        if current.is_file() and current.stat().st_size + len(text) > self.max_bytes:
            self._rotate(current)
        with os.fdopen(os.open(current, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as out:
            out.write(text)

    def _rotate(self, current: Path) -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        current.rename(current.with_name(f"requests-{now}.jsonl"))
        kept = sorted(self.folder.glob("requests-*.jsonl"), reverse=True)
        for old in kept[self.max_files :]:
            old.unlink()
