"""Talk to the released model in the terminal: each request is answered by one call to a tool, or by null.

    python -m commands.chat [TOOLS.json]     a JSON list of {"name", "parameters": JSON schema}; a small example without it

Requests are independent of each other, as in training. Without a terminal, stdin holds one request a line.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temper import calls, llama, params, retention

MODEL = Path("models/gguf/model.gguf")
CONTEXT = 4096  # tokens of tools, request and answer
MAX_TOKENS = 256
COMMANDS = "/tools lists the tools, /quit ends"
EXAMPLE: list[dict[str, Any]] = [
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    }
]


def main(arguments: list[str]) -> None:
    if not MODEL.is_file():
        raise SystemExit(f"{MODEL}: no released model yet: run `make repro`, which makes it")
    retention.require_released("gguf")
    tools = read_tools(Path(arguments[0])) if arguments else EXAMPLE
    model = llama.load(MODEL, int(params.runtime()["threads"]), CONTEXT)
    if sys.stdin.isatty():
        print(f"{listing(tools)}\n({COMMANDS})")
    for request in requests():
        if request == "/tools":
            print(listing(tools), flush=True)
        elif request == "/quit":
            break
        else:
            answer(model, tools, request)


def requests() -> Iterator[str]:
    """The lines that are typed or piped in, without empty ones, until their end or Ctrl-C."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    import readline  # noqa: F401  (gives input() its history and editing)

    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line


def answer(model: Any, tools: list[dict[str, Any]], request: str) -> None:
    """Print the answer while it is made; Ctrl-C ends this answer only."""
    messages = [{"role": "system", "content": calls.system_prompt(tools)}, {"role": "user", "content": request}]
    try:
        for piece in llama.reply(model, messages, MAX_TOKENS):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    except ValueError as error:
        # llama.cpp's word for a chat that is longer than its context.
        print(f"({error}: shorten the request or the list of tools)", end="")
    print(flush=True)


def listing(tools: list[dict[str, Any]]) -> str:
    return "\n".join(map(calls.signature, tools))


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tools in a JSON file, plain or as OpenAI's `{"type": "function", "function": …}`; exits saying what is wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such file: name a JSON file with a list of tools") from None
    except ValueError as error:
        raise SystemExit(f"{path}: not JSON ({error}): correct it") from None
    tools = [tool.get("function", tool) for tool in found] if _is_list_of_objects(found) else []
    if not tools or not all(
        isinstance(tool, dict) and isinstance(tool.get("name"), str) and isinstance(tool.get("parameters"), dict)
        for tool in tools
    ):
        raise SystemExit(
            f'{path}: expected a list of {{"name": …, "parameters": JSON schema}}, one for each tool: correct it'
        )
    return tools


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


if __name__ == "__main__":
    main(sys.argv[1:])
