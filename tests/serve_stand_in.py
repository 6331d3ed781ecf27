"""A stand-in for `make serve`: the real gateway, over HTTP, before an engine that says back what it is asked.

python -m tests.serve_stand_in PORT LIMITS [confused]      LIMITS: JSON of what differs from conf/serve

Its worker is a process of its own, whose end is the end of the server, as with the engines. A confused engine that has several
requests at once answers each with the text of another.
"""

import asyncio
import copy
import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from temper.exchange import App, Message, Receive, Scope, Send, Shared, respond
from temper.exposition import Series
from temper.gateway import Gateway
from tests.test_gateway import body, chunk, shipped

ROLES = ("system", "user", "assistant")
LONGEST = 100_000  # characters of a prompt
PAUSE = 0.01  # seconds of a word


class Echo:
    def __init__(self, series: Series, confused: bool) -> None:
        self.series, self.confused = series, confused
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await respond(send, 200, {})
        elif scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send(body(f"temper_requests_active {self.series.active}\n".encode(), more=False))
        else:
            await self.answer(json.loads((await receive())["body"]), receive, send)

    async def answer(self, request: dict[str, Any], receive: Receive, send: Send) -> None:
        if status := wrong(request):
            await respond(send, status, {"error": {"message": "wrong"}})
            return
        text = str(request["messages"][-1]["content"])
        self.asked.append(text)
        words = (self.asked[0] if self.confused else text).split()
        if request.get("ignore_eos"):
            words = (words * request["max_tokens"])[: request["max_tokens"]]
        gone = asyncio.ensure_future(receive())
        work = asyncio.ensure_future((self.stream if request.get("stream") else self.whole)(words, send))
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, work):
            task.cancel()
        self.asked.remove(text)

    async def whole(self, words: list[str], send: Send) -> None:
        await asyncio.sleep(PAUSE * len(words))
        choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(words)}, "finish_reason": "stop"}
        await respond(send, 200, {"id": "chatcmpl-1", "choices": [choice]})

    async def stream(self, words: list[str], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, word in enumerate(words):
            await asyncio.sleep(PAUSE)
            text = word if number == 0 else f" {word}"
            await send(body(chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])))
        await send(body(chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])))
        await send(body(b"data: [DONE]\n\n", more=False))


def wrong(request: dict[str, Any]) -> int:
    """The status of a request that an engine would refuse, 0 of a good one."""
    messages, heat = request.get("messages"), request.get("temperature", 0)
    if request.get("model") != "temper":
        return 404
    if not messages or any(one.get("role") not in ROLES or not isinstance(one.get("content"), str) for one in messages):
        return 400
    if not isinstance(heat, int | float) or heat < 0 or sum(len(one["content"]) for one in messages) > LONGEST:
        return 400
    return 0


async def connection(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request of HTTP/1.1 as ASGI has it; the connection ends with the reply."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        (method, path, _), *lines = (line.split(b" ", 2) for line in head.strip().splitlines())
        headers = [(name.rstrip(b":").lower(), b" ".join(value)) for name, *value in lines]
        await app(
            {"type": "http", "method": method.decode(), "path": path.decode(), "headers": headers},
            receiver(reader, int(dict(headers).get(b"content-length", b"0"))),
            sender(writer),
        )
        writer.close()
        await writer.wait_closed()


def receiver(reader: asyncio.StreamReader, length: int) -> Receive:
    read = False

    async def receive() -> Message:
        nonlocal read
        if not read:
            data = await reader.readexactly(length)
            read = True
            return {"type": "http.request", "body": data, "more_body": False}
        await reader.read(1)
        return {"type": "http.disconnect"}

    return receive


def sender(writer: asyncio.StreamWriter) -> Send:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            lines = [b"%b: %b\r\n" % pair for pair in message["headers"] if pair[0].lower() != b"connection"]
            writer.write(b"HTTP/1.1 %d -\r\nconnection: close\r\n%b\r\n" % (message["status"], b"".join(lines)))
        else:
            writer.write(message["body"])
        await writer.drain()

    return send


def gateway(limits: dict[str, Any], confused: bool) -> Gateway:
    cfg = copy.deepcopy(shipped())
    for key, value in limits.items():
        setattr(cfg.limits, key, value)
    series = Series()
    return Gateway(Echo(series, confused), Shared(cfg, "models/dpo", "abc", None, series))


async def main(port: str, limits: str, *confused: str) -> None:
    app = gateway(json.loads(limits), bool(confused))
    server = await asyncio.start_server(lambda *pair: connection(app, *pair), "127.0.0.1", int(port), backlog=2048)
    worker = subprocess.Popen([sys.executable, "-c", "import sys; held = b'x' * 10**7; sys.stdin.read()"], stdin=-1)
    async with server:
        while worker.poll() is None:
            await asyncio.sleep(0.05)
    os._exit(1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
