"""llama.cpp's worker says when it begins with a request, and goes on past the end where it is asked to."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from temper import llama_worker
from temper.exposition import WAITS, Waits, cumulative
from temper.llama_worker import Counted


class Engine:
    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def sample(self, **_: Any) -> int:
        return 1

    def create_chat_completion(self, _messages: Any, **given: Any) -> Iterator[dict[str, Any]]:
        self.given = given
        engine: Any = self
        engine.sample(idx=2)
        yield {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": "length"}]}


def answered(engine: Engine, **request: Any) -> list[dict[str, Any]]:
    whole = {"id": 1, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1} | request
    return list(llama_worker.answered(engine, Counted(engine), whole, set()))


def test_it_says_that_it_begins_before_it_computes() -> None:
    begun, text, end = answered(Engine())
    assert begun == {"begun": True}
    assert text == {"text": "a"}
    assert (end["end"], end["usage"]["completion_tokens"]) == ("length", 1)


def test_past_the_end_no_token_that_ends_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_worker, "_ends", lambda engine: [2, 7])
    engine = Engine()
    answered(engine)
    assert "logit_bias" not in engine.given
    answered(engine, ignore_eos=True)
    assert engine.given["logit_bias"] == {2: -math.inf, 7: -math.inf}


def test_waits_are_counted_by_bounds() -> None:
    waits = Waits()
    for seconds in (0.005, 0.2, 0.25, 500.0):
        waits.add(seconds)
    found = dict(cumulative(WAITS, waits.buckets))
    assert (found["0.01"], found["0.1"], found["0.3"], found["100.0"], found["+Inf"]) == (1, 1, 3, 3, 4)
    assert waits.seconds == pytest.approx(500.455)
