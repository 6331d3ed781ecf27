"""The form of an answer: the task's call or null, or a call to one of a request's tools, as a JSON schema for the engine."""

from typing import Any

from temper import calls

NULL = {"type": "null"}


def applied(request: dict[str, Any], structure: str) -> dict[str, Any]:
    """A chat request whose answer must have the form of the task; one that asks for a form of its own stays as it is.

    The tools move into the system turn that training showed the model. With `tools`, a request without them stays as it is.
    """
    tools = functions(request.get("tools"))
    if request.get("response_format") or request.get("structured_outputs") or not (tools or structure == "task"):
        return request
    messages = request["messages"]
    if tools and (not messages or messages[0].get("role") != "system"):
        messages = [{"role": "system", "content": prompt(tools)}, *messages]
    kept = {key: value for key, value in request.items() if key not in ("tools", "tool_choice", "parallel_tool_calls")}
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema(tools)}}
    return kept | {"messages": messages, "response_format": form}


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


def schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one call to one of `tools` (without them, to anything), or null."""
    forms = [call({"const": tool["name"]}, tool["parameters"]) for tool in tools]
    return {"anyOf": [*(forms or [call({"type": "string"}, {"type": "object"})]), NULL]}


def call(name: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": name, "arguments": {"type": "object"} | arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
