"""OpenAI's tools and tool calls, and what resembles them, as our call rows: a request under signatures, one call as JSON."""

import json
from typing import Any

from temper import calls, files, record
from temper.record import BadRow
from temper.records import Row

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
}


def turn(message: Any) -> Row:
    """A message with our names of roles, its text parts joined, and under `call` the calls that it makes, if any."""
    if not isinstance(message, dict):
        raise BadRow("type", "a message without role and content as strings")
    content, role = message.get("content"), message.get("role")
    if isinstance(content, list):
        content = "".join(map(_part, content))
    plain = {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content}
    made = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else None)
    return plain | ({"call": made} if made else {})


def plain(tools: Any) -> Any:
    """Tools without OpenAI's wrapping and without null fields, which Parquet adds; none missing its `parameters`."""
    if not isinstance(tools, list):
        return tools
    return [_plain_tool(tool.get("function", tool)) if isinstance(tool, dict) else tool for tool in tools]


def is_wrapped(tools: Any) -> bool:
    return isinstance(tools, list) and any(isinstance(tool, dict) and "function" in tool for tool in tools)


def row(turns: list[Row], tools: Any) -> Row:
    """Messages and tools of a call row: the turns up to the first call, which is the answer.

    Left off: what the assistant said beside the call, its result, and all that follows. The tools' signatures begin the
    system turn, as in every call row.
    """
    tools = record.checked_tools(plain(tools or []))
    end = next((number for number, turn in enumerate(turns) if "call" in turn), len(turns) - 1)
    kept = turns[: end + 1]
    shown = [said if "call" not in said else {"role": said["role"], "content": _text(said["call"])} for said in kept]
    own = [said["content"] for said in shown[:1] if said["role"] == "system"]
    if not all(isinstance(content, str) for content in own):
        raise BadRow("type", "a system turn without text")
    system = {"role": "system", "content": "\n\n".join([calls.system_prompt(tools), *own])}
    return {"messages": [system, *shown[len(own) :]] if tools else shown, "tools": tools}


def unpacked(value: Any) -> Any:
    """JSON inside a string, as CSV and Parquet carry lists, unpacked; anything else as it is."""
    return files.loads(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow("type", f"a message has a part of type {str(kind)[:20]!r}, where only text can be used")


def _plain_tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or "name" not in tool:
        return tool
    return {"parameters": {}} | _without_nulls(tool)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _text(made: Any) -> str:
    """The one call of a turn as the answer that we train on."""
    if not isinstance(made, list) or len(made) != 1:
        count = len(made) if isinstance(made, list) else "no list of"
        raise BadRow("parallel", f"{count} calls in one turn, where one can be used")
    call = made[0].get("function", made[0]) if isinstance(made[0], dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRow("type", "a tool call without a name")
    try:
        return json.dumps(
            {"name": call["name"], "arguments": unpacked(call.get("arguments") or {})}, ensure_ascii=False
        )
    except TypeError as error:
        raise BadRow("type", f"a call with a value that JSON cannot hold ({error})") from None
