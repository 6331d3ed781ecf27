"""What a server's log says: requests with their answers and what people or judges thought of them, and never an identifier.

The log is that of `make serve` (temper/request_log.py). Records that were not scrubbed, or that still hold what a pattern of
identifiers fits, are refused: what is mined is trained on, and a model may repeat it to anyone.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from temper import calls, record, records, request_log, structured, tool_calls
from temper.masking import Allowed
from temper.presidio import Search
from temper.record import BadRow
from temper.records import Row

BATCH = 64
BLOCKED = ("blocked", "failed")  # by the guard: neither the model's failure nor anything to learn from
SCRUB = "logs that `make serve` writes are (serve.log.pii): log through it, or scrub these by `python -m commands.serve_log`"


@dataclass(frozen=True)
class Exchange:
    """A request, its answers, and the feedback on them."""

    id: str
    time: datetime
    request: Row
    answers: tuple[str, ...]
    """Each as one text: a call as JSON, whichever way the engine gave it."""
    endings: tuple[str, ...]
    """Why each ended: `stop`, `length`, `tool_calls`, …"""
    status: int
    ended: str
    """What cut the exchange: `late`, `gone`, …; "" where nothing did."""
    verdict: str
    """The guard's."""
    model: str
    thumbs: str | None = None
    score: float | None = None
    """A judge's, 0 to 1."""
    comments: tuple[str, ...] = field(default=())

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """Name and parameters of each; none where the request lists none that signatures can be made of."""
        try:
            return record.checked_tools(tool_calls.plain(structured.functions(self.request.get("tools"))))
        except (ValueError, BadRow):
            return []

    @cached_property
    def asked(self) -> str:
        """What the user said, all turns."""
        return "\n".join(turn["content"] for turn in self.turns if turn["role"] == "user")

    @cached_property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as a row of data has it; none where it is none, such as one with pictures."""
        messages = self.request.get("messages")
        try:
            turns = [tool_calls.turn(message) for message in messages or ()]
        except BadRow:
            return []
        is_plain = all(isinstance(turn["content"], str) and isinstance(turn["role"], str) for turn in turns)
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns] if is_plain else []

    @cached_property
    def prompt(self) -> str:
        """What tells prompts apart: the conversation and the tools."""
        return json.dumps([self.turns, self.tools], sort_keys=True, ensure_ascii=False)

    @property
    def wants_call(self) -> bool:
        """Whether the request asks for a call or null as training does, by listed tools or by its system turn."""
        first = self.turns[0] if self.turns else {"role": "", "content": ""}
        return bool(self.tools) or (first["role"] == "system" and first["content"].startswith(calls.INSTRUCTION))


@dataclass(frozen=True)
class Log:
    exchanges: list[Exchange]
    """By time."""
    counts: Counter[str]
    """`requests`, `feedback`, `feedback_of_nobody` (on what the log does not have), and what was left out, by reason."""


def files(named: str) -> list[Path]:
    """The files of a log: a folder's and those of folders in it, as replicas write them, or one file; the oldest first."""
    place = Path(named)
    found = sorted(place.rglob("requests*.jsonl")) if place.is_dir() else [place]
    if not found or not found[0].is_file():
        raise SystemExit(
            f"{named}: no log there: name the folder that `make serve` writes (serve.log.folder), or a file"
        )
    # The current file has the newest records, and the name that sorts last by chance alone.
    return sorted(found, key=lambda path: (path.name == request_log.CURRENT, path.name))


def read(paths: Sequence[Path], search: Search | None, allowed: Allowed) -> Log:
    """Requests of chats that reached the model, each with its feedback; exits at the first record that is not scrubbed.

    The last thumb and the last score of an answer count. `search` looks for identifiers by pattern; None trusts the log's own mark.
    """
    found: dict[str, Row] = {}
    opinions: list[Row] = []
    for row in _scrubbed(paths, search, allowed):
        if row["kind"] == "request":
            found[str(row["id"])] = row
        elif row["kind"] == "feedback":
            opinions.append(row)
    counts = Counter(requests=len(found), feedback=len(opinions))
    by_id: dict[str, list[Row]] = {}
    for row in sorted(opinions, key=lambda one: one["time"]):
        by_id.setdefault(str(row["id"]), []).append(row)
    counts["feedback_of_nobody"] = sum(len(rows) for name, rows in by_id.items() if name not in found)
    exchanges = []
    for name, row in found.items():
        if reason := _left_out(row):
            counts[f"left_out_{reason}"] += 1
        else:
            exchanges.append(_exchange(row, by_id.get(name, [])))
    return Log(sorted(exchanges, key=lambda one: (one.time, one.id)), counts)


