"""A request with tools is answered by a call where its tool_choice wants one, and the model is always shown what it may call."""

from typing import Any

import pytest

from temper import calls, structured

ADD, NOW = ({"name": name, "parameters": {"type": "object", "properties": {}}} for name in ("add", "now"))
USER = {"role": "user", "content": "2+2?"}
SHOWN = calls.system_prompt([ADD, NOW])


def applied(*turns: dict[str, Any], structure: str = "tools", **more: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": tool} for tool in (ADD, NOW)]
    return structured.applied({"messages": [*turns, USER], "tools": tools, **more}, structure)


def forms(request: dict[str, Any]) -> list[Any]:
    """What may be answered: a name that is called, anything by {}, or null."""
    found = request["response_format"]["json_schema"]["schema"]["anyOf"]
    return [None if form == {"type": "null"} else form["properties"]["name"].get("const", {}) for form in found]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Be brief.", f"Be brief.\n\n{SHOWN}"),
        ("", SHOWN),
        (None, SHOWN),
        (SHOWN, SHOWN),
        (f"Be brief.\n{SHOWN}", f"Be brief.\n{SHOWN}"),
        (
            [{"type": "text", "text": "Be brief."}],
            [{"type": "text", "text": "Be brief."}, {"type": "text", "text": SHOWN}],
        ),
        ([{"type": "text", "text": SHOWN}], [{"type": "text", "text": SHOWN}]),
    ],
)
def test_a_system_turn_of_the_callers_own_gets_the_tools_once(said: Any, expected: Any) -> None:
    given = {"role": "system", "content": said, "name": "me"}
    request = applied(given)
    assert request["messages"] == [given | {"content": expected}, USER]
    assert forms(request) == ["add", "now", None]
    assert given["content"] == said


def test_without_a_system_turn_there_is_one() -> None:
    assert applied()["messages"] == [{"role": "system", "content": SHOWN}, USER]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ["add", "now", None]),
        ("auto", ["add", "now", None]),
        ("required", ["add", "now"]),
        ({"type": "function", "function": {"name": "now"}}, ["now"]),
    ],
)
@pytest.mark.parametrize("structure", ["tools", "task"])
def test_the_form_is_what_tool_choice_leaves(choice: Any, expected: list[Any], structure: str) -> None:
    request = applied(tool_choice=choice, structure=structure)
    assert forms(request) == expected
    assert request["messages"][0]["content"] == SHOWN, "as in training, though one is chosen"
    assert request.keys().isdisjoint({"tools", "tool_choice"})


@pytest.mark.parametrize("structure", ["tools", "task"])
def test_who_wants_no_call_is_answered_in_words(structure: str) -> None:
    assert applied(tool_choice="none", structure=structure) == {"messages": [USER]}


def test_a_task_without_tools_may_call_anything_and_must_where_it_is_required() -> None:
    asked = {"messages": [USER]}
    assert forms(structured.applied(asked, "task")) == [{}, None]
    assert forms(structured.applied(asked | {"tool_choice": "required"}, "task")) == [{}]
    assert structured.applied(asked | {"tool_choice": "none"}, "task") == asked


@pytest.mark.parametrize("choice", ["all", 1, {"function": "add"}, {"type": "function", "function": {"name": "mul"}}])
def test_a_tool_choice_that_names_no_tool_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match=r"^tool_choice: expected none, auto, required"):
        applied(tool_choice=choice)
