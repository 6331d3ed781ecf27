"""A guard blocks whole phrases however they are spelled, and a streamed answer waits only for what may become one."""

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from commands.compose import composed
from temper import params, serving
from temper.guard import BLOCKED, FAILED, Asked, Endpoint, Finding, Guard, Lexical, Scan

WORDS = ["pipe bomb", "kill yourself", "制造炸弹"]


def lexical(*patterns: str, phrases: list[str] = WORDS, look_behind: int = 64) -> Lexical:
    return Lexical(Guard(True, True, phrases, list(patterns), look_behind, None, None))


@pytest.mark.parametrize(
    ("text", "is_blocked"),
    [
        ("make a PIPE-bömb.", True),
        ("pipe\n  bomb", True),
        ("ｐｉｐｅ bomb", True),
        ("pi\u200bpe bomb", True),
        ("我想制造炸弹吗", True),
        ("pipe bombs", False),
        ("a windpipe bomb", False),
        ("pipe dream, bomb", False),
        ("skill yourself", False),
        ("", False),
    ],
)
def test_a_phrase_is_whole_words_whatever_their_spelling(text: str, is_blocked: bool) -> None:
    found = lexical().find(text)
    assert bool(found) is is_blocked
    assert streamed(text, lexical(), 1)[1] == bool(found)


def streamed(text: str, rules: Lexical, step: int) -> tuple[str, bool]:
    """What of `text` had been sent when it ended or was blocked, in pieces of `step` characters."""
    scan, sent = Scan(rules), ""
    for start in range(0, len(text), step):
        if scan.feed(text[start : start + step]):
            return sent, True
        sent = text[: scan.safe]
    return (sent, True) if scan.end() else (text[: scan.safe], False)


@given(
    st.lists(
        st.sampled_from(["pipe", "bomb", " ", "-", "kill", "yourself", "wind", "s", "x", "\n", "bö"]), max_size=12
    ),
    st.integers(1, 5),
)
def test_no_split_of_a_stream_changes_what_is_blocked_and_nothing_of_a_phrase_is_sent(
    parts: list[str], step: int
) -> None:
    text, rules = "".join(parts), lexical()
    sent, is_blocked = streamed(text, rules, step)
    assert is_blocked == bool(rules.find(text))
    assert sent == text if not is_blocked else text.startswith(sent) and not rules.find(sent)


def test_text_that_begins_no_phrase_is_sent_at_once() -> None:
    scan = Scan(lexical())
    for piece in ("Hello,", " world", " and", " skills"):
        assert scan.feed(piece) is None
        assert scan.safe == scan.length
    assert scan.feed(" pi") is None
    assert scan.length - scan.safe == 2
    assert scan.feed("lot") is None
    assert scan.safe == scan.length


def test_a_pattern_is_found_across_pieces_and_holds_back_its_beginning() -> None:
    rules = lexical(r"\b\d{3}-\d{2}-\d{4}\b", r"\bkill\b")
    for step in range(1, 8):
        assert streamed("my number is 123-45-6789, thanks", rules, step) == ("my number is ", True)
        assert streamed("my number is 123-45-67890", rules, step) == ("my number is 123-45-67890", False)
        assert streamed("he is a killer", rules, step) == ("he is a killer", False)
    assert streamed("they kill", rules, 3) == ("they ", True)


def test_what_a_pattern_holds_back_is_bounded() -> None:
    scan = Scan(lexical("a[^z]*z", look_behind=32))
    scan.feed("a" + "b" * 500)
    assert scan.length - scan.safe == 32


@pytest.mark.parametrize(
    ("phrases", "patterns", "named"),
    [(["..."], [], r"^serve\.guard\.phrases: '\.\.\.'"), (WORDS, ["("], r"^serve\.guard\.patterns: '\('")],
)
def test_what_cannot_be_looked_for_is_named(phrases: list[str], patterns: list[str], named: str) -> None:
    with pytest.raises(SystemExit, match=named) as error:
        lexical(*patterns, phrases=phrases)
    assert "\n" not in str(error.value)


def test_the_list_that_ships_blocks_what_it_says_and_not_the_words_in_it() -> None:
    settings = OmegaConf.create(composed([]))
    guard = params.fitted(settings, "serve", serving.Serve, "conf/").guard  # type: ignore[arg-type]
    rules = Lexical(guard)
    for phrase in guard.phrases:
        assert rules.find(f"Tell me: {phrase.upper()}!") is not None
    for harmless in (
        "How do I kill a process?",
        "What is a bomb calorimeter?",
        "The suicide rate fell.",
        "ignore this",
    ):
        assert rules.find(harmless) is None


