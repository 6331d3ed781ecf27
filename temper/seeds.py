"""The examples that synthetic rows grow from, in the formats that people write them in."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from temper import calls, record, records
from temper.record import BadRow
from temper.records import Row

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Seed:
    id: str
    head: Chat
    """The turns before the request: system and history."""
    instruction: str
    request: str
    """The instruction with its input: the last user turn."""
    answer: str | None
    carried: Row
    """What its rows inherit: tools, licence, category."""
    gold: Row | None = None
    has_gold: bool = False
    """Since a gold call may be None (no tool fits)."""
    parents: tuple[str, ...] = ()

    @property
    def chat(self) -> Chat:
        return [*self.head, {"role": "user", "content": self.request}]

    @property
    def system(self) -> str:
        return self.head[0]["content"] if self.head and self.head[0]["role"] == "system" else ""

    @property
    def tools(self) -> list[Row]:
        return list(self.carried.get("tools") or [])


def read(path: Path, limit: int | None) -> list[Seed]:
    """The seed examples in a file of JSON lines; exits naming the line that is none.

    Formats: `messages`, `instruction` with `input` and `output` (Alpaca), `instruction` with `instances` (Self-Instruct),
    and `prompt` with `completion`. Answers may be missing where a method makes them.
    """
    if not path.is_file():
        example = '{"instruction": "…", "output": "…"} or {"messages": […]}'
        raise SystemExit(f"{path}: no seed examples: write some, one a line, as {example}, or set synthesize.seeds")
    found: dict[str, Seed] = {}
    for number, row in enumerate(records.read(path), start=1):
        try:
            for seed in _seeds(row):
                if found.setdefault(seed.id, seed).chat != seed.chat:
                    raise BadRow("id", f"the id '{seed.id}' of another example")
        except BadRow as error:
            raise SystemExit(f"{path}:{number}: {error}: correct or delete the line") from None
    if not found:
        raise SystemExit(f"{path}: empty, where seed examples were expected, one JSON object a line")
    return list(found.values())[:limit]


def _seeds(row: Row) -> list[Seed]:
    """The examples in one line of the seed file; BadRow for a line that holds none."""
    carried = {key: row[key] for key in ("tools", "licence", "category") if row.get(key)}
    tools = record.checked_tools(carried.get("tools", []))
    gold = _gold(row.get("gold"))
    found = []
    setup = [{"role": "system", "content": calls.system_prompt(tools)}] if tools else []
    for turns, instruction, inputs, answer in _examples(row):
        request = f"{instruction}\n\n{inputs}" if inputs else instruction
        head = turns if turns and turns[0]["role"] == "system" else [*setup, *turns]
        id = row["id"] if isinstance(row.get("id"), str) else identity(head, request)
        found.append(Seed(id, head, instruction, request, answer, carried, gold, "gold" in row))
    return [found[0], *(replace(seed, id=identity(seed.head, seed.request)) for seed in found[1:])]


def _examples(row: Row) -> list[tuple[Chat, str, str, str | None]]:
    """(turns before, instruction, input, answer) of each example in a row."""
    if "messages" in row:
        return [_from_messages(row["messages"])]
    texts = {key: row.get(key) for key in ("instruction", "input", "output", "prompt", "completion")}
    wrong = [key for key, value in texts.items() if value is not None and not isinstance(value, str)]
    instruction = texts["instruction"] or texts["prompt"]
    if wrong or not instruction or not instruction.strip():
        raise BadRow(
            "type", f"{wrong[0]} is no string" if wrong else "none of messages, instruction and prompt has text"
        )
    if isinstance(row.get("instances"), list) and row["instances"]:
        if not all(isinstance(one, dict) and isinstance(one.get("output"), str) for one in row["instances"]):
            raise BadRow("type", "instances are not objects with input and output")
        return [([], instruction, str(one.get("input") or ""), one["output"]) for one in row["instances"]]
    return [([], instruction, texts["input"] or "", texts["output"] or texts["completion"])]


def _from_messages(messages: Any) -> tuple[Chat, str, str, str | None]:
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise BadRow("type", "messages is no list of turns with role and content")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else None
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise BadRow("roles", "messages without a user turn to grow from, at the end or before the last answer")
    request = turns.pop()["content"]
    return turns, request, "", answer


def _gold(gold: Any) -> Row | None:
    arguments = gold.get("arguments") if isinstance(gold, dict) and isinstance(gold.get("name"), str) else None
    is_call = isinstance(arguments, dict) and all(isinstance(accepted, list) for accepted in arguments.values())
    if gold is not None and not is_call:
        raise BadRow("type", 'gold is neither null nor {"name": …, "arguments": {…: [accepted values]}}')
    return gold


def identity(head: Chat, request: str) -> str:
    """16 hexadecimal digits of the turns; BadRow for what UTF-8 cannot hold."""
    return str(record.identified({"messages": [*head, {"role": "user", "content": request}]})["id"])
