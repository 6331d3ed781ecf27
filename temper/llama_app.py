"""llama.cpp behind OpenAI's routes and the same gateway as vLLM: chats and completions, streamed or whole, one at a time.

llama.cpp is in an environment without an HTTP server, so this process answers HTTP and a worker (temper/llama_worker.py) computes,
joined by a pipe, as vLLM's server and its engine are.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from temper import stage
from temper.exchange import DONE, END, GONE, OWN_ID, Receive, Refused, Scope, Send, event, respond
from temper.exposition import Waits
from temper.gateway import Gateway

LONGEST_LINE = 1 << 26
OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), (int, float)),
    **dict.fromkeys(("seed", "max_tokens", "max_completion_tokens"), (int,)),
    "stop": (str, list),
    "ignore_eos": (bool,),
}
RANGES = {
    **{"temperature": (0, 10), "top_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2)},
    **{"seed": (0, 2**32 - 2), "max_tokens": (1, 2**31 - 1), "max_completion_tokens": (1, 2**31 - 1)},
}
EXPECTED = {
    "stop": "text, or a list of texts",
    "ignore_eos": "true or false",
    **{option: f"a number from {low} to {high}" for option, (low, high) in RANGES.items()},
}


class Worker:
    """The process that computes, and the answers that wait for it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._numbers = itertools.count(1)
        self._pieces: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self.context = 0
        self.waits = Waits()
        """Of requests, until the process begins with them."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when the process ends that should not."""

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LONGEST_LINE,
            preexec_fn=stage.die_with_parent,
        )
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended with status {await self._process.wait()} before it was ready")
        self.context = json.loads(line)["context"]
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        self._reading.cancel()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    @property
    def is_alive(self) -> bool:
        return self.status is None

    @property
    def status(self) -> int | None:
        """Of the process once it has ended."""
        return self._process.returncode

    async def ask(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Pieces of one answer; leaving the loop ends it."""
        number, asked = next(self._numbers), time.perf_counter()
        pieces = self._pieces[number] = asyncio.Queue()
        is_done = False
        self._tell(request | {"id": number})
        try:
            while not is_done:
                piece = await pieces.get()
                if "begun" in piece:
                    self.waits.add(time.perf_counter() - asked)
                    continue
                is_done = "end" in piece or "error" in piece
                yield piece
        finally:
            del self._pieces[number]
            if not is_done and self.is_alive:
                self._tell({"cancel": number})

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            piece = json.loads(line)
            if waiting := self._pieces.get(piece.pop("id")):
                waiting.put_nowait(piece)
        await self._process.wait()
        for waiting in self._pieces.values():
            waiting.put_nowait({"error": "llama.cpp ended", "status": 500})
        self.on_end()


class LlamaApp:
    """An ASGI application."""

    def __init__(self, worker: Worker, name: str, max_tokens: int) -> None:
        self.worker, self.name, self.max_tokens = worker, name, max_tokens
        self.created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in ("/health", "/ping"):
            await respond(send, 200 if self.worker.is_alive else 503, {})
        elif path == "/metrics":
            await self._metrics(send)
        elif path in ("/v1/chat/completions", "/v1/completions") and scope["method"] != "POST":
            # The gateway lets OPTIONS through to the engine.
            error = Refused(405, "method_not_allowed", f"{path} takes POST").error
            await respond(send, 405, {"error": error}, {"allow": "POST"})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            try:
                await self._answer(path, json.loads((await receive())["body"]), receive, send)
            except Refused as refused:
                await respond(send, refused.status, {"error": refused.error})
        elif path in ("/v1/models", f"/v1/models/{self.name}"):
            model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "temper"}
            await respond(send, 200, model if path.endswith(self.name) else {"object": "list", "data": [model]})
        else:
            await respond(send, 404, {"error": Refused(404, "not_found", f"no route {path}").error})

    async def _metrics(self, send: Send) -> None:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": generate_latest()})

    async def _answer(self, path: str, request: dict[str, Any], receive: Receive, send: Send) -> None:
        checked(request, path, self.name)
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or self.max_tokens
        pieces = self.worker.ask(request | {"max_tokens": limit})
        form = Form(path, self.name, str(request.get(OWN_ID) or uuid.uuid4().hex))
        gone = asyncio.create_task(left(receive))
        try:
            if request.get("stream"):
                await self._stream(
                    pieces, form, bool((request.get("stream_options") or {}).get("include_usage")), gone, send
                )
            else:
                await self._whole(pieces, form, gone, send)
        finally:
            gone.cancel()
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _stream(
        self,
        pieces: AsyncIterator[dict[str, Any]],
        form: "Form",
        with_usage: bool,
        gone: asyncio.Task[None],
        send: Send,
    ) -> None:
        is_begun = False
        async for piece in until(pieces, gone):
            if not is_begun:
                fail(piece)
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                is_begun = True
            if "error" in piece:
                body = event({"error": {"message": piece["error"], "type": "server_error", "code": None}}) + DONE + END
            elif "end" in piece:
                body = form.event(None, piece["end"])
                body += form.usage(piece["usage"]) if with_usage else b""
                body += DONE + END
            else:
                body = form.event(piece["text"], None)
            is_last = "text" not in piece
            await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _whole(
        self, pieces: AsyncIterator[dict[str, Any]], form: "Form", gone: asyncio.Task[None], send: Send
    ) -> None:
        parts: list[str] = []
        async for piece in until(pieces, gone):
            fail(piece)
            if "end" in piece:
                await respond(send, 200, form.whole("".join(parts), piece["end"], piece["usage"]))
            else:
                parts.append(piece["text"])


class Form:
    """OpenAI's objects around an answer."""

    def __init__(self, path: str, model: str, id: str) -> None:
        self.is_chat = path.endswith("/chat/completions")
        prefix, kind = ("chatcmpl", "chat.completion") if self.is_chat else ("cmpl", "text_completion")
        self.head = {"id": f"{prefix}-{id}", "created": int(time.time()), "model": model}
        self.kind = kind
        self._is_first = True

    def event(self, text: str | None, reason: str | None) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else self.kind
        role = {"role": "assistant"} if self._is_first else {}
        self._is_first = False
        said: dict[str, Any] = (
            {"delta": role | ({"content": text} if text else {})} if self.is_chat else {"text": text or ""}
        )
        choice = {"index": 0, **said, "finish_reason": reason}
        return event({**self.head, "object": kind, "choices": [choice]})

    def usage(self, usage: dict[str, int]) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else self.kind
        return event({**self.head, "object": kind, "choices": [], "usage": usage})

    def whole(self, text: str, reason: str, usage: dict[str, int]) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {
            **self.head,
            "object": self.kind,
            "choices": [{"index": 0, **said, "finish_reason": reason}],
            "usage": usage,
        }


def checked(request: dict[str, Any], path: str, name: str) -> None:
    """Refuse what this engine does not do, before it is asked."""
    if request.get("model", name) != name:
        raise Refused(404, "model_not_found", f"no model '{request['model']}': this is {name}")
    field, kind = ("messages", list) if path.endswith("/chat/completions") else ("prompt", str)
    if not isinstance(request.get(field), kind) or not request[field]:
        raise Refused(400, "invalid_value", f"{field}: expected {'a list of turns' if kind is list else 'text'}")
    for turn in request.get("messages", ()):
        if turn.get("role") not in ("system", "user", "assistant") or not isinstance(turn.get("content"), str):
            raise Refused(400, "invalid_value", "messages: expected a role (system, user, assistant) and text in each")
    for option, kinds in OPTIONS.items():
        value = request.get(option)
        if value is not None and (type(value) not in kinds or not in_range(option, value)):
            raise Refused(400, "invalid_value", f"{option}: expected {EXPECTED[option]}")
    if request.get("n", 1) not in (None, 1):
        raise Refused(400, "invalid_value", "n: llama.cpp gives one answer here")
    if request.get("tools"):
        raise Refused(400, "invalid_value", "tools: set serve.structured, or write them into the system turn")


def in_range(option: str, value: Any) -> bool:
    if option == "ignore_eos":
        return True
    if option == "stop":
        return all(isinstance(one, str) and one for one in ([value] if isinstance(value, str) else value))
    low, high = RANGES[option]
    return bool(low <= value <= high)


def fail(piece: dict[str, Any]) -> None:
    if "error" in piece:
        status = piece.get("status", 400)
        raise Refused(status, "invalid_value" if status < 500 else "engine_error", piece["error"])


async def left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until(pieces: AsyncIterator[dict[str, Any]], gone: asyncio.Task[None]) -> AsyncIterator[dict[str, Any]]:
    """The pieces, for as long as somebody waits for them."""
    while True:
        step = asyncio.ensure_future(anext(pieces))
        await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not step.done():
            step.cancel()
            await asyncio.wait({step})
            raise Refused(GONE, "gone", "the caller left")
        try:
            yield step.result()
        except StopAsyncIteration:
            return


def main() -> None:
    import uvicorn

    stage.die_with_parent()
    given = arguments()
    worker = Worker([given.worker, "-m", "temper.llama_worker", given.model, str(given.threads), str(given.context)])
    worker.waits.register()
    engine = LlamaApp(worker, given.served_model_name, given.max_tokens)
    app = engine if given.bare else Gateway(engine)

    async def serve() -> int | None:
        config = uvicorn.Config(
            app,
            host=given.host,
            port=given.port,
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=given.drain,
        )
        server = uvicorn.Server(config)

        def end() -> None:
            server.should_exit = True

        worker.on_end = end
        await worker.start()
        try:
            await server.serve()
            return worker.status
        finally:
            await worker.stop()

    if status := asyncio.run(serve()):
        raise SystemExit(f"llama.cpp ended with status {status}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--worker", "--served-model-name", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--threads", "--context", "--max-tokens", "--drain"):
        parser.add_argument(name, required=True, type=int)
    parser.add_argument("--bare", action="store_true", help="without the gateway: no guard, limits, key or log")
    return parser.parse_args()


if __name__ == "__main__":
    main()
