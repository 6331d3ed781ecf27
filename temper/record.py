"""One row of data in the pipeline's format, checked.

Four kinds: a `call` row has `messages`, the `tools` that may be called and its `gold` call, and no `kind` key (the first
data sets had no other kind, and their ids stay); a `chat` row has messages; a `text` row has `text` only; a `preference` row
has messages up to the user's last turn, and `chosen` and `rejected`, each a list of one assistant turn.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from temper import calls, records
from temper.records import Row

MAX_NESTING = 100  # far above real schemas, far below what recursion allows
MAX_DETAIL = 300  # characters
TOO_NESTED = f"nested more than {MAX_NESTING} deep"
# A NUL character, as JSON escapes it: after an even number of backslashes.
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
PARTS: dict[str, type] = {"properties": dict, "required": list, "enum": list, "items": dict}
# Of a chat that asks for a function: Python that defines check(function), and the function's name (HumanEval's keys).
TESTS = ("test", "entry_point")
ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False)


class BadRow(ValueError):
    """A row that cannot be used: `reason` is a word for metrics, the message says in a line what was found and expected."""

    def __init__(self, reason: str, detail: str) -> None:
        # A detail quotes the row, which may hold line ends, megabytes of key, and what UTF-8 cannot.
        line = " ".join(detail[: 2 * MAX_DETAIL].split())
        super().__init__(line[:MAX_DETAIL].encode(errors="backslashreplace").decode())
        self.reason = reason


def make(row: Row, source: str, licence: str, category: str) -> Row:
    """A record of `row`, whose keys tell its kind; raises BadRow for what is wrong.

    With `chosen` it is a preference row, with `text` a text row. Messages with tools or gold are a call row: without a gold
    call, the last turn is taken for it; with tools and no system turn, the tools' signatures become one. Others are a chat.
    `provenance`, which synthesized rows have, is kept as it is.
    """
    try:
        content = _content(row)
    except RecursionError:
        raise BadRow("nested", TOO_NESTED) from None
    category = row.get("category", category)
    if not isinstance(category, str) or not category:
        raise BadRow("type", f"category is {category!r}, where a name was expected")
    origin = {"provenance": row["provenance"]} if isinstance(row.get("provenance"), dict) else {}
    return identified(content | origin | {"source": source, "licence": licence, "category": category})


def identified(row: Row) -> Row:
    """The row with its id: the first 16 hexadecimal digits of the SHA-256 of its content."""
    content = {key: value for key, value in row.items() if key != "id"}
    try:
        text = ENCODER.encode(content)
        encoded = text.encode()
    except UnicodeEncodeError:
        raise BadRow("encoding", "a \\uD800–\\uDFFF escape without its pair, which UTF-8 cannot hold") from None
    except ValueError:
        raise BadRow("type", "a number that JSON cannot hold (infinite, or not a number)") from None
    except TypeError as error:
        raise BadRow("type", f"a value that JSON cannot hold ({error})") from None
    except RecursionError:
        raise BadRow("nested", TOO_NESTED) from None
    if "\\u0000" in text and NUL.search(text):
        raise BadRow("encoding", "a NUL character, which is no text: was the file binary or UTF-16?")
    check_nesting(text, content)
    try:
        records.line(content)
    except TypeError as error:
        raise BadRow("type", f"a value that most readers of JSON lose ({error})") from None
    return {"id": hashlib.sha256(encoded).hexdigest()[:16], **content}


def check_nesting(text: str, value: Any) -> None:
    """Raise BadRow if `value`, which has `text` as its JSON, is nested deeper than any row's reader should have to go."""
    if text.count("{") + text.count("[") <= MAX_NESTING:
        return
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        depth += 1
        if depth > MAX_NESTING:
            raise BadRow("nested", TOO_NESTED)


def kind(row: Row) -> str:
    """`call`, `chat`, `text` or `preference`."""
    return row.get("kind", "call")


def request(row: Row) -> str:
    """What the user said, all turns; of a text row nothing."""
    return _said_by(row, "user")


def subject(row: Row) -> str:
    """What a row is about, whatever is answered: its request, or of a text row its text."""
    return row["text"] if "text" in row else request(row)


def response(row: Row) -> str:
    """What the assistant said, all turns, with the chosen answer of a preference row; of a text row its text."""
    if "text" in row:
        return row["text"]
    return _said_by({"messages": row["messages"] + row.get("chosen", [])}, "assistant")


def every_turn(row: Row) -> list[dict[str, str]]:
    """Every turn, those of the chosen and the rejected answer too; none of a text row."""
    return row.get("messages", []) + row.get("chosen", []) + row.get("rejected", [])


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools as name and JSON schema, the schemas such that signatures can be made of them; raises BadRow."""
    if not isinstance(tools, list):
        raise BadRow("type", f"tools is {_kind(tools)}, where a list was expected")
    for tool in tools:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise BadRow("type", 'a tool that is not {"name": …, "parameters": {…}}')
    return [{"name": tool["name"], "parameters": _schema(tool.get("parameters"), tool["name"])} for tool in tools]


def has_tests(row: Row) -> bool:
    """Whether a program that answers can be run against tests of the row's own."""
    return all(isinstance(row.get(key), str) for key in TESTS) and row["entry_point"].isidentifier()


def tool_names(row: Row) -> tuple[str, ...]:
    return tuple(sorted(tool["name"] for tool in row.get("tools", [])))


