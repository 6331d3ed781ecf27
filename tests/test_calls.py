"""The verifier decides what is trained, preferred and reported, so its rules are pinned one by one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from temper import bfcl, calls, record, wheels

ROOT = Path(__file__).resolve().parent.parent
AREA: dict[str, Any] = {
    "name": "area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer", "description": "left out of the signature"},
            "unit": {"type": "string", "enum": ["cm", "m"]},
            "points": {"type": "array", "items": {"type": "float"}},
            "options": {"type": "dict", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
        },
        "required": ["base"],
    },
}
GOLD: dict[str, Any] = {"name": "area", "arguments": {"base": [5], "unit": ["", "cm"], "points": [[1.5, 2]]}}


def call(**arguments: Any) -> str:
    return json.dumps({"name": "area", "arguments": arguments})


def value_score(value: Any, accepted: list[Any]) -> bool:
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "any"}}, "required": ["x"]}}
    text = json.dumps({"name": "f", "arguments": {"x": value}})
    return calls.score(text, [tool], {"name": "f", "arguments": {"x": accepted}}).exact


def test_signature_is_compact() -> None:
    expected = 'area(base: integer, unit?: "cm" | "m", points?: float[], options?: {deep: boolean})'
    assert calls.signature(AREA) == expected
    assert calls.system_prompt([AREA, AREA]).splitlines()[-2:] == [expected, expected]


def test_signature_of_a_tool_without_parameters() -> None:
    assert calls.signature({"name": "now", "parameters": {"type": "dict", "properties": {}}}) == "now()"


def test_answer_takes_first_values_and_leaves_out_what_may_be_absent() -> None:
    assert json.loads(calls.answer(GOLD)) == {"name": "area", "arguments": {"base": 5, "points": [1.5, 2]}}
    assert calls.answer(None) == "null"


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (call(base=5, points=[1.5, 2]), True),
        (call(base=5.0, points=[1.5, 2.0], unit="CM"), True),
        (call(base=5, points=[2, 1.5]), False),
        (call(base=5, points=[1.5]), False),
        (call(base=5), False),
        (call(points=[1.5, 2]), False),
        (call(base="5", points=[1.5, 2]), False),
        (call(base=True, points=[1.5, 2]), False),
        (call(base=5, points=[1.5, 2], unit="m"), False),
        (call(base=5, points=[1.5, 2], color="red"), False),
        (call(base=5, points=[1.5, 2], options={"deep": True}), False),
        ("null", False),
    ],
)
def test_exact(text: str, exact: bool) -> None:
    score = calls.score(text, [AREA], GOLD)
    assert score.exact is exact
    assert score.valid_json
    assert (score.argument_f1 == 1.0) is exact


@pytest.mark.parametrize(
    "text",
    [
        "",
        "area(base=5)",
        "5",
        "[]",
        '{"name": "area"}',
        '{"name": "area", "arguments": []}',
        '{"name": "area", "arguments": {}, "id": 1}',
        '{"name": "area", "arguments": {"base": NaN}}',
        call(base=5) + " so",
        "[" * 10**5,
        "1" * 5000,
    ],
)
def test_what_is_no_call_is_invalid_and_worth_nothing(text: str) -> None:
    assert calls.score(text, [AREA], GOLD) == calls.INVALID
    assert calls.score(text, [AREA], None) == calls.INVALID


def test_null_where_no_tool_fits() -> None:
    assert calls.score(" null\n", [AREA], None) == calls.RIGHT
    assert calls.score(call(base=5), [AREA], None) == calls.WRONG


def test_f1_is_graded() -> None:
    assert calls.score(call(base=5, points=[0]), [AREA], GOLD).argument_f1 == 0.5
    assert calls.score(call(base=5), [AREA], GOLD).argument_f1 == pytest.approx(2 / 3)
    assert calls.score(call(base=5, points=[1.5, 2], color=1), [AREA], GOLD).argument_f1 == pytest.approx(4 / 5)
    other = json.dumps({"name": "volume", "arguments": {"base": 5, "points": [1.5, 2]}})
    assert calls.score(other, [AREA], GOLD) == calls.WRONG


def test_a_call_without_arguments() -> None:
    tool = {"name": "now", "parameters": {}}
    assert calls.score('{"name": "now", "arguments": {}}', [tool], {"name": "now", "arguments": {}}).exact


@pytest.mark.parametrize(
    ("value", "accepted", "exact"),
    [
        ("san francisco CA", ["San Francisco, CA"], True),
        ("April 1 2024", ["April 1, 2024"], True),
        ("it's", ['it"s'], True),
        ("New Yorks", ["New York"], False),
        (3, [3.0], True),
        (True, [1], False),
        (None, [None], True),
        (None, [0], False),
        ("", ["", "x"], True),
        (["A b"], [["ab"]], True),
        ({"a": "X"}, [{"a": ["x", "y"]}], True),
        ({"a": "x"}, [{"a": ["x"], "b": [1]}], False),
        ({"a": "x"}, [{"a": ["x"], "b": [1, ""]}], True),
        ({"a": "x", "c": 1}, [{"a": ["x"]}], False),
        ([{"a": 1}], [[{"a": [1, 2]}]], True),
        ({"a": "x"}, [{"a": "x"}], True),
    ],
)
def test_values_by_the_benchmarks_rules(value: Any, accepted: list[Any], exact: bool) -> None:
    assert value_score(value, accepted) is exact


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_every_value_is_accepted_by_its_own_gold(value: Any) -> None:
    assert value_score(value, [calls.accepting(value)])


@given(st.text())
def test_any_text_gets_a_score(text: str) -> None:
    score = calls.score(text, [AREA], GOLD)
    assert 0 <= score.argument_f1 <= 1


def test_the_reference_answer_of_every_benchmark_row_is_exact() -> None:
    source = OmegaConf.load(ROOT / "conf/data/bfcl-all.yaml").sources[0]
    try:
        wheel = wheels.fetch(source.id, source.revision, source.sha256)
    except SystemExit as error:
        pytest.skip(f"the benchmark's wheel is not cached and cannot be fetched: {error}")
    scores, contradictory = 0, 0
    for category in source.files:
        for _, item in bfcl.read(wheel, category):
            try:
                row = record.make(bfcl.row(**item), "bfcl", "apache-2.0", category)
            except record.BadRow as error:
                assert error.reason in ("contradictory", "conversation")
                contradictory += error.reason == "contradictory"
            else:
                # As later stages see it: written, which sorts keys, and read again.
                stored = json.loads(json.dumps(row, sort_keys=True))
                assert calls.score(stored["messages"][-1]["content"], stored["tools"], stored["gold"]).exact
                assert calls.score(calls.answer(stored["gold"]), stored["tools"], stored["gold"]).exact
                scores += 1
    assert scores > 3000
    assert contradictory < 10
