"""The form of an answer: the task's call or null, or a call to one of a request's tools, as a JSON schema for the engine."""

from typing import Any

from temper import calls, request_text

NULL = {"type": "null"}


def applied(request: dict[str, Any], structure: str) -> dict[str, Any]:
    """A chat request whose answer must have the form of the task; one that asks for a form of its own stays as it is.

    The tools move into the system turn, as training showed them to the model. With `tools`, a request without them stays as it is.
    One whose tool_choice is `none` has neither tools nor a form. ValueError saying what is wrong.
    """
    tools = functions(request.get("tools"))
    if request.get("response_format") or request.get("structured_outputs") or not (tools or structure == "task"):
        return request
    kept = {key: value for key, value in request.items() if key not in ("tools", "tool_choice", "parallel_tool_calls")}
    choice = request.get("tool_choice") or "auto"
    if choice == "none":
        return kept
    must_call = choice != "auto"
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema(chosen(tools, choice), must_call)}}
    return kept | {"messages": shown(request["messages"], tools), "response_format": form}


def chosen(tools: list[dict[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """The tools that a tool_choice leaves; ValueError where it is none, or names none of them."""
    if choice in ("auto", "required"):
        return tools
    asked = choice.get("function") if isinstance(choice, dict) else None
    found = [tool for tool in tools if isinstance(asked, dict) and tool["name"] == asked.get("name")]
    if not found:
        raise ValueError("tool_choice: expected none, auto, required, or a function of `tools`")
    return found


def shown(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns, with the tools in the system turn after what the caller says there, unless they are in it."""
    if not tools:
        return messages
    text = prompt(tools)
    if not messages or messages[0].get("role") != "system":
        return [{"role": "system", "content": text}, *messages]
    system, *others = messages
    said = system.get("content") or ""
    if text in request_text.turn(system):
        return messages
    told = (
        [*said, {"type": "text", "text": text}] if isinstance(said, list) else "\n\n".join(filter(None, (said, text)))
    )
    return [system | {"content": told}, *others]


def prompt(tools: list[dict[str, Any]]) -> str:
    """The system turn of training; ValueError for parameters that no signature can be made of."""
    try:
        return calls.system_prompt(tools)
    except (AttributeError, TypeError):
        raise ValueError("tools: expected parameters with an object for each of their properties") from None


def functions(tools: Any) -> list[dict[str, Any]]:
    """The tools of a request, plain or as OpenAI's `{"type": "function", "function": …}`; ValueError saying what is wrong."""
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools: expected a list of objects")
    found = [tool.get("function", tool) for tool in tools]
    for tool in found:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise ValueError("tools: expected a name in each")
        if not isinstance(tool.get("parameters", {}), dict):
            raise ValueError(f"tools: the parameters of {tool['name']} are no JSON schema")
    empty = {"type": "object", "properties": {}}
    return [{"parameters": empty} | tool for tool in found]


def schema(tools: list[dict[str, Any]], must_call: bool = False) -> dict[str, Any]:
    """Of one call to one of `tools` (without them, to anything), or null unless it must be a call."""
    forms = [call({"const": tool["name"]}, tool["parameters"]) for tool in tools]
    forms = forms or [call({"type": "string"}, {"type": "object"})]
    return {"anyOf": forms if must_call else [*forms, NULL]}


def call(name: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": name, "arguments": {"type": "object"} | arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
