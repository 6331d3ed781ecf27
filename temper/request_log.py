"""The log of requests and answers: JSON lines without personal identifiers, in files of bounded size.

A record of `kind` `request` has id, time, model, revision, path, request, response, status, usage, latency (seconds) and the
guard's verdict; one of `kind` `feedback` has the id of the answer that it is about, thumbs, score and comment.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from temper import masking, records, structured
from temper.masking import Allowed, StandIn
from temper.presidio import Search
from temper.records import Row

TEXTS = ("request", "response", "comment", "guard")  # of a record: what people or models wrote
CURRENT = "requests.jsonl"
SIGNATURE = re.compile(r"(?m)^([\w.-]+)\(")  # of calls.signature


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
    texts = strings({key: record.get(key) for key in TEXTS})
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


def strings(value: Any) -> Iterator[str]:
    """The strings of a value in their order; of a file in a data URL only that there was one."""
    if isinstance(value, str):
        yield "<DATA>" if value.startswith("data:") else value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def replaced(value: Any, written: Iterator[str]) -> Any:
    """`value` with its strings replaced by those of `written`, in their order."""
    if isinstance(value, str):
        return next(written)
    if isinstance(value, dict):
        return {key: replaced(inner, written) for key, inner in value.items()}
    return [replaced(inner, written) for inner in value] if isinstance(value, list) else value


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
