"""Between callers and an engine: who may ask, how much, what passes, what is counted and what is kept."""

import asyncio
import copy
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from temper import calls, exchange, exposition, guard_training, log_pipe, offline_guard, params, serving
from temper.exchange import GONE, Message, Receive, Scope, Send, Shared, respond
from temper.exposition import Series
from temper.gateway import Gateway
from temper.guard import BLOCKED, FAILED, Asked, Endpoint, Finding
from temper.llama_app import LlamaApp
from temper.log_pipe import LogPipe
from temper.offline_guard import OfflineGuard
from temper.serving import Serve

CHAT = "/v1/chat/completions"
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


@dataclass
class Engine:
    """A stand-in for an engine: it says its words, one an event, and notes what it was asked and whether it was left to end."""

    words: list[str] = field(default_factory=lambda: ["Hello", ", ", "world"])
    pause: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[bytes, bytes]] = field(default_factory=list)
    ended: int = 0
    aborted: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in (CHAT, "/v1/completions"):
            await respond(send, 200, {"path": scope["path"]})
            return
        request = json.loads((await receive())["body"])
        self.asked.append(request)
        self.headers.append(dict(scope["headers"]))
        if request.get("model") == "unknown":
            await respond(send, 404, {"error": {"message": "no such model"}})
            return
        gone = asyncio.ensure_future(receive())
        work = asyncio.ensure_future((self.stream if request.get("stream") else self.whole)(send))
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        self.aborted += not work.done()
        self.ended += work.done()
        for task in (gone, work):
            task.cancel()

    async def whole(self, send: Send) -> None:
        for _ in self.words:
            await asyncio.sleep(self.pause)
        message = {"role": "assistant", "content": "".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": self.words}}
        id = f"chatcmpl-{self.asked[-1]['request_id']}"
        await respond(send, 200, {"id": id, "choices": [choice], "usage": {"total_tokens": 5}})

    async def stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        own = {"id": f"chatcmpl-{self.asked[-1]['request_id']}"}
        for number, word in enumerate(self.words):
            await asyncio.sleep(self.pause)
            reason = "stop" if number == len(self.words) - 1 else None
            await send(body(chunk([{"index": 0, "delta": {"content": word}, "finish_reason": reason}], **own)))
        await send(body(chunk([], **own, usage={"total_tokens": 5})))
        await send(body(b"data: [DONE]\n\n", more=False))


def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1", "object": "c", "choices": choices, **more}).encode() + b"\n\n"


def body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    times: list[float]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        lines = [one.removeprefix(b"data: ") for one in self.body.split(b"\n\n") if one]
        return [json.loads(line) if line != b"[DONE]" else "DONE" for line in lines]

    def text(self) -> str:
        choices = [choice for one in self.events() if one != "DONE" for choice in one.get("choices", ())]
        return "".join(choice["delta"].get("content", "") for choice in choices)


class Caller:
    """One who asks: `leaves_after` seconds, or reads no byte after the first `reads` messages."""

    def __init__(self, leaves_after: float | None = None, reads: int | None = None) -> None:
        self.leaves_after, self.reads = leaves_after, reads

    async def ask(
        self, app: Gateway, given: Any, path: str = CHAT, method: str = "POST", headers: dict[str, str] | None = None
    ) -> Answer:
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)] or [b""]
        messages = [{"type": "http.request", "body": one, "more_body": True} for one in pieces]
        messages[-1]["more_body"] = False
        answer, left = Answer(0, {}, b"", []), asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            # As uvicorn: a caller is gone once the reply is complete, too.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.leaves_after):
                    await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if self.reads is not None and len(answer.times) >= self.reads:
                await asyncio.sleep(3600)
            answer.times.append(time.monotonic())
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            else:
                answer.body += message["body"]
                if not message.get("more_body"):
                    left.set()

        pairs = [(key.lower().encode(), value.encode()) for key, value in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs, "query_string": b""}
        await app(scope, receive, send)
        return answer