def _scrubbed(paths: Sequence[Path], search: Search | None, allowed: Allowed) -> Iterator[Row]:
    for path in paths:
        places = ((f"{path}:{number}", row) for number, row in enumerate(records.read(path), start=1))
        formed = (_formed(place, row) for place, row in places)
        while batch := list(islice(formed, BATCH)):
            if search:
                _refuse_identifiers(batch, search, allowed)
            yield from (row for _, row in batch)


def _formed(place: str, row: Row) -> tuple[str, Row]:
    if row.get("kind") not in ("request", "feedback") or "id" not in row or "time" not in row:
        raise SystemExit(f"{place}: no record of a log (kind, id, time): {SCRUB}")
    # The process that scrubs writes the time as text; before it, it is a number.
    if not isinstance(row["time"], str):
        raise SystemExit(f"{place}: a record that was not scrubbed: {SCRUB}")
    if not _is_time(row["time"]):
        raise SystemExit(f"{place}: time is {row['time'][:40]!r}, where a moment with its zone was expected: {SCRUB}")
    return place, row


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _refuse_identifiers(batch: Sequence[tuple[str, Row]], search: Search, allowed: Allowed) -> None:
    for (place, _), kinds in zip(batch, request_log.personal([row for _, row in batch], search, allowed), strict=True):
        if kinds:
            named = ", ".join(sorted(set(kinds.values())))
            raise SystemExit(
                f"{place}: holds what looks like {named}: {SCRUB}; what is none can be allowed in mine.pii.allow (conf/mine)"
            )


def _left_out(row: Row) -> str:
    """Why an exchange tells nothing of the model; "" where it does."""
    if not row.get("path", "").endswith("/chat/completions"):
        return "completion"  # a bare prompt is no conversation to train on
    if row.get("unscrubbed"):
        return "unscrubbed"  # its texts were not kept
    if row.get("guard", {}).get("verdict") in BLOCKED:
        return "blocked"
    status = int(row.get("status", 0))
    return "refused" if 400 <= status < 500 else ""


def _exchange(row: Row, opinions: Sequence[Row]) -> Exchange:
    choices = row.get("response", {}).get("choices", [])
    thumbs = [one["thumbs"] for one in opinions if one.get("thumbs")]
    scores = [one["score"] for one in opinions if one.get("score") is not None]
    return Exchange(
        id=str(row["id"]),
        time=datetime.fromisoformat(row["time"]),
        request=row.get("request", {}),
        answers=tuple(said(choice) for choice in choices),
        endings=tuple(str(choice.get("finish_reason", "")) for choice in choices),
        status=int(row.get("status", 0)),
        ended=str(row.get("response", {}).get("ended", "")),
        verdict=str(row.get("guard", {}).get("verdict") or ""),
        model="@".join(filter(None, (str(row.get("model", "")), str(row.get("revision", ""))[:12]))),
        thumbs=thumbs[-1] if thumbs else None,
        score=float(scores[-1]) if scores else None,
        comments=tuple(str(one["comment"]) for one in opinions if one.get("comment")),
    )


def said(choice: Row) -> str:
    """A choice of the log as one text. Its calls, `name 0` and `arguments 0`, are written as the answers that training has."""
    made = [key.removeprefix("name ") for key in sorted(choice) if key.startswith("name ")]
    if not made:
        return str(choice.get("content") or choice.get("refusal") or "")
    written = [_call(str(choice[f"name {number}"]), str(choice.get(f"arguments {number}", ""))) for number in made]
    return written[0] if len(written) == 1 else "\n".join(written)


def _call(name: str, arguments: str) -> str:
    try:
        return json.dumps({"name": name, "arguments": json.loads(arguments or "{}")}, ensure_ascii=False)
    except ValueError:
        return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'  # as broken as it was