def _said_by(row: Row, role: str) -> str:
    return "\n".join([message["content"] for message in row.get("messages", ()) if message["role"] == role])


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _content(row: Row) -> Row:
    if "chosen" in row:
        return _preference(row)
    if "text" in row:
        return {"kind": "text", "text": _said_text(row["text"], "text")}
    return _call(row) if _is_call(row) else _chat(row)


def _is_call(row: Row) -> bool:
    """Whether there is something to verify: a gold call, tools, or under an empty list of tools a call or null."""
    if "gold" in row or row.get("tools"):
        return True
    messages = row.get("messages")
    if row.get("tools") is None or not isinstance(messages, list) or not messages:
        return False
    try:
        calls.parse(_checked(messages)[-1]["content"])
    except ValueError:
        return False
    return True


def _call(row: Row) -> Row:
    messages = _messages(row.get("messages"))
    tools = checked_tools(row.get("tools") or [])
    gold = _gold(row["gold"]) if "gold" in row else _said(messages[-1]["content"])
    if tools and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": calls.system_prompt(tools)})
    if not calls.score(messages[-1]["content"], tools, gold).exact:
        raise BadRow("contradictory", "the last turn is not a right answer by the row's own gold call and tools")
    return {"messages": messages, "tools": tools, "gold": gold}


def _chat(row: Row) -> Row:
    content = {"kind": "chat", "messages": _messages(row.get("messages")), "tools": []}
    if has_tests(row):
        content |= {key: row[key] for key in TESTS}
    return content | ({"answerable": row["answerable"]} if "answerable" in row else {})


def _preference(row: Row) -> Row:
    messages = _checked(row.get("messages"))
    _alternating(messages, last="user")
    answers = {side: _checked(row.get(side), side) for side in ("chosen", "rejected")}
    for side, turns in answers.items():
        if [turn["role"] for turn in turns] != ["assistant"]:
            found = _listed([turn["role"] for turn in turns])
            raise BadRow("roles", f"{side} has turns of {found}, where one of the assistant was expected")
    if answers["chosen"] == answers["rejected"]:
        raise BadRow("same", "the chosen and the rejected answer are one")
    return {"kind": "preference", "messages": messages, "tools": [], **answers}


def _said_text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise BadRow("type", f"{name} is {_kind(text)}, where text was expected")
    if _is_blank(text):
        raise BadRow("empty", f"{name} without content")
    return text


def _is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: spaces, and what only shapes others (joiners, marks of direction)."""
    return all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def _messages(messages: Any) -> list[dict[str, str]]:
    turns = _checked(messages)
    _alternating(turns, last="assistant")
    return turns


def _checked(messages: Any, name: str = "messages") -> list[dict[str, str]]:
    """The messages with nothing but role and content, each of which has both."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("type", f"{name} is {_kind(messages)}, where a non-empty list was expected")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadRow("type", "a message without role and content as strings")
        if _is_blank(message["content"]):
            raise BadRow("empty", f"a {message['role'][:20]} turn without content")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _alternating(messages: list[dict[str, str]], last: str) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    if not turns or turns != expected or turns[-1] != last:
        raise BadRow("roles", f"roles are {_listed(roles)}, where [system,] user, assistant, … {last} were expected")


def _listed(roles: list[str]) -> str:
    return ", ".join(role[:20] for role in roles[:8]) + (f", … ({len(roles)})" if len(roles) > 8 else "")


def _schema(schema: Any, place: str) -> dict[str, Any]:
    """The schema, if the parts of JSON Schema that signatures are made of have their types; null ones left out."""
    if not isinstance(schema, dict):
        raise BadRow("type", f"{place}: the schema is {_kind(schema)}, where an object was expected")
    for key, kind in PARTS.items():
        if not isinstance(schema.get(key) or kind(), kind):
            raise BadRow("type", f"{place}: {key} is {_kind(schema[key])}, where {kind.__name__} was expected")
    for key in ("required", "type"):
        if isinstance(schema.get(key), list) and not all(isinstance(name, str) for name in schema[key]):
            raise BadRow("type", f"{place}: {key} has what is no string")
    unreadable = [key for key in ("properties", "required") if not isinstance(schema.get(key), PARTS[key])]
    checked = {key: value for key, value in schema.items() if key not in unreadable}
    if schema.get("properties"):
        checked["properties"] = {name: _schema(part, f"{place}.{name}") for name, part in schema["properties"].items()}
    if schema.get("items"):
        checked["items"] = _schema(schema["items"], f"{place}[]")
    return checked


def _gold(gold: Any) -> dict[str, Any] | None:
    if gold is None:
        return None
    if (
        not isinstance(gold, dict)
        or not isinstance(gold.get("name"), str)
        or not isinstance(gold.get("arguments"), dict)
    ):
        raise BadRow("type", 'gold is neither null nor {"name": …, "arguments": {…}}')
    for key, accepted in gold["arguments"].items():
        if not isinstance(accepted, list) or not accepted:
            raise BadRow(
                "type", f"gold argument '{key}' is {_kind(accepted)}, where a list of accepted values was expected"
            )
    return {"name": gold["name"], "arguments": gold["arguments"]}


def _said(answer: str) -> dict[str, Any] | None:
    """The gold call that accepts exactly the call in `answer`."""
    try:
        call = calls.parse(answer)
    except ValueError as error:
        raise BadRow("no_gold", f"no gold call, and the last turn is no call either ({error})") from None
    if call is None:
        return None
    return {
        "name": call["name"],
        "arguments": {key: [calls.accepting(value)] for key, value in call["arguments"].items()},
    }


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return "empty" if value in ([], {}, "") else f"a {type(value).__name__}"
