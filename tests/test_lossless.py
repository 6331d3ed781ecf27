"""Speculation that changes an answer is found; one that breaks a tie the other way is not blamed."""

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from temper import lossless

CHATS = {"domain": [[{"role": "user", "content": "a"}]], "generic": [[{"role": "user", "content": "b"}]]}
DRAFTS = """
vllm:spec_decode_num_drafts_total{engine="0"} %d.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} %d.0
vllm:generation_tokens_total{engine="0"} %d.0
"""


class Model(BaseHTTPRequestHandler):
    """A model of ten tokens: the next one is likeliest the last plus one, and `second` nats less likely plus two.

    Its greedy answers take the second choice at every third place, as a draft that is checked badly would.
    """

    second = 3.0
    is_lossy = False
    is_drafting = False
    answers = 0

    def do_GET(self) -> None:
        counts = (2 * Model.answers, 6 * Model.answers, 9 * Model.answers)
        self.reply((DRAFTS % counts).encode() if self.is_drafting else b"")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/chat/completions":
            Model.answers += 1
            tokens, last = [], 0
            for place in range(asked["max_tokens"]):
                last = (last + (2 if self.is_lossy and place % 3 == 2 else 1)) % 10
                tokens.append(last)
            found: dict[str, Any] = {"prompt_token_ids": [5, 0], "choices": [{"token_ids": tokens}]}
        else:
            found = {"choices": [{"prompt_logprobs": [None, *map(self.place, asked["prompt"], asked["prompt"][1:])]}]}
        self.reply(json.dumps(found).encode())

    def place(self, last: int, token: int) -> dict[str, dict[str, float]]:
        likeliest = -0.05
        own = {(last + 1) % 10: likeliest, (last + 2) % 10: likeliest - self.second}.get(token, -20.0)
        return {str((last + 1) % 10): {"logprob": likeliest}, str(token): {"logprob": own}}

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def held(url: str, tie: float = 0.25) -> dict[str, float]:
    return lossless.held(url, "m", CHATS, 9, tie)


def test_the_models_own_choices_are_lossless(url: str) -> None:
    assert held(url) == {"lossless": 1, "lossless_tokens": 18, "lossless_ties": 0, "lossless_gap": 0}


def test_what_a_draft_is_worth_is_told_of_each_set_and_without_the_pass_that_holds_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "is_drafting", True)
    found = held(url)
    for name in CHATS:
        assert (found[f"{name}_drafts"], found[f"{name}_acceptance"], found[f"{name}_tokens_per_step"]) == (2, 0, 1)
    assert found["lossless_tokens"] == 18


def test_a_draft_that_was_accepted_wrongly_is_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "is_lossy", True)
    found = held(url)
    assert (found["lossless"], found["lossless_ties"]) == (0, 0)
    assert found["lossless_gap"] == pytest.approx(3.0)
    with pytest.raises(SystemExit, match=r"^bench\.ngram: .* 3 nats .*0\.25 are a tie") as error:
        lossless.require(found, 0.25, "bench.ngram")
    assert "\n" not in str(error.value)


def test_a_tie_is_no_loss_and_is_counted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "is_lossy", True)
    monkeypatch.setattr(Model, "second", 0.125)
    found = held(url)
    assert (found["lossless"], found["lossless_ties"]) == (1, 6)
    lossless.require(found, 0.25, "bench.ngram")
    assert held(url, tie=0.1)["lossless"] == 0


def test_a_token_that_the_model_would_never_say_is_as_far_off_as_can_be() -> None:
    place = {"1": {"logprob": -0.1}, "7": {"logprob": -math.inf}}
    assert lossless.gap(place, 7) == math.inf
    assert lossless.figures([[0.0, math.inf]], 0.25)["lossless"] == 0


def test_a_server_that_refuses_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "do_POST", lambda self: self.send_error(400, "no such parameter"))
    with pytest.raises(SystemExit, match=r"^/v1/chat/completions: status 400: .*no such parameter"):
        held(url)