class GuardModel(BaseHTTPRequestHandler):
    """A stand-in for an endpoint with a guard model: it objects to texts with `bad`, in the words that it is told."""

    reply = "unsafe\nS1"
    fine = "safe"
    status = 200
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(question | {"authorization": self.headers["authorization"]})
        text = self.reply if "bad" in question["messages"][-1]["content"] else self.fine
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def guard_model(
    reply: str = "unsafe\nS1", status: int = 200, fine: str | None = "safe"
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (GuardModel,), {"reply": reply, "status": status, "fine": fine, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{stub.server_port}/v1", asked
        stub.shutdown()


def preset(name: str, url: str, **changed: Any) -> Endpoint:
    settings = OmegaConf.create(composed([f"serve/guard={name}"]))
    guard = params.fitted(settings, "serve", serving.Serve, "conf/").guard  # type: ignore[arg-type]
    assert guard.endpoint
    for key, value in (changed | {"base_url": url}).items():
        setattr(guard.endpoint, key, value)
    return guard.endpoint


def find(endpoint: Endpoint, *texts: str) -> Finding | None:
    roles = ("user", "assistant")
    return asyncio.run(
        Asked(endpoint).find([{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)])
    )


def test_llama_guard_is_asked_as_a_chat_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_KEY", "secret")
    with guard_model() as (url, asked):
        endpoint = preset("llama-guard", url, api_key_env="GUARD_KEY")
        assert find(endpoint, "fine") is None
        assert find(endpoint, "fine", "bad") == Finding(BLOCKED, "unsafe S1")
    assert [turn["role"] for turn in asked[-1]["messages"]] == ["user", "assistant"]
    assert asked[-1]["authorization"] == "Bearer secret"


def test_shieldgemma_is_asked_once_a_policy_and_otherwise_of_an_answer_than_of_a_request() -> None:
    with guard_model("Yes") as (url, asked):
        endpoint = preset("shieldgemma", url)
        assert find(endpoint, "bad") == Finding(BLOCKED, "Yes")
        of_request = [question["chat_template_kwargs"]["guideline"] for question in asked]
        assert find(endpoint, "fine", "bad") == Finding(BLOCKED, "Yes")
    of_answer = [question["chat_template_kwargs"]["guideline"] for question in asked[len(of_request) :]]
    assert all("The prompt shall not" in text for text in of_request)
    assert all("The chatbot shall not" in text for text in of_answer)
    assert len(of_request) == len(endpoint.asked)


WORDS_OF = {"llama-guard": ("safe", "unsafe\nS1"), "shieldgemma": ("No", "Yes")}


@pytest.mark.parametrize("name", WORDS_OF)
@pytest.mark.parametrize(
    "reply", ["", None, "\n", "uns", "saf", "N", "I cannot judge this.", "None", "safety first", "Yesterday"]
)
def test_a_reply_that_says_neither_safe_nor_unsafe_is_no_verdict(name: str, reply: str | None) -> None:
    with guard_model(fine=reply) as (url, _):
        found = find(preset(name, url), "fine")
    assert found and found.verdict == FAILED
    assert "\n" not in found.rule


@pytest.mark.parametrize(("name", "safe", "unsafe"), [(name, *words) for name, words in WORDS_OF.items()])
def test_each_preset_knows_its_models_words(name: str, safe: str, unsafe: str) -> None:
    with guard_model(reply=unsafe, fine=safe) as (url, _):
        assert find(preset(name, url), "fine") is None
        found = find(preset(name, url), "bad")
    assert found and found.verdict == BLOCKED


def test_an_objection_counts_beside_a_question_without_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([Finding(FAILED, ""), Finding(BLOCKED, "Yes"), None])

    async def reply(*_: object) -> Finding | None:
        return next(replies)

    monkeypatch.setattr(Asked, "_reply", reply)
    assert find(preset("shieldgemma", "http://x", asked=[{}, {}, {}]), "bad") == Finding(BLOCKED, "Yes")


def test_a_guard_that_does_not_reply_is_a_finding() -> None:
    with guard_model(status=500) as (url, _):
        found = find(preset("llama-guard", url), "fine")
    assert found and found.verdict == FAILED
    closed = find(preset("llama-guard", url, timeout=1.0), "fine")
    assert closed and closed.verdict == FAILED


def test_a_token_costs_microseconds() -> None:
    rules = lexical(phrases=[f"bad phrase number {number}" for number in range(1000)])
    scan, words = Scan(rules), [f" {random.Random(1).choice(['the', 'phrase', 'bad', 'x'])}" for _ in range(2000)]
    import time

    started = time.process_time()
    for word in words:
        scan.feed(word)
        _ = scan.safe
    assert (time.process_time() - started) / len(words) < 100e-6
