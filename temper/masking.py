"""Identifiers out of rows: a stand-in wherever one stands, so that answers still follow, and JSON and code stay valid."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from temper import calls, credentials, passages, presidio
from temper.passages import Passage
from temper.presidio import Search
from temper.records import Row

StandIn = Callable[[str, str], str]
"""From an identifier and its kind to what is written in its place."""

TURNS = ("messages", "chosen", "rejected")
BATCH = 64  # rows whose texts are searched together
START = re.compile(r"(?<!\w)\S")
NEVER = r"(?!)"  # matches nothing


def placeholder(identifier: str, kind: str) -> str:
    """`<EMAIL_ADDRESS>`: what stood there, and no more."""
    return f"<{kind}>"


@dataclass(frozen=True)
class Allowed:
    """Identifiers that stay: strings, whatever their case, and expressions that match a whole identifier."""

    strings: tuple[str, ...]
    patterns: tuple[str, ...]

    def check(self) -> None:
        """Exit naming a pattern that is no regular expression."""
        _compiled(self)

    def __contains__(self, identifier: str) -> bool:
        strings, patterns = _compiled(self)
        return identifier.casefold() in strings or any(pattern.fullmatch(identifier) for pattern in patterns)


def scrubbed(rows: Iterable[Row], search: Search, allowed: Allowed, stand_in: StandIn) -> Iterator[Row]:
    """Every row in its order, its identifiers replaced, its id as it was; at most BATCH rows are held.

    A row that had some says so: `masked` has the number of its distinct identifiers by kind.
    """
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        for row, kinds in zip(batch, identifiers(batch, search, allowed), strict=True):
            evidence = {"masked": dict(sorted(Counter(kinds.values()).items()))} if kinds else {}
            yield masked(row, kinds, stand_in) | evidence


def identifiers(rows: list[Row], search: Search, allowed: Allowed) -> list[dict[str, str]]:
    """For each row the identifiers in its texts, as they stand there, with their kinds."""
    texts = [list(searched(row)) for row in rows]
    distinct = list(dict.fromkeys(text for of_row in texts for text in of_row))
    spans = dict(zip(distinct, presidio.spans(distinct, search), strict=True))
    every = ({text[one.start : one.end]: one.kind for text in of_row for one in spans[text]} for of_row in texts)
    return [{text: kind for text, kind in kinds.items() if text not in allowed} for kinds in every]


def searched(row: Row) -> Iterator[str]:
    """The texts of a row to search: of JSON in them its strings and numbers, each after its key.

    Of tools and the gold call the strings only: their numbers are no identifiers unless a text has them as such.
    """
    formal = set()
    if row.get("tools"):
        formal = {calls.system_prompt(row["tools"]), calls.answer(row.get("gold"))}
    contents = [turn["content"] for key in TURNS for turn in row.get(key) or ()]
    contents += [row[key] for key in ("text", "test") if row.get(key)]
    for content in contents:
        if content not in formal:
            yield from passages.searchable(content)
    yield from (passages.readable(row[key], numbers=False) for key in ("tools", "gold") if row.get(key))


def masked(row: Row, kinds: dict[str, str], stand_in: StandIn) -> Row:
    """The row with each identifier of `kinds` (text → kind) replaced in turns, text, tools, gold and tests; its id stays."""
    if not kinds:
        return row
    replacement = Replacement(kinds, stand_in)
    changed: Row = {key: [_turn(turn, replacement) for turn in row[key]] for key in TURNS if row.get(key)}
    changed |= {"text": replacement.of_content(row["text"])} if row.get("text") else {}
    changed |= {"test": replacement.of_code(row["test"])} if row.get("test") else {}
    changed |= {key: replacement.of_value(row[key]) for key in ("tools", "gold") if key in row}
    # Written anew, so that the answer and its gold call cannot differ, nor the signatures and the tools.
    if row.get("gold") and row["messages"][-1]["content"] == calls.answer(row["gold"]):
        changed["messages"][-1]["content"] = calls.answer(changed["gold"])
    if row.get("tools") and row["messages"][0]["content"] == calls.system_prompt(row["tools"]):
        changed["messages"][0]["content"] = calls.system_prompt(changed["tools"])
    return row | changed


class Replacement:
    """Identifiers of one row and what is written for each."""

    def __init__(self, kinds: dict[str, str], stand_in: StandIn) -> None:
        self.written = {text: stand_in(text, kind) for text, kind in kinds.items()}
        # A call may write (415) 555-2671 as 4155552671, or as a number.
        self.respelled = {bare(text): text for text in kinds if bare(text)}
        self.lengths = sorted({len(text) for text in kinds}, reverse=True)
        self.heads = {text[0] for text in kinds}
        secrets = {text for text, kind in kinds.items() if kind in credentials.KINDS}
        # Code has a key's ends of lines as escapes.
        escaped = {json.dumps(text)[1:-1]: text for text in secrets}
        self.written |= {text: self.written[known] for text, known in escaped.items()}
        longest_first = sorted({*secrets, *escaped}, key=len, reverse=True)
        self.secrets = re.compile("|".join(map(re.escape, longest_first)) or NEVER)

    def of_value(self, value: Any) -> Any:
        """`value` with the identifiers in its strings replaced, and what is one as a whole in another spelling. Keys stay."""
        if isinstance(value, dict):
            return {key: self.of_value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.of_value(one) for one in value]
        if isinstance(value, bool | None):
            return value
        if isinstance(value, str):
            return self.of_string(value)
        written = self.of_number(str(value))
        return value if written is None else written

    def of_content(self, content: str) -> str:
        """A turn or text with its prose, JSON and code each replaced in by its own rules."""
        if self.of_text(content) == content and not any(
            character.isdigit() or character == "\\" for character in content
        ):
            return content
        replaced = "".join(self._of_passage(passage) for passage in passages.split(content))
        # Again over the whole: an identifier may lie across the border of two passages.
        return self.of_text(replaced)

    def of_code(self, code: str) -> str:
        """Python of which nothing else says that it is code."""
        return self._of_passage(Passage(code, "code", "python"))

    def of_string(self, text: str, write: passages.Write = passages.plainly) -> str:
        """A string that stands for itself, such as a value in JSON: all of it in another spelling, or parts of it."""
        known = self.respelled.get(bare(text))
        return write(known, self.written[known]) if known else self.of_text(text, write)

    def of_number(self, text: str) -> str | None:
        """What is written for a number that is an identifier without its punctuation; None if it is none."""
        known = self.respelled.get(text.removesuffix(".0"))
        return self.written[known] if known else None

    def of_text(self, text: str, write: passages.Write = passages.plainly) -> str:
        """Secrets wherever they stand, others as whole words; what overlaps is replaced as one, by the longest's stand-in."""
        parts, done = [], 0
        spans = [*self._words(text)]
        if secrets := [match.span() for match in self.secrets.finditer(text)]:
            # What stands against a secret is a whole word once that is gone.
            spans += [*secrets, *self._words(self.secrets.sub(lambda one: "\0" * len(one[0]), text))]
        for start, end, known in _merged(spans):
            parts += [text[done:start], write(text[start:end], self.written[text[slice(*known)]])]
            done = end
        return "".join([*parts, text[done:]])

    def _words(self, text: str) -> Iterator[tuple[int, int]]:
        """Where identifiers stand as whole words, the longest first, so that one inside another does not cut it."""
        done = 0
        for match in START.finditer(text):
            if match.start() >= done and match[0] in self.heads and (end := self._ends(text, match.start())):
                yield match.start(), end
                done = end

    def _ends(self, text: str, start: int) -> int:
        """Where the longest identifier that starts at `start` ends; 0 if none does."""
        for length in self.lengths:
            end = start + length
            if text[start:end] in self.written and not (text[end : end + 1].isalnum() or text[end : end + 1] == "_"):
                return end
        return 0

    def _of_passage(self, passage: Passage) -> str:
        if passage.form == "json":
            return passages.json_with(passage.text, self.of_string, self.of_number)
        if passage.form == "code":
            return passages.code_with(passage, self.of_text, self.of_number)
        return self.of_text(passage.text)


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Start and end of each run of overlapping spans, in order, with the longest of them."""
    runs: list[list[tuple[int, int]]] = []
    done = 0
    for span in sorted(spans):
        if span[0] < done:
            runs[-1].append(span)
        else:
            runs.append([span])
        done = max(done, span[1])
    for run in runs:
        yield run[0][0], max(end for _, end in run), max(run, key=lambda span: span[1] - span[0])


def _turn(turn: dict[str, Any], replacement: Replacement) -> dict[str, Any]:
    return turn | {"content": replacement.of_content(turn["content"])}


def bare(text: str) -> str:
    """An identifier without its spelling: no punctuation but that of addresses, no case."""
    return re.sub(r"[^\w@.]", "", text).casefold()


@cache
def _compiled(allowed: Allowed) -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    for pattern in allowed.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SystemExit(
                f"pii.allow_patterns: '{pattern}' is no regular expression ({error}): correct it in conf/pii"
            ) from None
    return frozenset(map(str.casefold, allowed.strings)), tuple(map(re.compile, allowed.patterns))
