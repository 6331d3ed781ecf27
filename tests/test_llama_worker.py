"""llama.cpp's worker says when it begins with a request, and goes on past the end where it is asked to."""

import math
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
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


def answered(engine: Engine, cancelled: Iterable[int] = (), **request: Any) -> list[dict[str, Any]]:
    whole = {"id": 1, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1} | request
    return list(llama_worker.answered(engine, Counted(engine, set(cancelled)), whole))


def test_it_says_that_it_begins_before_it_computes() -> None:
    begun, text, end = answered(Engine())
    assert begun == {"begun": True}
    assert text == {"text": "a"}
    assert (end["end"], end["usage"]["completion_tokens"]) == ("length", 1)


def test_it_does_not_go_on_past_the_tokens_that_were_asked_for() -> None:
    """As llama.cpp would, to the end of a letter that it has begun."""

    class Endless(Engine):
        def create_chat_completion(self, _messages: Any, **given: Any) -> Iterator[dict[str, Any]]:
            engine: Any = self
            while True:
                engine.sample(idx=2)
                yield {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}

    _, *texts, end = answered(Endless(), max_tokens=3)
    assert [piece["text"] for piece in texts] == ["a"] * 3
    assert (end["end"], end["usage"]["completion_tokens"]) == ("length", 3)


def test_one_that_nobody_waits_for_ends_at_its_next_token_though_it_says_nothing() -> None:
    """llama.cpp says nothing before the end of a letter that it has begun."""
    cancelled: set[int] = set()

    class Silent(Engine):
        def create_chat_completion(self, _messages: Any, **given: Any) -> Iterator[dict[str, Any]]:
            engine: Any = self
            yield {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
            for token in range(9):
                engine.sample(idx=2)
                if token == 4:
                    cancelled.add(1)

    engine = Silent()
    whole = {"id": 1, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
    *_, end = llama_worker.answered(engine, Counted(engine, cancelled), whole)
    assert (end["end"], end["usage"]["completion_tokens"]) == ("cancelled", 5)


def test_one_that_was_left_while_it_waited_is_not_begun() -> None:
    engine = Engine()
    *_, end = answered(engine, cancelled=[1])
    assert (end["end"], engine.given) == ("cancelled", {})


@pytest.mark.parametrize(("form", "said"), [(None, '{"a" : 1} '), ({"type": "json_object"}, '{"a" : 1}')])
def test_a_blank_after_json_is_none_of_the_answer(form: Any, said: str) -> None:
    class Spaced(Engine):
        def create_chat_completion(self, _messages: Any, **given: Any) -> Iterator[dict[str, Any]]:
            for text in ('{"a"', " ", ": 1} "):
                yield {"choices": [{"delta": {"content": text}, "finish_reason": None}]}

    _, *texts, _ = answered(Spaced(), response_format=form)
    assert "".join(piece["text"] for piece in texts) == said


def test_past_the_end_no_token_that_ends_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_worker, "_ends", lambda engine: [2, 7])
    engine = Engine()
    answered(engine)
    assert "logit_bias" not in engine.given
    answered(engine, ignore_eos=True)
    assert engine.given["logit_bias"] == {2: -math.inf, 7: -math.inf}


class Grammar:
    _grammar, _root = "root ::= x", "root"

    @classmethod
    def from_json_schema(cls, text: str, verbose: bool) -> "Grammar":
        if "$ref" in text:
            raise AssertionError("no fetch")
        return cls()


@pytest.mark.parametrize(("schema", "is_read"), [({"type": "null"}, True), ({"$ref": "x"}, True), ({}, False)])
def test_a_schema_without_a_grammar_is_refused_and_not_taken_for_any_json(
    schema: dict[str, Any], is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[Any] = []
    samplers = {
        "llama_sampler_init_grammar": lambda *given: 7 if is_read else None,
        "llama_sampler_free": freed.append,
    }
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(LlamaGrammar=Grammar, **samplers))
    engine: Any = Engine()
    engine._model = SimpleNamespace(vocab=None)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema or {"type": "object"}}}
    found = answered(engine, response_format=form)
    if schema == {"type": "null"}:
        assert isinstance(engine.given["grammar"], Grammar)
        assert "response_format" not in engine.given
        assert freed == [7]
    else:
        assert (found[-1]["status"], found[-1]["error"][:15]) == (400, "response_format")
        assert engine.given == {}


def test_waits_are_counted_by_bounds() -> None:
    waits = Waits()
    for seconds in (0.005, 0.2, 0.25, 500.0):
        waits.add(seconds)
    found = dict(cumulative(WAITS, waits.buckets))
    assert (found["0.01"], found["0.1"], found["0.3"], found["100.0"], found["+Inf"]) == (1, 1, 3, 3, 4)
    assert waits.seconds == pytest.approx(500.455)
