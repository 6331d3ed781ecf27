"""What stands between callers and an engine, in the engine's own process: ASGI middleware, so no request takes another hop.

vLLM takes it by `--middleware temper.gateway.Gateway`; temper/llama_app.py wraps it around llama.cpp. Only the routes named here
are open: an engine has others that generate and would pass no guard.
"""

import hmac
import os
import re
import time
from pathlib import Path
from typing import Any

from temper import serving
from temper.exchange import App, Exchange, Message, Receive, Refused, Scope, Send, Shared, body_of, parsed, respond
from temper.exposition import Series
from temper.log_pipe import LogPipe
from temper.serving import Limits, Serve

OPEN = ("/health", "/metrics", "/ping", "/version")  # to monitoring, which has no key
ANSWERS = ("/v1/chat/completions", "/v1/completions")
PASSED = re.compile(r"/v1/models(/.*)?|/tokenize|/detokenize")
FEEDBACK = "/v1/feedback"
# Of an answer: exchange.issued, after what the engine puts before it. Other text would be kept, and nothing scrubs an id.
ID = re.compile(r"(?:chatcmpl|cmpl)-([0-9a-f]{1,40})-[0-9a-f]{32}")
LONGEST_COMMENT = 4000
NO_REVISION = "0"  # of a server that was not told its model's


class Gateway:
    def __init__(self, app: App, shared: Shared | None = None) -> None:
        self.app = app
        self.shared = shared or from_environment()
        name = self.shared.cfg.api_key_env
        self._key = os.environ.get(name, "").encode() if name else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("method") == "OPTIONS":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "no such route"})
        elif scope["path"] in OPEN:
            await self.app(scope, receive, send)
        else:
            await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, limits = scope["path"], self.shared.cfg.limits
        if self._key is not None and not self._is_known(scope):
            error = "send the server's key as `Authorization: Bearer …`"
            await self._refuse(send, Refused(401, "invalid_api_key", error, {"www-authenticate": "Bearer"}))
        elif path in ANSWERS and scope["method"] == "POST":
            await Exchange(self.shared, self.app, scope, receive, send).run()
        elif path in ANSWERS or path == FEEDBACK:
            if path == FEEDBACK and scope["method"] == "POST":
                await self._feedback(scope, receive, send)
            else:
                await self._refuse(send, Refused(405, "method_not_allowed", f"{path} takes POST", {"allow": "POST"}))
        elif PASSED.fullmatch(path):
            await self._pass(scope, receive, send, limits)
        else:
            await self._refuse(send, Refused(404, "not_found", f"no route {path}"))

    def _is_known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._key or b"")

    async def _pass(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        """To the engine as it is, but for the size of its body."""
        try:
            body = await body_of(scope, receive, limits, self.shared.series)
        except Refused as refused:
            await self._refuse(send, refused)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replayed() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, replayed, send)

    async def _feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            record = feedback(parsed(await body_of(scope, receive, self.shared.cfg.limits, self.shared.series)))
        except Refused as refused:
            await self._refuse(send, refused)
            return
        series = self.shared.series
        if record["thumbs"]:
            series.thumbs[record["thumbs"]] += 1
        if record["score"] is not None:
            series.scored(revision_of(record["id"]), record["score"])
        if self.shared.log:
            self.shared.log.put(record)
        series.requests["202"] += 1
        await respond(send, 202, {"id": record["id"]})

    async def _refuse(self, send: Send, refused: Refused) -> None:
        self.shared.series.requests[str(refused.status)] += 1
        await respond(send, refused.status, {"error": refused.error}, refused.headers)


def feedback(given: dict[str, Any]) -> dict[str, Any]:
    """The record of `{"id", "thumbs": "up" | "down", "score": 0 to 1, "comment"}`, of which one of the last three is there."""
    id, thumbs, score, comment = (given.get(key) for key in ("id", "thumbs", "score", "comment"))
    if not isinstance(id, str) or not ID.fullmatch(id):
        raise Refused(400, "invalid_value", "id: expected that of an answer of this server")
    if thumbs not in ("up", "down", None):
        raise Refused(400, "invalid_value", "thumbs: expected up or down")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise Refused(400, "invalid_value", "score: expected a number from 0 to 1")
    if comment is not None and (not isinstance(comment, str) or len(comment) > LONGEST_COMMENT):
        raise Refused(400, "invalid_value", f"comment: expected text of at most {LONGEST_COMMENT} characters")
    if thumbs is score is comment is None:
        raise Refused(400, "invalid_value", "expected thumbs, score or comment")
    return {"kind": "feedback", "id": id, "time": time.time(), "thumbs": thumbs, "score": score, "comment": comment}


def revision_of(id: str) -> str:
    """The revision whose answer an id names."""
    return str(ID.fullmatch(id)[1])  # type: ignore[index]


def from_environment() -> Shared:
    """As `commands.serve` says in the environment of the engine that it starts."""
    named = os.environ.get(serving.SETTINGS)
    if not named:
        raise SystemExit(f"{serving.SETTINGS} is not set: start the server with `make serve`")
    cfg: Serve = serving.load(Path(named))
    model, revision = os.environ.get(serving.MODEL, cfg.name), os.environ.get(serving.REVISION, NO_REVISION)
    series = Series(revision)
    series.register()
    number = os.environ.get(serving.LOG)
    log = LogPipe(int(number), cfg.log.pending, series) if number else None
    return Shared(cfg, model, revision, log, series)
