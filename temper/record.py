"""One row of data in the pipeline's format, checked: a chat, the tools that it may call and its gold call."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from temper import calls
from temper.records import Row


class BadRow(ValueError):
    """A row that cannot be used: `reason` is a word for metrics, the message says what was found and expected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def make(row: Row, source: str, licence: str, category: str) -> Row:
    """A record of `row`, which has messages and may have tools, gold and category; raises BadRow for what is wrong.

    Without a gold call, the last turn is taken for it; with tools and no system turn, the tools' signatures become one.
    """
    messages = _messages(row.get("messages"))
    tools = _tools(row.get("tools") or [])
    gold = _gold(row["gold"]) if "gold" in row else _said(messages[-1]["content"])
    if tools and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": calls.system_prompt(tools)})
    if not calls.score(messages[-1]["content"], tools, gold).exact:
        raise BadRow("contradictory", "the last turn is not a right answer by the row's own gold call and tools")
    category = row.get("category", category)
    if not isinstance(category, str) or not category:
        raise BadRow("type", f"category is {category!r}, where a name was expected")
    return identified(
        {
            "messages": messages,
            "tools": tools,
            "gold": gold,
            "source": source,
            "licence": licence,
            "category": category,
        }
    )


def identified(row: Row) -> Row:
    """The row with its id: the first 16 hexadecimal digits of the SHA-256 of its content."""
    content = {key: value for key, value in row.items() if key != "id"}
    try:
        text = json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("encoding", "a \\uD800–\\uDFFF escape without its pair, which UTF-8 cannot hold") from None
    return {"id": hashlib.sha256(text).hexdigest()[:16], **content}


def request(row: Row) -> str:
    """What the user said, all turns."""
    return _said_by(row, "user")


def response(row: Row) -> str:
    """What the assistant said, all turns."""
    return _said_by(row, "assistant")


def tool_names(row: Row) -> tuple[str, ...]:
    return tuple(sorted(tool["name"] for tool in row["tools"]))


def counts(rows: Iterable[Row], field: str, prefix: str) -> dict[str, int]:
    """How many rows have each value of `field`, as metrics: `<prefix>_<value>`."""
    values = sorted(row[field] for row in rows)
    return {f"{prefix}_{value}": values.count(value) for value in dict.fromkeys(values)}


def _said_by(row: Row, role: str) -> str:
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == role)


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadRow("type", f"messages is {_kind(messages)}, where a non-empty list was expected")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadRow("type", "a message without role and content as strings")
        if not message["content"].strip():
            raise BadRow("empty", f"a {message['role']} turn without content")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise BadRow(
            "roles", f"roles are {', '.join(roles)}, where [system,] user, assistant, … assistant were expected"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise BadRow("type", f"tools is {_kind(tools)}, where a list was expected")
    for tool in tools:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise BadRow("type", 'a tool that is not {"name": …, "parameters": {…}}')
        _schema(tool.get("parameters"), tool["name"])
    return [{"name": tool["name"], "parameters": tool["parameters"]} for tool in tools]


def _schema(schema: Any, place: str) -> None:
    """Raise BadRow unless `schema` has the parts of JSON Schema that signatures are made of, in their types."""
    if not isinstance(schema, dict):
        raise BadRow("type", f"{place}: the schema is {_kind(schema)}, where an object was expected")
    for key, kind in (("properties", dict), ("required", list), ("enum", list), ("items", dict)):
        if not isinstance(schema.get(key) or kind(), kind):
            raise BadRow("type", f"{place}: {key} is {_kind(schema[key])}, where {kind.__name__} was expected")
    for name, inner in (schema.get("properties") or {}).items():
        _schema(inner, f"{place}.{name}")
    if schema.get("items"):
        _schema(schema["items"], f"{place}[]")


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
