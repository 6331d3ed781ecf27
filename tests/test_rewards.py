"""Rewards: what a right, a nearly right and a wrong answer of each task are worth, and what is no reward at all."""

import re
from typing import Any

import pytest

from temper import calls, rewards, sandbox
from temper.records import Row

LIMITS = sandbox.Limits(seconds=2, memory_mb=512, disk_mb=4, namespaces=False)
PATTERN = re.compile(r"(?s).*#### -?[$]?[\d,.]+")
TOOL = {
    "name": "add",
    "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
}
CALL: Row = {
    "id": "call",
    "messages": [{"role": "user", "content": "add 1 and 2"}, {"role": "assistant", "content": "{}"}],
    "tools": [TOOL],
    "gold": {"name": "add", "arguments": {"a": [1], "b": [2]}},
}
CODE: Row = {
    "id": "code",
    "kind": "chat",
    "messages": [
        {"role": "user", "content": 'def double(x):\n    """Twice x."""\n'},
        {"role": "assistant", "content": "    return 2 * x\n"},
    ],
    "tools": [],
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
}


def arithmetic(reference: str) -> Row:
    turns = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": reference}]
    return {"id": "sum", "kind": "chat", "messages": turns, "tools": []}


CHAT = arithmetic("I do not know 7 of them.")
SUM = arithmetic("40 + 2 = <<40+2=42>>42\n#### 42")


def test_a_call_earns_what_the_verifier_says() -> None:
    right, half = calls.answer(CALL["gold"]), '{"name": "add", "arguments": {"a": 1, "b": 3}}'
    assert (rewards.exact(right, CALL), rewards.argument_f1(right, CALL), rewards.form(right, CALL, PATTERN)) == (
        1,
        1,
        1,
    )
    assert (rewards.exact(half, CALL), rewards.argument_f1(half, CALL), rewards.form(half, CALL, PATTERN)) == (
        0,
        0.5,
        1,
    )
    assert (rewards.exact("add(1, 2)", CALL), rewards.form("add(1, 2)", CALL, PATTERN)) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("40 and 2 make 42.", "#### 42", 1.0),
        ("#### 42", "#### 42", 1.0),
        ("It is 42.00", "#### 42", 1.0),
        ("$1,234,567", "#### 1234567", 1.0),
        ("1234567", "#### 1,234,567", 1.0),
        ("The change is -5", "#### -5", 1.0),
        ("The change is −5 °C", "#### -5", 1.0),
        ("10-5", "#### 5", 1.0),
        (".5", "#### 0.5", 1.0),
        ("72%", "#### 72", 1.0),
        ("42, but 41 is near", "#### 42", 0.0),
        ("5", "#### -5", 0.0),
        ("420", "#### 42", 0.0),
        ("no number", "#### 42", 0.0),
        ("", "#### 42", 0.0),
        ("42", "first 7\n#### 42\n", 1.0),
    ],
)
def test_arithmetic_compares_the_last_number_by_value(answer: str, reference: str, expected: float) -> None:
    assert rewards.arithmetic(answer, arithmetic(reference)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("    return 2 * x\n", 1.0),
        ("Here:\n```python\ndef double(x):\n    return x + x\n```\nDone.", 1.0),
        ("```\ndef double(x):\n    return x + x", 1.0),
        ("    return x\n", 0.0),
        ("    raise SystemExit(0)\n", 0.0),
        ("I cannot.", 0.0),
        ("", 0.0),
    ],
)
def test_code_earns_by_passing_the_tests(answer: str, expected: float) -> None:
    assert rewards.code(answer, CODE, LIMITS) == expected


def test_form_is_what_a_reader_of_the_task_can_parse() -> None:
    assert rewards.form("6 × 7\n#### 42\n", SUM, PATTERN) == 1.0
    assert rewards.form("6 × 7 = 42", SUM, PATTERN) == 0.0
    assert rewards.form("    return x\n", CODE, PATTERN) == 1.0
    assert rewards.form("I cannot do that", CODE, PATTERN) == 0.0
    assert rewards.form("(" * 5000, CODE, PATTERN) == 0.0


def test_a_reward_of_another_task_is_none() -> None:
    functions = rewards.functions(PATTERN.pattern, LIMITS)
    applied = {name: [functions[name]("42", row) is not None for row in (CALL, SUM, CODE, CHAT)] for name in functions}
    assert applied == {
        "exact": [True, False, False, False],
        "argument_f1": [True, False, False, False],
        "arithmetic": [False, True, False, False],
        "code": [False, False, True, False],
        "format": [True, True, True, False],
    }
    assert set(functions) | {"length"} == set(rewards.NAMES)


def test_prompts_are_those_whose_answers_a_listed_reward_verifies() -> None:
    rows = [CALL, SUM, CODE, CHAT]
    assert rewards.verifiable(rows, {"exact": 1.0, "format": 1.0}) == [CALL]
    assert rewards.verifiable(rows, {"arithmetic": 1.0, "code": 1.0}) == [SUM, CODE]
    assert rewards.applicable([SUM], {"exact": 1.0, "arithmetic": 2.0, "length": 0.5}) == {
        "arithmetic": 2.0,
        "length": 0.5,
    }


def test_a_prompt_ends_before_the_answer() -> None:
    assert [turn["role"] for turn in rewards.prompt(CALL)] == ["user"]
    assert rewards.prompt({"messages": CALL["messages"][:1]}) == CALL["messages"][:1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"^grpo\.rewards is empty.*exact"),
        ({"exact": 1.0, "exat": 1.0}, r"^grpo\.rewards: there is no reward 'exat': choose among exact,"),
        ({"format": 1.0, "length": 1.0}, r"^grpo\.rewards: format, length verify nothing: add one of exact,"),
    ],
)
def test_a_list_that_cannot_teach_is_refused_in_one_line(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        rewards.require(weights)
    assert "\n" not in str(error.value)
