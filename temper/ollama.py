"""Ollama's Modelfile for a GGUF file: its chat template, which is Jinja, as Ollama's, which is Go's.

A template is understood when all it does is to write something before and after each turn. That is found out by rendering it, and
held against it on other chats.

    python -m temper.ollama MODEL.gguf MODELFILE
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Chat = list[dict[str, str]]
Render = Callable[[Chat, bool], str]
"""A chat as text, and whether the model is to speak next."""
SYSTEM, ASKED, SAID, AGAIN = "\x01system\x01", "\x01asked\x01", "\x01said\x01", "\x01again\x01"
CONTEXT = 4096  # tokens, as in `make chat`


@dataclass(frozen=True)
class Turns:
    """What a template writes around turns."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    default: str
    """The system turn's text where a chat has none."""

    def text(self, chat: Chat, speaks: bool) -> str:
        """A chat as Ollama will write it."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        if chat[0]["role"] != "system" and self.default:
            chat = [{"role": "system", "content": self.default}, *chat]
        turns = [f"{around[turn['role']][0]}{turn['content']}{around[turn['role']][1]}" for turn in chat]
        return "".join([*turns, self.assistant[0] if speaks else ""])

    def template(self) -> str:
        """The same in Go's template language. The last turn is the one that the model goes on from."""
        (before, after), (asked, answer), (said, ended) = self.system, self.user, self.assistant
        return (
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{asked}{{{{ .Content }}}}{answer}{{{{ if $last }}}}{said}{{{{ end }}}}'
            f'{{{{ else if eq .Role "assistant" }}}}{said}{{{{ .Content }}}}{{{{ if not $last }}}}{ended}{{{{ end }}}}'
            "{{ end }}{{ end }}"
        )


def turns(render: Render) -> Turns:
    """What `render` writes around turns; ValueError when it does more than that."""
    chat = [turn("system", SYSTEM), turn("user", ASKED), turn("assistant", SAID), turn("user", AGAIN)]
    before, rest = parted(render(chat, True), SYSTEM)
    gap, rest = parted(rest, ASKED)
    answer, rest = parted(rest, SAID)
    again, end = parted(rest, AGAIN)
    after = parted(render(chat[:1], False), SYSTEM)[1]
    closed = parted(render(chat[:2], False), ASKED)[1]
    asked, said = without(gap, after), without(answer, closed)
    alone = parted(render([turn("user", ASKED)], True), ASKED)[0]
    default = without(alone.removesuffix(asked), before).removesuffix(after) if alone != asked else ""
    found = Turns((before, after), (asked, closed), (said, again.removesuffix(asked)), default)
    for tried in (chat, chat[:2], chat[1:], [turn("user", "{one}"), turn("assistant", "two"), turn("user", "3")]):
        if found.text(tried, True) != render(tried, True):
            raise ValueError("it does more than write something before and after each turn")
    if end != closed + said:
        raise ValueError("an answer begins otherwise than the turn of one")
    return found


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def parted(text: str, at: str) -> tuple[str, str]:
    before, found, after = text.partition(at)
    if not found:
        raise ValueError("it changes or leaves out what a turn says")
    return before, after


def without(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("what it writes around a turn depends on its neighbours")
    return text[len(start) :]


def modelfile(source: str, found: Turns, stop: str) -> str:
    """The file's text; ValueError for what it cannot hold."""
    template = found.template()
    if '"""' in template + found.default or any("{{" in part for pair in (found.system, found.user) for part in pair):
        raise ValueError('it has """ or {{, which a Modelfile cannot quote')
    system = [f'SYSTEM """{found.default}"""'] if found.default else []
    parameters = {"temperature": "0", "num_ctx": str(CONTEXT), "stop": json.dumps(stop, ensure_ascii=False)}
    lines = [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join([f"FROM {source}", f'TEMPLATE """{template}"""', *system, *lines]) + "\n"


def jinja(template: str, stop: str) -> Render:
    """As transformers renders chat templates; Ollama adds the token that begins a text itself."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    values: dict[str, Any] = {"bos_token": "", "eos_token": stop, "raise_exception": refuse}
    return lambda chat, speaks: compiled.render(messages=chat, add_generation_prompt=speaks, **values)


def main(source: Path, target: Path) -> None:
    from jinja2 import TemplateError

    from temper import gguf

    template, stop = gguf.template(source), end_of_turn(source)
    try:
        text = modelfile(os.path.relpath(source, target.parent), turns(jinja(template, stop)), stop)
    except (ValueError, TemplateError) as error:
        raise SystemExit(
            f"{source}: its chat template has no equal in Ollama's ({error}): write TEMPLATE by hand"
        ) from None
    target.write_text(text, encoding="utf-8")


def end_of_turn(source: Path) -> str:
    """The token that ends an answer, as text."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    tokens, number = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("tokens", "eos_token_id"))
    if tokens is None or number is None:
        raise SystemExit(f"{source}: no tokenizer, or no token that ends a text: write it again with `make quantize`")
    return str(tokens.contents(int(number.contents())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
