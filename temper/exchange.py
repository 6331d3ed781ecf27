"""One request for an answer: read, checked, handed to the engine, its reply checked and passed on, and all of it recorded."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from temper import offline_guard, request_text, structured
from temper.exposition import Series
from temper.guard import ALLOWED, FAILED, Asked, Finding, Lexical
from temper.log_pipe import LogPipe
from temper.offline_guard import OfflineGuard
from temper.replies import DATA, DONE, END, Streamed, Whole
from temper.serving import Limits, Serve

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLOSE = {"connection": "close"}
READ_ON = 16  # times as large as allowed, beyond which a body is not read to its end
ARRIVING = 1 << 28  # bytes of all bodies on their way together, beyond which one that is not small is refused
SMALL = 1 << 16
MAX_NESTING = 100  # of a body: far above any request, and below what orjson writes (254) and what recursion allows
GONE = 499  # nginx's status of a caller who left
# By which an engine calls its answer. A caller's own would make two requests one in the log, and be kept there unscrubbed.
OWN_ID = "request_id"


class Refused(Exception):
    """An answer that is an error, in OpenAI's form."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
        self.error = {"message": message, "type": kind, "param": None, "code": code}


class Shared:
    """What all requests share."""

    def __init__(self, cfg: Serve, model: str, revision: str, log: LogPipe | None, series: Series) -> None:
        self.cfg = cfg
        self.model = model
        self.revision = revision
        self.log = log
        self.series = series
        self.lexical = Lexical(cfg.guard)
        self.classifier = offline_guard.load(Path(cfg.guard.classifier)) if cfg.guard.classifier else None
        self.asked = Asked(cfg.guard.endpoint) if cfg.guard.endpoint else None


