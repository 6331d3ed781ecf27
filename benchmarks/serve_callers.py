"""Callers of a server, well-behaved ones and others, and what each saw of its reply."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from temper.load import Chat
from temper.lossless import Answer
from temper.serving import Limits

PATH = "/v1/chat/completions"
MAX_TOKENS = 48
PATIENCE = 120.0  # seconds in which anything must have an answer


@dataclass(frozen=True)
class Target:
    """A server under test."""

    url: str
    model: str
    limits: Limits

    def client(self) -> httpx.AsyncClient:
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, trust_env=False, limits=unlimited)

    def body(self, chat: Chat, **more: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": chat, "temperature": 0, "max_tokens": MAX_TOKENS, **more}


@dataclass
class Reply:
    status: int
    text: str = ""
    whole: bool = False
    """Whether it came to an end that the server gave it: a reason in each choice, and of a stream the last line too."""
    answer: Answer | None = None
    """In tokens, where the engine tells them."""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


async def ask(client: httpx.AsyncClient, body: dict[str, Any], on_piece: Callable[[], object] | None = None) -> Reply:
    """One request to its end, however it ends."""
    started = time.monotonic()
    collected = b""
    body = body | {"return_token_ids": True}
    try:
        async with client.stream("POST", PATH, json=body) as reply:
            async for piece in reply.aiter_bytes():
                collected += piece
                if on_piece:
                    on_piece()
            status, headers = reply.status_code, dict(reply.headers)
    except httpx.TimeoutException:
        return Reply(0, "no answer in time", seconds=time.monotonic() - started)
    except httpx.HTTPError as error:
        return Reply(-1, f"{type(error).__name__}: {error}", seconds=time.monotonic() - started)
    found = streamed(collected) if body.get("stream") and status == 200 else complete(collected)
    return Reply(status, *found, time.monotonic() - started, headers)


def complete(body: bytes) -> tuple[str, bool, Answer | None]:
    """Text, whether it is whole, and tokens of a reply that was not streamed."""
    try:
        value = json.loads(body)
        choice = value["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        return "", False, None
    answer = told(value.get("prompt_token_ids"), choice.get("token_ids"))
    return choice["message"]["content"] or "", bool(choice.get("finish_reason")), answer


def streamed(body: bytes) -> tuple[str, bool, Answer | None]:
    """The same of events; one that holds an error makes the reply no answer."""
    texts: list[str] = []
    tokens: list[int] = []
    prompt: list[int] | None = None
    reason = failed = False
    for event in events(body):
        failed = failed or "error" in event
        prompt = prompt or event.get("prompt_token_ids")
        for choice in event.get("choices", ()):
            texts.append(choice["delta"].get("content") or "")
            tokens += choice.get("token_ids") or []
            reason = reason or bool(choice.get("finish_reason"))
    is_whole = reason and not failed and body.rstrip().endswith(b"data: [DONE]")
    return "".join(texts), is_whole, told(prompt, tokens)


def events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        # The last line of a stream that was cut may be half an event.
        with suppress(ValueError):
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def told(prompt: list[int] | None, tokens: list[int] | None) -> Answer | None:
    return Answer(prompt, tokens) if prompt and tokens else None


def error_of(reply: httpx.Response) -> str:
    """The message of an error in OpenAI's form; empty where there is none."""
    with suppress(ValueError, KeyError, TypeError):
        return str(reply.json()["error"]["message"])
    return ""


async def answers(client: httpx.AsyncClient, target: Target, chat: Chat) -> bool:
    """Whether the server answers again within PATIENCE; that it is still full is no failure before then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        reply = await ask(client, target.body(chat))
        if reply.status == 200 and reply.whole:
            return True
        await asyncio.sleep(0.5)
    return False


def statuses(replies: list[Reply], expected: set[int]) -> str:
    """Those that are not expected, counted; empty without any. 0 is no answer in time, -1 a connection that broke."""
    other = Counter(reply.status for reply in replies if reply.status not in expected)
    return ", ".join(f"{number} × {status}" for status, number in sorted(other.items()))


def request(target: Target, body: dict[str, Any]) -> bytes:
    """As bytes, for callers who do not behave."""
    content = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {target.url.removeprefix('http://')}\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


async def opened(target: Target, few_bytes: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; with `few_bytes` one whose caller's side takes no more than a little, so that the server cannot send on."""
    host, port = target.url.removeprefix("http://").split(":")
    caller = socket.socket()
    caller.setblocking(False)
    if few_bytes:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(caller, (host, int(port)))
    return await asyncio.open_connection(sock=caller, limit=1 if few_bytes else 2**16)


async def status_of(reader: asyncio.StreamReader, seconds: float) -> int:
    """Of a reply's first line: 0 for none in time, -1 for a connection that broke."""
    try:
        async with asyncio.timeout(seconds):
            line = await reader.readline()
    except TimeoutError:
        return 0
    except OSError:
        return -1
    parts = line.split()
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1
