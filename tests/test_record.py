"""A bad row is refused with a reason for the metrics and a sentence for its author."""

import json
from pathlib import Path
from typing import Any

import pytest

from temper import calls, record, records
from temper.record import BadRow

USER = {"role": "user", "content": "How large is a triangle of base 5?"}
ANSWER = {"role": "assistant", "content": '{"name": "area", "arguments": {"base": 5}}'}
TOOL = {"name": "area", "parameters": {"properties": {"base": {"type": "integer"}}, "required": ["base"]}}
GOOD: dict[str, Any] = {"messages": [USER, ANSWER], "tools": [TOOL]}


def make(**changes: Any) -> dict[str, Any]:
    return record.make(GOOD | changes, "mine.jsonl", "cc0-1.0", "mine")


def test_a_row_of_messages_becomes_a_record() -> None:
    row = make()
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][0]["content"] == calls.system_prompt([TOOL])
    assert row["gold"] == {"name": "area", "arguments": {"base": [5]}}
    assert (row["source"], row["licence"], row["category"]) == ("mine.jsonl", "cc0-1.0", "mine")


def test_a_system_turn_a_gold_call_and_a_category_of_its_own_stay() -> None:
    system = {"role": "system", "content": "Be brief."}
    gold = {"name": "area", "arguments": {"base": [4, 5]}}
    row = make(messages=[system, USER, ANSWER], gold=gold, category="geometry")
    assert row["messages"][0] == system
    assert row["gold"] == gold
    assert row["category"] == "geometry"


def about(number: float) -> dict[str, Any]:
    """Tools and turns whose call has `number` for its argument."""
    tool = {"name": "area", "parameters": {"properties": {"base": {"type": "number"}}, "required": ["base"]}}
    answer = {"role": "assistant", "content": json.dumps({"name": "area", "arguments": {"base": number}})}
    return {"messages": [USER, answer], "tools": [tool]}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_an_integer_that_would_come_back_as_another_number_is_refused(number: int) -> None:
    with pytest.raises(BadRow, match="64-bit") as refusal:
        make(**about(number))
    assert refusal.value.reason == "type"


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 0.1, 1e300, -0.0])
def test_a_number_that_is_kept_comes_back_as_it_was(tmp_path: Path, number: float) -> None:
    row = make(**about(number))
    records.write(tmp_path / "rows.jsonl", [row])
    (read,) = records.read(tmp_path / "rows.jsonl")
    assert read == row
    assert repr(read["gold"]["arguments"]["base"][0]) == repr(number)


def test_nested_values_are_their_own_gold() -> None:
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "object"}}}}
    answer = {"role": "assistant", "content": '{"name": "f", "arguments": {"x": {"a": [1, {"b": null}]}}}'}
    row = make(messages=[USER, answer], tools=[tool])
    assert calls.score(answer["content"], row["tools"], row["gold"]).exact


CHAT = [USER, {"role": "assistant", "content": "Twelve."}]


def test_messages_without_tools_or_gold_are_a_chat() -> None:
    for row in ({"messages": CHAT}, {"messages": CHAT, "tools": []}, {"messages": CHAT, "tools": None}):
        found = record.make(row, "mine.jsonl", "cc0-1.0", "mine")
        assert record.kind(found) == "chat"
        assert found["messages"] == CHAT
        assert (found["tools"], "gold" in found) == ([], False)
    as_json = {"role": "assistant", "content": '{"area": 12}'}
    assert record.kind(record.make({"messages": [USER, as_json]}, "mine.jsonl", "cc0-1.0", "mine")) == "chat"


def test_what_was_said_in_each_kind_of_row() -> None:
    text = record.make({"text": "Once."}, "s", "l", "c")
    pair = record.make(
        {"messages": [*CHAT, USER], "chosen": [ANSWER], "rejected": [CHAT[1]]}, "mine.jsonl", "cc0-1.0", "mine"
    )
    assert [record.kind(row) for row in (make(), text, pair)] == ["call", "text", "preference"]
    assert (record.request(text), record.response(text)) == ("", "Once.")
    assert record.request(pair) == f"{USER['content']}\n{USER['content']}"
    assert record.response(pair) == f"Twelve.\n{ANSWER['content']}"
    assert record.every_turn(pair) == [*CHAT, USER, ANSWER, CHAT[1]]
    assert (record.every_turn(text), record.tool_names(text), record.tool_names(make())) == ([], (), ("area",))


def test_a_call_row_is_written_as_before_there_were_other_kinds() -> None:
    """Its id, and so the default run's results, must not change."""
    assert make().keys() == {"id", "messages", "tools", "gold", "source", "licence", "category"}
    assert make()["id"] == "6142fcd9ea105f71"


def test_the_id_is_of_the_content() -> None:
    assert make()["id"] == make()["id"]
    assert len(make()["id"]) == 16
    assert make()["id"] != make(category="other")["id"]


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"messages": None}, "type", "messages is missing"),
        ({"messages": []}, "type", "messages is empty"),
        ({"messages": "hi"}, "type", "messages is a str"),
        ({"messages": [USER, "hi"]}, "type", "role and content"),
        ({"messages": [USER, {"role": "assistant", "content": 5}]}, "type", "role and content"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty", "assistant turn without content"),
        ({"messages": [ANSWER, USER]}, "roles", "roles are assistant, user"),
        ({"messages": [USER]}, "roles", "roles are user, where"),
        ({"messages": [USER, USER, ANSWER, ANSWER]}, "roles", "user, user"),
        ({"messages": [{"role": "system", "content": "s"}]}, "roles", "roles are system"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "roles", "roles are user, tool"),
        ({"tools": {"name": "area"}}, "type", "tools is a dict"),
        ({"tools": [{"name": "area"}]}, "type", "schema is missing"),
        ({"tools": [{"function": TOOL}]}, "type", "a tool that is not"),
        ({"tools": [{"name": "f", "parameters": {"properties": []}}], "gold": 1}, "type", "gold is neither"),
        ({"tools": [{"name": "f", "parameters": {"properties": ["x"]}}]}, "type", "f: properties is a list"),
        ({"gold": {"name": "area", "arguments": {"base": 5}}}, "type", "'base' is a int"),
        ({"gold": {"name": "area", "arguments": {"base": []}}}, "type", "'base' is empty"),
        ({"gold": {"name": "area", "arguments": {"base": [6]}}}, "contradictory", "not a right answer"),
        ({"gold": None}, "contradictory", "not a right answer"),
        ({"tools": []}, "contradictory", "not a right answer"),
        ({"messages": [USER, {"role": "assistant", "content": "Twelve."}]}, "no_gold", "is no call either"),
        ({"category": 3}, "type", "category is 3"),
        ({"messages": [{"role": "user", "content": "\u200b"}, ANSWER]}, "empty", "a user turn without content"),
        ({"messages": [{"role": "user", "content": "a\0b"}, ANSWER]}, "encoding", "NUL"),
        ({"tools": [{"name": "f", "parameters": {"required": [1]}}]}, "type", "f: required has what is no string"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "roles", "… user were expected"),
        ({"messages": [USER], "chosen": [ANSWER]}, "type", "rejected is missing"),
        (
            {"messages": [USER], "chosen": [ANSWER, USER], "rejected": [ANSWER]},
            "roles",
            "chosen has turns of assistant, user",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}, ANSWER]}, "encoding", "UTF-8"),
    ],
)
def test_a_bad_row(changes: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(BadRow, match=detail) as refusal:
        make(**changes)
    assert refusal.value.reason == reason
    assert "\n" not in str(refusal.value)