class Exchange:
    def __init__(self, shared: Shared, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self._shared, self._app, self._scope = shared, app, scope
        self._id = issued(shared.revision)
        self._receive, self._raw_send = receive, send
        self._begun = time.perf_counter()
        self._first: float | None = None
        self._status = 500
        self._request: dict[str, Any] = {}
        self._reply: Whole | Streamed | None = None
        self._start: Message = {}
        self._sent_start = self._finished = False
        self._over = asyncio.Event()
        """Set when the engine need not go on; `_cause` says why."""
        self._cause = ""
        self._verdict = ""
        self._rule = ""
        self._guard_seconds = 0.0

    async def run(self) -> None:
        try:
            self._require_place()
            # A caller who sends slowly takes no place meanwhile.
            body = await body_of(self._scope, self._receive, self._shared.cfg.limits, self._shared.series)
            with self._place():
                await self._answer(body, self._shared.cfg.limits)
        except Refused as refused:
            await self._refuse(refused)
        finally:
            self._account()

    def _require_place(self) -> None:
        active, limits = self._shared.series.active, self._shared.cfg.limits
        if active >= limits.concurrent + limits.queued:
            raise Refused(429, "too_many_requests", f"{active} requests are under way: try again", self._later())

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of those that may run or wait."""
        self._require_place()
        self._shared.series.active += 1
        try:
            yield
        finally:
            self._shared.series.active -= 1

    async def _answer(self, body: bytes, limits: Limits) -> None:
        self._shared.series.bytes["in"] += len(body)
        self._request = parsed(body)
        shows_usage = bool((self._request.get("stream_options") or {}).get("include_usage"))
        request = self._fitted(limits)
        await self._check_request()
        is_vetted = self._shared.asked is not None and self._shared.cfg.guard.output
        lexical = self._shared.lexical if self._shared.cfg.guard.output else None
        self._reply = Streamed(lexical, shows_usage, is_vetted) if request.get("stream") else Whole(lexical)
        await self._forward(orjson.dumps(request), limits)

    def _fitted(self, limits: Limits) -> dict[str, Any]:
        """The request as the engine gets it; refused when it asks for too much."""
        try:
            request = self._request | {OWN_ID: self._id}
            for name in ("n", "best_of"):
                at_most(request, name, limits.choices)
            if (asked := prompts(request) * (request.get("n") or 1)) > limits.choices:
                raise ValueError(f"prompt: {asked} answers asked for, expected at most {limits.choices}")
            for name in ("max_tokens", "max_completion_tokens"):
                at_most(request, name, limits.max_tokens)
            if request.get("stream"):
                request["stream_options"] = (request.get("stream_options") or {}) | {"include_usage": True}
            if self._shared.cfg.structured and "messages" in request:
                request = structured.applied(request, self._shared.cfg.structured)
        except ValueError as error:
            raise Refused(400, "invalid_value", str(error)) from None
        return request

    async def _check_request(self) -> None:
        guard = self._shared.cfg.guard
        if not guard.input:
            return
        if not request_text.is_read(self._request):
            raise Refused(
                400, "invalid_value", "the guard reads text: send no token ids, embeddings, pictures or sound"
            )
        started = time.perf_counter()
        found = first(self._shared.lexical, request_text.readings(self._request))
        if found is None and self._shared.classifier:
            found = first(self._shared.classifier, request_text.passages(self._request))
        if found is None and self._shared.asked:
            found = await self._shared.asked.find([request_text.question(self._request)])
        self._guard_seconds += time.perf_counter() - started
        if self._objects(found):
            raise Refused(400, "content_filter", "the request was blocked by the guard")

    def _objects(self, found: Finding | None) -> bool:
        """Whether the guard's finding ends the exchange."""
        self._verdict = self._verdict or ALLOWED
        if found is None:
            return False
        endpoint = self._shared.cfg.guard.endpoint
        self._rule = found.rule
        self._verdict = found.verdict
        if found.verdict == FAILED and endpoint and endpoint.on_failure == "allow":
            return False
        if found.verdict == FAILED:
            raise Refused(503, "guard_unavailable", found.rule, self._later())
        return True

    async def _forward(self, body: bytes, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        watcher = loop.create_task(self._watch())
        timers = [loop.call_later(limits.total_seconds, self._stop, "late")]
        if isinstance(self._reply, Streamed):
            timers.append(loop.call_later(limits.first_token_seconds, self._unless_begun))
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in messages:
                return message
            await self._over.wait()
            return {"type": "http.disconnect"}

        try:
            await self._app(resized(self._scope, len(body)), receive, self._send)
        finally:
            watcher.cancel()
            for timer in timers:
                timer.cancel()
        if self._cause and not self._finished:
            await self._cut()

    async def _watch(self) -> None:
        """Notice that the caller left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._stop("gone")

    def _unless_begun(self) -> None:
        if self._first is None:
            self._stop("late")

    def _stop(self, cause: str) -> None:
        """The engine need not go on. A server also reports a caller as gone once the reply is complete."""
        if not self._finished:
            self._cause = self._cause or cause
        self._over.set()

    async def _send(self, message: Message) -> None:
        """What the engine sends: passed on as the guard allows, nothing after an end that was put to it."""
        if self._finished or self._over.is_set():
            return
        if message["type"] == "http.response.start":
            self._start = message
            self._status = message["status"]
            if self._status >= 400 and isinstance(self._reply, Streamed):
                self._reply = Whole(None)
            elif isinstance(self._reply, Streamed):
                await self._begin()
        elif isinstance(self._reply, Streamed):
            await self._stream(self._reply, message)
        elif isinstance(self._reply, Whole):
            await self._whole(self._reply, message)

    async def _stream(self, reply: Streamed, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        started = time.perf_counter()
        found = reply.take(body) or (None if more else reply.end())
        if reply.said and self._first is None:
            self._first = started
        asked = self._shared.asked
        if asked and found is None and reply.unvetted() >= (self._window() if more and not reply.reasons else 1):
            found = await asked.find([request_text.question(self._request), answered(reply.texts())])
            reply.vet()
        self._guard_seconds += time.perf_counter() - started
        try:
            is_blocked = self._objects(found) if self._shared.cfg.guard.output else False
        except Refused as refused:
            self._stop("guard")
            await self._write(event({"error": refused.error}) + DONE + END, more=False)
            return
        if is_blocked:
            self._stop("blocked")
            await self._write(reply.without_rest(), more=False)
        elif (sent := reply.released()) or not more:
            await self._write(sent, more)

    async def _whole(self, reply: Whole, message: Message) -> None:
        reply.take(message.get("body", b""))
        if message.get("more_body"):
            return
        started = time.perf_counter()
        body, found = reply.body, None
        if self._status < 400:
            found = reply.end()
            if found is None and self._shared.asked and self._shared.cfg.guard.output and reply.texts():
                turns = [request_text.question(self._request), answered(reply.texts())]
                found = await self._shared.asked.find(turns)
            self._guard_seconds += time.perf_counter() - started
        try:
            if self._shared.cfg.guard.output and self._status < 400 and self._objects(found):
                body = reply.without_text()
        except Refused as refused:
            await self._refuse(refused)
            return
        headers = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
        self._start = self._start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._begin()
        await self._write(body, more=False)

    async def _begin(self) -> None:
        self._sent_start = True
        await self._put(self._start)

    async def _write(self, body: bytes, more: bool) -> None:
        self._shared.series.bytes["out"] += len(body)
        self._finished = not more
        await self._put({"type": "http.response.body", "body": body, "more_body": more})

    async def _put(self, message: Message) -> None:
        """Send, for as long as the caller reads."""
        try:
            async with asyncio.timeout(self._shared.cfg.limits.write_seconds):
                await self._raw_send(message)
        except TimeoutError:
            self._finished = False
            self._stop("slow")
        except OSError:
            self._stop("gone")

    async def _cut(self) -> None:
        """End a reply that the engine did not."""
        self._status = {"gone": GONE, "slow": GONE}.get(self._cause, 504)
        if self._cause != "late":
            return
        refused = Refused(504, "timeout", "the answer took longer than the server's limit", self._later())
        if not self._sent_start:
            await self._refuse(refused)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._write(event({"error": refused.error}) + DONE + END, more=False)

    async def _refuse(self, refused: Refused) -> None:
        self._status, self._finished = refused.status, True
        self._shared.series.bytes["out"] += await respond(
            self._raw_send, refused.status, {"error": refused.error}, refused.headers
        )

    def _later(self) -> dict[str, str]:
        return {"retry-after": str(self._shared.cfg.limits.retry_after)}

    def _window(self) -> int:
        endpoint = self._shared.cfg.guard.endpoint
        return endpoint.window if endpoint else 0

    def _account(self) -> None:
        series, status = self._shared.series, self._status
        if not self._cause and not self._finished and status < 400:
            # The engine began a reply and did not end it.
            status = self._status = 500
        if self._cause in ("gone", "slow") and status < 400:
            status = self._status = GONE
        series.requests[str(status)] += 1
        if self._verdict:
            series.guarded(self._verdict, str(status), self._guard_seconds)
        if self._shared.log and self._request:
            self._shared.log.put(self._record())

    def _record(self) -> dict[str, Any]:
        now = time.perf_counter()
        reply = self._reply
        return {
            "kind": "request",
            "id": (reply.id if reply else "") or f"temper-{self._id}",
            "time": time.time(),
            "model": self._shared.model,
            "revision": self._shared.revision,
            "path": self._scope["path"],
            "request": {
                key: value
                for key, value in self._request.items()
                if key in request_text.KEPT and is_scrubbable(key, value)
            },
            "response": {"choices": reply.choices() if reply else [], "ended": self._cause},
            "status": self._status,
            "usage": reply.usage if reply else None,
            "latency": {
                "total": now - self._begun,
                "first_token": None if self._first is None else self._first - self._begun,
                "guard": self._guard_seconds,
            },
            "guard": {"verdict": self._verdict or None, "rule": self._rule if self._verdict != ALLOWED else ""},
        }


def issued(revision: str) -> str:
    """The id of a new request, which says of what revision its answer is: feedback on it may reach another replica."""
    return f"{revision}-{uuid.uuid4().hex}"


async def body_of(scope: Scope, receive: Receive, limits: Limits, series: Series) -> bytes:
    """The whole body; refused when it is larger than allowed or does not arrive in time.

    One that is somewhat too large is read to its end and not kept: a caller who still sends would not read the refusal.
    """
    most = limits.body_bytes
    too_large = Refused(413, "body_too_large", f"the body is larger than {most} bytes", CLOSE)
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > READ_ON * most:
        raise too_large
    try:
        async with asyncio.timeout(limits.body_seconds):
            parts, size = await arrived(receive, limits, series)
    except TimeoutError:
        raise Refused(408, "body_timeout", f"the body took longer than {limits.body_seconds:g} s", CLOSE) from None
    if size > most:
        raise too_large
    return b"".join(parts)


async def arrived(receive: Receive, limits: Limits, series: Series) -> tuple[list[bytes], int]:
    """The pieces of a body and its size, without those of one that is too large; refused where all on their way are too much.

    A small one always finds room, so that those who send much, and slowly, keep nobody else out.
    """
    parts: list[bytes] = []
    size, held, more = 0, 0, True
    try:
        while more and size <= READ_ON * limits.body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(GONE, "gone", "the caller left")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limits.body_bytes:
                parts.clear()
            series.arriving -= held
            held = size if parts else 0
            series.arriving += held
            if held > SMALL and series.arriving > ARRIVING:
                later = CLOSE | {"retry-after": str(limits.retry_after)}
                raise Refused(429, "too_many_requests", "too much is being sent at once: try again", later)
    finally:
        series.arriving -= held
    return parts, size


def parsed(body: bytes) -> dict[str, Any]:
    """A body as an object with the shapes that are relied on here; the engine checks the rest."""
    try:
        request = orjson.loads(body)
    except ValueError as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise Refused(400, "invalid_json", "the body is no JSON object")
    if body.count(b"{") + body.count(b"[") > MAX_NESTING and is_deep(request):
        raise Refused(400, "invalid_json", f"the body is nested more than {MAX_NESTING} deep")
    messages = request.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise Refused(400, "invalid_value", "messages: expected a list of objects")
    if not isinstance(request.get("stream_options") or {}, dict):
        raise Refused(400, "invalid_value", "stream_options: expected an object")
    if not isinstance(request.get("stream") or False, bool):
        raise Refused(400, "invalid_value", "stream: expected true or false")
    return request


def is_deep(value: Any) -> bool:
    """Whether objects and lists lie more than MAX_NESTING deep in one another."""
    level, depth = [value], 1
    while level and depth <= MAX_NESTING:
        containers = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for one in containers for inner in one if isinstance(inner, dict | list)]
        depth += 1
    return bool(level)


def prompts(request: dict[str, Any]) -> int:
    """How many prompts a request has, each of which gets answers of its own; token ids are one."""
    prompt = request.get("prompt")
    many = isinstance(prompt, list) and all(isinstance(one, str | list) for one in prompt)
    return len(prompt or ()) if many else 1


def at_most(request: dict[str, Any], name: str, most: int) -> None:
    value = request.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value > most):
        raise ValueError(f"{name}: expected a number of at most {most}")


def first(guard: Lexical | OfflineGuard, texts: Iterable[str]) -> Finding | None:
    """What a guard blocks first in any of the texts."""
    return next((found for text in texts if (found := guard.find(text))), None)


def is_scrubbable(name: str, value: Any) -> bool:
    """Whether the log may keep a field: token ids say what no scrubbing finds."""
    return name != "prompt" or not request_text.has_ids(value)


def answered(texts: list[str]) -> dict[str, str]:
    return {"role": "assistant", "content": "\n".join(texts)}


def resized(scope: Scope, length: int) -> Scope:
    """The scope of a request whose body is another. A caller's own id would make two requests one in the log."""
    dropped = (b"content-length", b"transfer-encoding", b"x-request-id")
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in dropped]
    return scope | {"headers": [*headers, (b"content-length", str(length).encode())]}


def event(value: dict[str, Any]) -> bytes:
    return DATA + orjson.dumps(value) + END


async def respond(send: Send, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> int:
    """Send JSON; how many bytes."""
    body = orjson.dumps(value)
    pairs = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    start = [(name.encode(), text.encode()) for name, text in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return len(body)
