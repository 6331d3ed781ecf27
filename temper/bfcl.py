"""The Berkeley Function Calling Leaderboard (v4) inside the bfcl-eval wheel, as rows with messages, tools and gold."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper import calls, wheels
from temper.record import BadRow
from temper.records import Row

DATA = "bfcl_eval/data"


def read(wheel: Path, category: str) -> Iterator[tuple[str, Row]]:
    """Each item of a category with its place in the wheel; a category without a file of gold calls is one of `null`."""
    member = f"{DATA}/BFCL_v4_{category}.json"
    gold = _gold_calls(wheel, category)
    for number, item in enumerate(_lines(wheel, member), start=1):
        yield f"{wheel.name}/{member}:{number}", {"item": item, "ground_truth": gold.get(item["id"], [])}


def row(item: dict[str, Any], ground_truth: list[dict[str, Any]]) -> Row:
    """A chat of one request and at most one call; raises BadRow for conversations and for several calls."""
    turns = [message for turn in item["question"] for message in turn]
    if [message["role"] for message in turns] not in (["user"], ["system", "user"]):
        raise BadRow("conversation", "more than one request")
    if len(ground_truth) > 1:
        raise BadRow("parallel", "more than one call")
    tools = [{"name": tool["name"], "parameters": tool["parameters"]} for tool in item["function"]]
    gold = _gold(ground_truth[0], tools, turns[-1]["content"]) if ground_truth else None
    system = "\n\n".join([calls.system_prompt(tools), *(message["content"] for message in turns[:-1])])
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": turns[-1]["content"]},
        {"role": "assistant", "content": calls.answer(gold)},
    ]
    return {"messages": messages, "tools": tools, "gold": gold}


def _gold(truth: dict[str, Any], tools: list[dict[str, Any]], request: str) -> dict[str, Any]:
    """The gold call with arguments in the signature's order and, of each, the reference value first."""
    [(name, arguments)] = truth.items()
    if not all(arguments.values()):
        raise BadRow("contradictory", "an argument without any accepted value")
    schema: dict[str, Any] = next((tool["parameters"] for tool in tools if tool["name"] == name), {})
    required = schema.get("required", [])
    order = [key for key in schema.get("properties", {}) if key in arguments]
    order += [key for key in arguments if key not in order]
    return {"name": name, "arguments": {key: _ranked(arguments[key], key in required, request) for key in order}}


def _ranked(accepted: list[Any], required: bool, request: str) -> list[Any]:
    """What the request states comes first, since that can be learnt; then leaving the argument out, if it may be."""

    def rank(value: Any) -> int:
        if value == calls.ABSENT:
            return 3 if required else 1
        return 0 if _stated(value, request) else 2

    return sorted(accepted, key=rank)


def _stated(value: Any, request: str) -> bool:
    """Whether the request has this text, this number or all of these list items as whole words."""
    if isinstance(value, list):
        return bool(value) and all(_stated(item, request) for item in value)
    if isinstance(value, bool | dict | None):
        return False
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.search(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", request, re.IGNORECASE) is not None


def _gold_calls(wheel: Path, category: str) -> dict[str, list[dict[str, Any]]]:
    member = f"{DATA}/possible_answer/BFCL_v4_{category}.json"
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            return {}
    return {item["id"]: item["ground_truth"] for item in _lines(wheel, member)}


def _lines(wheel: Path, member: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in wheels.read(wheel, member).splitlines() if line.strip()]