class Kept(LogPipe):
    """A log that keeps its records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def put(self, record: dict[str, Any]) -> None:
        self.records.append(record)


Make = Callable[..., Gateway]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def make(engine: Engine, kept: Kept) -> Make:
    """A gateway before the engine, with settings of conf/serve and what a test changes of them."""

    def made(phrases: tuple[str, ...] = ("pipe bomb",), **changed: Any) -> Gateway:
        cfg = copy.deepcopy(shipped())
        cfg.guard.phrases = list(phrases)
        for key, value in changed.items():
            place: Any = (
                cfg.limits
                if hasattr(cfg.limits, key)
                else cfg.guard
                if key in ("input", "output", "classifier")
                else cfg
            )
            setattr(place, key, value)
        return Gateway(engine, Shared(cfg, "models/dpo", "abc", kept, Series("abc")))

    return made


@cache
def shipped() -> Serve:
    settings = OmegaConf.create(composed([]))
    assert isinstance(settings, DictConfig)
    return params.fitted(settings, "serve", Serve, "conf/")


def chat(text: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"model": "temper", "messages": [{"role": "user", "content": text}], **more}


def run(work: Awaitable[Answer]) -> Answer:
    async def bounded() -> Answer:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(bounded())


def test_an_answer_passes_unchanged(make: Make) -> None:
    answer = run(Caller().ask(make(), chat()))
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello, world")
    streamed = run(Caller().ask(make(), chat(stream=True)))
    assert streamed.text() == "Hello, world"
    assert streamed.events()[-1] == "DONE"


def test_a_reply_that_is_complete_is_no_caller_who_left(make: Make, engine: Engine, kept: Kept) -> None:
    app = make()
    for stream in (False, True):
        run(Caller().ask(app, chat(stream=stream)))
    assert app.shared.series.requests == {"200": 2}
    assert [record["response"]["ended"] for record in kept.records] == ["", ""]
    assert engine.ended == 2


def test_usage_is_counted_for_the_log_and_shown_to_those_who_ask_for_it(make: Make, kept: Kept) -> None:
    silent = run(Caller().ask(make(), chat(stream=True)))
    asked = run(Caller().ask(make(), chat(stream=True, stream_options={"include_usage": True})))
    assert b"usage" not in silent.body
    assert asked.events()[-2]["usage"] == {"total_tokens": 5}
    assert [record["usage"] for record in kept.records] == [{"total_tokens": 5}] * 2


def test_a_key_is_asked_for_by_the_name_of_its_variable(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sesame")
    app = make(api_key_env="THE_KEY")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}, {"authorization": "Bearer "}):
        for path in (CHAT, "/v1/models", "/v1/feedback", "/v1/responses"):
            answer = run(Caller().ask(app, chat(), path, headers=headers))
            assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert run(Caller().ask(app, chat(), headers={"authorization": "Bearer sesame"})).status == 200
    assert run(Caller().ask(app, b"", "/health", "GET")).status == 200


def test_the_offline_guard_reads_every_turn_by_itself(make: Make, engine: Engine, tmp_path: Path) -> None:
    harmful, benign = ([f"{verb} {thing}" for thing in "abcdef"] for verb in ("poison", "paint"))
    texts = guard_training.vectors([*harmful, *benign])
    guard = guard_training.fit(texts, np.array([True] * 6 + [False] * 6), 10, 17)
    offline_guard.write(tmp_path / "guard", guard, {})
    offline_guard.load.cache_clear()
    app = make(classifier=str(tmp_path / "guard"))
    blocked = run(Caller().ask(app, chat("poison a")))
    assert (blocked.status, blocked.json()["error"]["code"]) == (400, "content_filter")
    for role in ("system", "developer", "tool", "assistant"):
        said = [{"role": role, "content": "poison b"}, *chat("paint a")["messages"]]
        assert run(Caller().ask(app, chat() | {"messages": said})).status == 400
    assert engine.asked == []
    said = [{"role": "system", "content": "paint b"}, *chat("paint a")["messages"]]
    assert run(Caller().ask(app, chat() | {"messages": said})).status == 200


def test_a_key_that_is_not_set_stops_the_start(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    (tmp_path / "params.yaml").write_text(composed(["serve.api_key_env=THE_KEY"]))
    with pytest.raises(SystemExit, match=r"^serve\.api_key_env: the variable THE_KEY is not set") as error:
        serving.load(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/invocations", "/generate", "/inference/v1/generate"]
)
def test_routes_that_would_pass_no_guard_are_closed(make: Make, engine: Engine, path: str) -> None:
    answer = run(Caller().ask(make(), chat(), path))
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")
    assert engine.asked == []


def test_other_routes_of_the_api_pass(make: Make) -> None:
    for path in ("/v1/models", "/v1/models/temper", "/tokenize", "/metrics", "/health"):
        assert run(Caller().ask(make(), b"{}", path, "GET")).json() == {"path": path}
    assert run(Caller().ask(make(), b"", CHAT, "GET")).status == 405


BAD = {
    "no JSON": (b'{"model": ', 400, "invalid_json"),
    "no object": (b"[1]", 400, "invalid_json"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "invalid_json"),
    "nested too deeply": (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "invalid_json"),
    "messages": (chat() | {"messages": "Hi"}, 400, "invalid_value"),
    "too many tokens": (chat(max_tokens=5000), 400, "invalid_value"),
    "too many tokens by the newer name": (chat(max_completion_tokens=5000), 400, "invalid_value"),
    "too many answers": (chat(n=100), 400, "invalid_value"),
    "not a number": (chat(max_tokens="many"), 400, "invalid_value"),
    "deeper than orjson writes": (chat(tools=[json.loads("[" * 300 + "]" * 300)]), 400, "invalid_json"),
    "too many prompts": ({"model": "temper", "prompt": ["a"] * 5}, 400, "invalid_value"),
    "too many answers to prompts": ({"model": "temper", "prompt": ["a", "b"], "n": 3}, 400, "invalid_value"),
    "too large": (chat("x" * 2_000_000), 413, "body_too_large"),
    "token ids": ({"model": "temper", "prompt": [1, 2, 3]}, 400, "invalid_value"),
}


@pytest.mark.parametrize(("given", "status", "code"), BAD.values(), ids=BAD)
def test_what_cannot_be_answered_is_refused_with_its_reason(
    make: Make, engine: Engine, given: Any, status: int, code: str
) -> None:
    answer = run(Caller().ask(make(), given))
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert engine.asked == []


def test_what_the_engine_refuses_is_passed_on(make: Make, kept: Kept) -> None:
    for stream in (False, True):
        answer = run(Caller().ask(make(), chat(stream=stream) | {"model": "unknown"}))
        assert (answer.status, answer.json()["error"]["message"]) == (404, "no such model")
    assert [record["status"] for record in kept.records] == [404, 404]


def test_a_length_that_is_far_too_large_is_refused_unread(make: Make) -> None:
    answer = run(Caller().ask(make(), b"{}", headers={"content-length": "99999999"}))
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_request_that_does_not_arrive_is_given_up(make: Make) -> None:
    app = make(body_seconds=0.05)
    answers: list[Message] = []

    async def never() -> Message:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": CHAT, "headers": []}, never, send))
    assert answers[0]["status"] == 408


def begun(app: Gateway, piece: bytes) -> "asyncio.Task[list[Message]]":
    """A request of which a piece came and nothing after it."""
    pieces = iter([{"type": "http.request", "body": piece, "more_body": True}])
    answers: list[Message] = []

    async def receive() -> Message:
        for one in pieces:
            return one
        await asyncio.sleep(3600)
        return {}

    async def send(message: Message) -> None:
        answers.append(message)

    async def asked() -> list[Message]:
        await app({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
        return answers

    return asyncio.ensure_future(asked())


def test_those_who_send_slowly_keep_no_places(make: Make) -> None:
    app = make(concurrent=1, queued=0, body_seconds=0.5)

    async def both() -> Answer:
        slow = [begun(app, b"{") for _ in range(5)]
        await asyncio.sleep(0.05)
        answer = await Caller().ask(app, chat())
        assert [messages[0]["status"] for messages in await asyncio.gather(*slow)] == [408] * 5
        return answer

    assert run(both()).status == 200
    assert app.shared.series.requests == {"200": 1, "408": 5}
    assert app.shared.series.arriving == 0


def test_large_bodies_on_their_way_keep_no_small_one_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ARRIVING", 250_000)
    app = make(body_seconds=0.5)

    async def all_() -> Answer:
        slow = [begun(app, b" " * 100_000) for _ in range(3)]
        await asyncio.sleep(0.05)
        answer = await Caller().ask(app, chat())
        ends = [messages[0] for messages in await asyncio.gather(*slow)]
        assert sorted(end["status"] for end in ends) == [408, 408, 429]
        assert all((b"connection", b"close") in end["headers"] for end in ends)
        return answer

    assert run(all_()).status == 200
    assert app.shared.series.arriving == 0
    assert run(Caller().ask(app, chat("x" * 100_000))).status == 200


def test_one_more_than_may_wait_is_told_to_come_again(make: Make, engine: Engine) -> None:
    engine.pause = 0.05
    app = make(concurrent=2, queued=1)

    async def many() -> list[Answer]:
        return await asyncio.gather(*(Caller().ask(app, chat()) for _ in range(5)))

    answers = asyncio.run(many())
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 429, 429]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "2"
    assert app.shared.series.active == 0
    assert run(Caller().ask(app, chat())).status == 200


def test_a_blocked_request_reaches_no_engine(make: Make, engine: Engine, kept: Kept) -> None:
    app = make()
    hidden = [
        chat("How do I build a Pipe  Bomb?"),
        chat() | {"messages": [{"role": "user", "content": [{"type": "text", "text": "pipe bomb"}]}]},
        chat()
        | {"messages": [{"role": "user", "content": [{"type": "text", "text": word} for word in ("pipe", "bomb")]}]},
        chat(tools=[{"type": "function", "function": {"name": "x", "description": "pipe bomb"}}]),
        {"model": "temper", "prompt": ["fine", "pipe bomb"]},
    ]
    for given in hidden:
        answer = run(Caller().ask(app, given, CHAT if "messages" in given else "/v1/completions"))
        assert (answer.status, answer.json()["error"]["code"]) == (400, "content_filter")
    assert engine.asked == []
    assert app.shared.series.verdicts == {("blocked", "400"): len(hidden)}
    assert kept.records[0]["guard"] == {"verdict": "blocked", "rule": "pipe bomb"}
    assert run(Caller().ask(make(input=False), hidden[0])).status == 200


def test_a_blocked_answer_is_not_sent_and_the_engine_stops(make: Make, engine: Engine, kept: Kept) -> None:
    engine.words = ["First", " a", " pi", "pe", " bo", "mb", " then", *[" more"] * 50]
    engine.pause = 0.002
    app = make()
    streamed = run(Caller().ask(app, chat(stream=True)))
    assert streamed.text() == "First a"
    assert streamed.events()[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert streamed.events()[-1] == "DONE"
    assert engine.aborted == 1
    whole = run(Caller().ask(app, chat()))
    assert b"bomb" not in whole.body
    assert int(whole.headers["content-length"]) == len(whole.body)
    assert whole.json()["choices"][0]["finish_reason"] == "content_filter"
    assert app.shared.series.verdicts == {("blocked", "200"): 2}
    assert kept.records[0]["response"]["choices"][0]["content"].endswith("bomb then")
    assert "bomb" in run(Caller().ask(make(output=False), chat(stream=True))).text()


def test_a_phrase_at_the_end_of_an_answer_is_blocked(make: Make, engine: Engine) -> None:
    engine.words = ["a pipe", " bomb"]
    assert run(Caller().ask(make(), chat(stream=True))).text() == ""
    engine.words = ["a pipe", " dream"]
    assert run(Caller().ask(make(), chat(stream=True))).text() == "a pipe dream"


class GuardModel(Asked):
    """A stand-in that objects to texts with `bad` and notes the answers that it was asked about."""

    def __init__(self, window: int, verdict: str = BLOCKED, on_failure: str = "block") -> None:
        super().__init__(Endpoint("http://x", "guard", None, 1.0, [{}], [{}], "unsafe", "safe", window, on_failure))
        self.verdict = verdict
        self.seen: list[str] = []

    async def find(self, chat: list[dict[str, str]]) -> Finding | None:
        self.seen += [chat[-1]["content"]] if chat[-1]["role"] == "assistant" else []
        return Finding(self.verdict, "S1") if "bad" in chat[-1]["content"] else None


def guarded(make: Make, guard: GuardModel) -> Gateway:
    app = make()
    app.shared.asked, app.shared.cfg.guard.endpoint = guard, guard.endpoint
    return app


def test_a_guard_model_sees_an_answer_before_the_caller_does(make: Make, engine: Engine) -> None:
    engine.words = ["one ", "two ", "three ", "four ", "bad ", "six ", "seven ", "eight "]
    guard = GuardModel(window=8)
    streamed = run(Caller().ask(guarded(make, guard), chat(stream=True)))
    assert guard.seen == ["one two ", "one two three four ", "one two three four bad six "]
    assert streamed.text() == "one two three four "
    assert streamed.events()[-2]["choices"][0]["finish_reason"] == "content_filter"
    engine.words = ["one ", "two ", "three"]
    guard = GuardModel(window=100)
    assert run(Caller().ask(guarded(make, guard), chat(stream=True))).text() == "one two three"
    assert guard.seen == ["one two three"]
    engine.words = ["so ", "bad"]
    assert b"bad" not in run(Caller().ask(guarded(make, GuardModel(8)), chat())).body
    refused = run(Caller().ask(guarded(make, GuardModel(8)), chat("bad")))
    assert (refused.status, refused.json()["error"]["code"]) == (400, "content_filter")


def also(**turn: Any) -> dict[str, Any]:
    """A request with another turn before that of the user."""
    return chat() | {"messages": [turn, *chat()["messages"]]}


TOLD: dict[str, dict[str, Any]] = {
    **{role: also(role=role, content="bad") for role in ("system", "developer", "tool", "function", "assistant")},
    "an earlier turn": also(role="user", content="bad"),
    "a role": also(role="bad", content="fine"),
    "a name": also(role="user", name="bad", content="fine"),
    "a part that is a string": also(role="user", content=["fine", "bad"]),
    "a refusal": also(role="assistant", content=[{"type": "refusal", "refusal": "bad"}]),
    "what a part has besides": also(role="user", content=[{"type": "text", "text": "fine", "title": "bad"}]),
    "a thought": also(role="assistant", content="fine", reasoning="bad"),
    "a call": also(role="assistant", content=None, tool_calls=[{"function": {"name": "f", "arguments": "bad"}}]),
    "a tool": chat(tools=[{"type": "function", "function": TOOL | {"description": "bad"}}]),
    "a key": chat(tools=[{"type": "function", "function": TOOL | {"parameters": {"properties": {"bad": {}}}}}]),
    "a document": chat(documents=[{"title": "fine", "text": "bad"}]),
    "a template": chat(chat_template="bad"),
    "a template's value": chat(chat_template_kwargs={"guideline": "bad"}),
    "the form of the answer": chat(response_format={"type": "json_schema", "json_schema": {"description": "bad"}}),
    "a prompt": {"model": "temper", "prompt": ["fine", "bad"]},
    "what follows a prompt": {"model": "temper", "prompt": "fine", "suffix": "bad"},
}


@pytest.mark.parametrize("given", TOLD.values(), ids=TOLD)
def test_whatever_the_model_would_read_is_read_by_guards_before(
    make: Make, engine: Engine, given: dict[str, Any]
) -> None:
    path = CHAT if "messages" in given else "/v1/completions"
    classified = make(phrases=())
    classified.shared.classifier = cast(OfflineGuard, GuardOfWords("bad"))
    for app in (guarded(make, GuardModel(8)), classified):
        answer = run(Caller().ask(app, given, path))
        assert (answer.status, answer.json()["error"]["code"]) == (400, "content_filter")
    assert engine.asked == []


class GuardOfWords:
    """A stand-in for the offline guard, which objects to a word and to nothing else that it is shown."""

    def __init__(self, word: str) -> None:
        self.word = word

    def find(self, text: str) -> Finding | None:
        return Finding(BLOCKED, self.word) if self.word in text.split() else None


def test_a_guard_model_is_asked_about_one_turn_and_about_what_no_model_reads_never(make: Make) -> None:
    asked: list[list[dict[str, str]]] = []

    class Noting(GuardModel):
        async def find(self, chat: list[dict[str, str]]) -> Finding | None:
            asked.append(chat)
            return None

    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And now?")]
    given = chat(user="jane", stop=["end"], metadata={"who": "jane"}, temperature=0.5)
    given |= {"messages": [{"role": role, "content": content} for role, content in said]}
    assert run(Caller().ask(guarded(make, Noting(8)), given)).status == 200
    turn = {"role": "user", "content": "Be brief.\n\nHi\n\nHello\n\nAnd now?"}
    assert asked == [[turn], [turn, {"role": "assistant", "content": "Hello, world"}]]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "prompt_embeds", ""])
def test_what_no_guard_of_text_reads_is_refused_where_there_is_one(make: Make, engine: Engine, kind: str) -> None:
    given = also(role="user", content=[{"type": kind or "text", "text": "fine"} | ({} if kind else {"image_url": "x"})])
    answer = run(Caller().ask(make(), given))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert engine.asked == []
    assert run(Caller().ask(make(input=False), given)).status == 200


def test_a_guard_model_that_does_not_reply_blocks_or_lets_pass_as_configured(make: Make, engine: Engine) -> None:
    engine.words = ["bad"]
    closed = guarded(make, GuardModel(1, FAILED))
    assert run(Caller().ask(closed, chat("bad"))).status == 503
    assert run(Caller().ask(closed, chat())).json()["error"]["code"] == "guard_unavailable"
    assert run(Caller().ask(closed, chat(stream=True))).events()[0]["error"]["code"] == "guard_unavailable"
    opened = guarded(make, GuardModel(1, FAILED, "allow"))
    assert run(Caller().ask(opened, chat("bad", stream=True))).text() == "bad"
    assert opened.shared.series.verdicts == {("failed", "200"): 1}


def test_text_is_passed_on_as_it_comes(make: Make, engine: Engine) -> None:
    engine.pause = 0.05
    streamed = run(Caller().ask(make(), chat(stream=True)))
    # The start, then three words at their own times.
    assert streamed.times[3] - streamed.times[1] > 0.08


def test_a_caller_who_leaves_ends_the_generation(make: Make, engine: Engine, kept: Kept) -> None:
    engine.words, engine.pause = ["word "] * 200, 0.01
    for stream in (True, False):
        app = make()
        run(Caller(leaves_after=0.05).ask(app, chat(stream=stream)))
        assert app.shared.series.requests == {str(GONE): 1}
        assert app.shared.series.active == 0
    assert engine.aborted == 2
    assert kept.records[0]["response"]["ended"] == "gone"


def test_a_caller_who_stops_reading_is_left(make: Make, engine: Engine) -> None:
    engine.words = ["word "] * 20
    app = make(write_seconds=0.05)

    async def both() -> Answer:
        slow = asyncio.create_task(Caller(reads=3).ask(app, chat(stream=True)))
        answer = await Caller().ask(app, chat(stream=True))
        await slow
        return answer

    assert run(both()).text() == "word " * 20
    assert app.shared.series.requests == {"200": 1, str(GONE): 1}
    assert engine.aborted == 1


def test_what_takes_too_long_is_ended(make: Make, engine: Engine) -> None:
    engine.pause = 0.2
    whole = run(Caller().ask(make(total_seconds=0.05), chat()))
    assert (whole.status, whole.json()["error"]["code"]) == (504, "timeout")
    streamed = run(Caller().ask(make(first_token_seconds=0.05), chat(stream=True)))
    assert streamed.events()[0]["error"]["code"] == "timeout"
    begun = run(Caller().ask(make(total_seconds=0.3), chat(stream=True)))
    assert begun.text() == "Hello"
    assert begun.events()[-2]["error"]["code"] == "timeout"
    assert engine.aborted == 3


def test_a_callers_own_request_id_does_not_reach_the_engine(make: Make, engine: Engine) -> None:
    run(Caller().ask(make(), chat(request_id="jane"), headers={"x-request-id": "1"}))
    assert b"x-request-id" not in engine.headers[0]
    assert re.fullmatch(r"abc-[0-9a-f]{32}", engine.asked[0]["request_id"])


def test_a_record_has_what_the_flywheel_needs_and_not_who_asked(make: Make, kept: Kept) -> None:
    answer = run(Caller().ask(make(), chat(stream=True, user="jane", metadata={"who": "jane"}, temperature=0.5)))
    record = kept.records[0]
    assert "jane" not in json.dumps(record)
    assert record["request"]["messages"] == [{"role": "user", "content": "Hi"}]
    assert record["request"]["temperature"] == 0.5
    assert record["response"]["choices"] == [{"index": 0, "content": "Hello, world", "finish_reason": "stop"}]
    assert (record["id"], record["model"], record["revision"]) == (answer.events()[0]["id"], "models/dpo", "abc")
    assert 0 < record["latency"]["first_token"] <= record["latency"]["total"]
    assert record["guard"]["verdict"] == "allowed"


def test_token_ids_are_not_kept_for_no_scrubbing_reads_them(make: Make, kept: Kept) -> None:
    app = make(input=False)
    for prompt in ([1, 2, 3], [[1, 2], [3]], "Hi"):
        assert run(Caller().ask(app, {"model": "temper", "prompt": prompt}, "/v1/completions")).status == 200
    assert [record["request"].get("prompt") for record in kept.records] == [None, None, "Hi"]


def test_a_reply_that_the_engine_breaks_off_is_no_success(make: Make, engine: Engine, kept: Kept) -> None:
    async def broken(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(body(chunk([{"index": 0, "delta": {"content": "Hel"}}])))

    engine.stream = broken  # type: ignore[method-assign]
    app = make()
    run(Caller().ask(app, chat(stream=True)))
    assert app.shared.series.requests == {"500": 1}
    assert kept.records[0]["status"] == 500


def test_llama_cpp_answers_posts_alone_though_other_methods_pass_the_gateway(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sesame")
    app = make(api_key_env="THE_KEY")
    # A worker that is asked for anything would fail.
    app.app = LlamaApp(SimpleNamespace(is_alive=True), "temper", 16)  # type: ignore[arg-type]
    for path in (CHAT, "/v1/completions"):
        answer = run(Caller().ask(app, chat("pipe bomb"), path, "OPTIONS"))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_feedback_is_kept_by_the_id_of_its_answer(make: Make, kept: Kept) -> None:
    app = make()
    id = run(Caller().ask(app, chat())).json()["id"]
    for given in ({"thumbs": "down", "comment": "wrong"}, {"score": 0.25}, {"score": 0.75}):
        assert run(Caller().ask(app, {"id": id, **given}, "/v1/feedback")).status == 202
    asked, *opinions = kept.records
    assert [(record["kind"], record["id"]) for record in opinions] == [("feedback", asked["id"])] * 3
    assert opinions[0]["comment"] == "wrong"
    assert app.shared.series.thumbs == {"down": 1}
    for wrong in ({}, {"id": id}, {"id": id, "thumbs": "meh"}, {"id": id, "score": 2}):
        assert run(Caller().ask(app, wrong, "/v1/feedback")).status == 400
    for stray in ("jane.roe", "1", f"{id}.jane", id.replace("abc", "jane-roe"), f"temper-{id}", 1, None):
        answer = run(Caller().ask(app, {"id": stray, "thumbs": "up"}, "/v1/feedback"))
        assert (answer.status, answer.json()["error"]["message"][:3]) == (400, "id:")
    assert len(kept.records) == 4


def test_a_score_counts_for_the_revision_that_answered_whichever_replica_hears_it(make: Make) -> None:
    old, new = make(), make()
    new.shared.revision = "def"
    id = run(Caller().ask(new, chat())).json()["id"]
    for app, of, score in ((old, id, 0.25), (old, id.replace("def", "abc"), 0.5), (old, id, 0.75)):
        assert run(Caller().ask(app, {"id": of, "score": score}, "/v1/feedback")).status == 202
    assert {revision: list(scores) for revision, scores in old.shared.series.scores.items()} == {
        "abc": [0.5],
        "def": [0.25, 0.75],
    }
    assert not new.shared.series.scores
    # Whoever has the key can name any revision.
    for number in range(100):
        assert (
            run(Caller().ask(old, {"id": id.replace("def", f"{number:x}"), "score": 1}, "/v1/feedback")).status == 202
        )
    assert len(old.shared.series.scores) == exposition.REVISIONS


def test_tools_become_the_tasks_prompt_and_the_form_of_its_answer(make: Make, engine: Engine) -> None:
    tools = [{"type": "function", "function": TOOL}]
    run(Caller().ask(make(structured="tools"), chat(tools=tools, tool_choice="auto")))
    asked = engine.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": calls.system_prompt([TOOL])}
    call, null = asked["response_format"]["json_schema"]["schema"]["anyOf"]
    assert call["properties"]["name"] == {"const": "add"}
    assert call["properties"]["arguments"] == TOOL["parameters"]
    assert null == {"type": "null"}
    assert asked.keys().isdisjoint({"tools", "tool_choice"})
    run(Caller().ask(make(structured="tools"), chat()))
    assert "response_format" not in engine.asked[-1]
    run(Caller().ask(make(structured="task"), chat()))
    assert engine.asked[-1]["response_format"]["json_schema"]["schema"]["anyOf"][1] == {"type": "null"}
    own = {"type": "json_object"}
    run(Caller().ask(make(structured="task"), chat(response_format=own)))
    assert engine.asked[-1]["response_format"] == own
    run(Caller().ask(make(), chat(tools=tools)))
    assert engine.asked[-1]["tools"] == tools


@pytest.mark.parametrize(
    "tool", [1, {}, {"name": 1}, {"name": "x", "parameters": 1}, {"name": "x", "parameters": {"properties": [1]}}]
)
def test_tools_that_are_none_are_refused(make: Make, engine: Engine, tool: Any) -> None:
    answer = run(Caller().ask(make(structured="tools"), chat(tools=[tool])))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert engine.asked == []


def test_records_that_wait_take_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pipe, "MOST_BYTES", 300_000)
    reader, writer = os.pipe()
    series = Series()
    log = LogPipe(writer, 1000, series)
    for _ in range(10):
        log.put({"kind": "request", "text": "x" * 100_000})
    assert (series.logged, series.dropped) == (2, 8)
    lines = b""
    while lines.count(b"\n") < 2:
        lines += os.read(reader, 1 << 20)
    deadline = time.monotonic() + 5
    while log.waiting_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    log.put({"kind": "request", "text": "x" * 100_000})
    assert series.logged == 3


def test_a_log_that_is_behind_drops_records_and_holds_up_nobody() -> None:
    reader, writer = os.pipe()
    series = Series()
    log = LogPipe(writer, 5, series)
    started = time.monotonic()
    for _ in range(200):
        log.put({"kind": "request", "text": "x" * 10_000})
    assert time.monotonic() - started < 2
    assert series.dropped > 100
    assert series.logged + series.dropped == 200
    lines = b""
    while lines.count(b"\n") < series.logged:
        lines += os.read(reader, 1 << 20)
    assert all(json.loads(line)["kind"] == "request" for line in lines.splitlines())
