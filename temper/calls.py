"""The task, function calling: tools as compact signatures, the reference answer, and the verifier that scores one.

A gold call is `{"name": str, "arguments": {argument: [accepted values, the reference first]}}`, as in the Berkeley
Function Calling Leaderboard (BFCL): `""` among the accepted values means that the argument may be left out; a dict
among them holds, per key, a list of accepted values again. Gold `None` means that no tool fits.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

INSTRUCTION = 'Answer with one call as JSON, {"name": ..., "arguments": {...}}, or null if no tool fits.'
ABSENT = ""
# BFCL v4 compares strings without these, in lower case, with one kind of quote.
IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True)
class Score:
    exact: bool
    valid_json: bool
    """Whether the answer is JSON of the form asked for: a call or null."""
    argument_f1: float
    """F1 over (argument, value) pairs in [0, 1]: 0 for another function or an invalid answer, 1 iff `exact`."""


WRONG = Score(exact=False, valid_json=True, argument_f1=0.0)
RIGHT = Score(exact=True, valid_json=True, argument_f1=1.0)
INVALID = Score(exact=False, valid_json=False, argument_f1=0.0)


def signature(tool: dict[str, Any]) -> str:
    """A tool in one line: `calculate_triangle_area(base: integer, height: integer, unit?: string)`."""
    return f"{tool['name']}({_parameters(tool['parameters'])})"


def system_prompt(tools: list[dict[str, Any]]) -> str:
    """The system turn: what to answer, then a signature a line."""
    return "\n".join([INSTRUCTION, "Tools:", *map(signature, tools)])


def answer(gold: dict[str, Any] | None) -> str:
    """The reference assistant turn: each argument's first accepted value, left out where that is `""`."""
    if gold is None:
        return "null"
    arguments = {key: literal(accepted[0]) for key, accepted in gold["arguments"].items() if accepted[0] != ABSENT}
    return json.dumps({"name": gold["name"], "arguments": arguments}, ensure_ascii=False)


def literal(accepted: Any) -> Any:
    """The plain value that an accepted value stands for: the first of each list of accepted values in a dict."""
    if isinstance(accepted, dict):
        first = {key: value[0] if isinstance(value, list) and value else value for key, value in accepted.items()}
        return {key: literal(value) for key, value in first.items() if value != ABSENT}
    return [literal(value) for value in accepted] if isinstance(accepted, list) else accepted


def accepting(value: Any) -> Any:
    """The inverse of `literal`: the accepted value that `value` alone satisfies."""
    if isinstance(value, dict):
        return {key: [accepting(inner)] for key, inner in value.items()}
    return [accepting(inner) for inner in value] if isinstance(value, list) else value


def parse(text: str) -> dict[str, Any] | None:
    """The call in `text`, or None for `null`; ValueError for anything else."""
    try:
        call = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if call is None:
        return None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        raise ValueError("neither null nor an object with name and arguments")
    if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
        raise ValueError("name must be a string and arguments an object")
    return call


def score(text: str, tools: list[dict[str, Any]], gold: dict[str, Any] | None) -> Score:
    """Compare an answer with the gold call.

    Exact: the same function, every required argument, every value among the accepted, no argument that the tool or
    the gold call lacks. argument_f1 = 2·matched / (given + expected), where an argument that may be left out is
    expected only when it was given.
    """
    try:
        call = parse(text)
    except ValueError:
        return INVALID
    if call is None or gold is None:
        return RIGHT if call is gold else WRONG
    if call["name"] != gold["name"]:
        return WRONG
    given, accepted = call["arguments"], gold["arguments"]
    known = _properties(tools, gold["name"])
    matched = sum(key in known and matches(value, accepted.get(key, [])) for key, value in given.items())
    needed = {key for key, values in accepted.items() if ABSENT not in values} | _required(tools, gold["name"])
    expected = len(needed | (given.keys() & accepted.keys()))
    f1 = 2 * matched / (len(given) + expected) if given or expected else 1.0
    return Score(exact=f1 == 1.0, valid_json=True, argument_f1=f1)


def matches(value: Any, accepted: list[Any]) -> bool:
    """Whether `value` equals one of the accepted ones, by BFCL's rules: see `_equal`."""
    return any(_equal(value, gold) for gold in accepted)


def _equal(value: Any, gold: Any) -> bool:
    """Strings without case and punctuation, numbers by value (JSON has one kind), lists elementwise, dicts by key."""
    if isinstance(value, str) and isinstance(gold, str):
        return _standard(value) == _standard(gold)
    if isinstance(value, list) and isinstance(gold, list):
        return len(value) == len(gold) and all(map(_equal, value, gold))
    if isinstance(value, dict) and isinstance(gold, dict):
        return _equal_dicts(value, gold)
    if isinstance(value, bool) or isinstance(gold, bool):
        return value is gold
    return isinstance(value, int | float | None) and isinstance(gold, int | float | None) and value == gold


def _equal_dicts(value: dict[str, Any], gold: dict[str, Any]) -> bool:
    accepted = {key: values if isinstance(values, list) else [values] for key, values in gold.items()}
    missing = any(key not in value and ABSENT not in values for key, values in accepted.items())
    return not missing and all(matches(inner, accepted.get(key, [])) for key, inner in value.items())


def _standard(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _properties(tools: list[dict[str, Any]], name: str) -> set[str]:
    return {key for tool in tools if tool["name"] == name for key in tool["parameters"].get("properties", {})}


def _required(tools: list[dict[str, Any]], name: str) -> set[str]:
    return {key for tool in tools if tool["name"] == name for key in tool["parameters"].get("required", [])}


def _parameters(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    return ", ".join(f"{key}{'' if key in required else '?'}: {_type(value)}" for key, value in properties.items())


def _type(schema: dict[str, Any]) -> str:
    """A parameter's type: alternatives for an enum, `item[]` for an array, `{key: type}` for an object."""
    if schema.get("enum"):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    if schema.get("properties"):
        return f"{{{_parameters(schema)}}}"
    if schema.get("items"):
        item = _type(schema["items"])
        return f"({item})[]" if " | " in item else f"{item}[]"
    kind = schema.get("type") or "any"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)
