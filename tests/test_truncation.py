"""Over-long chats are cut in their prompts, to the context length and never in the answer unless that was asked for."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temper import truncation
from temper.truncation import Settings

CUTTING = ("head", "tail", "middle", "sliding_window")


class Words:
    """A tokenizer whose tokens are words, under a template of two tokens a turn."""

    def length(self, messages: list[dict[str, str]]) -> int:
        return sum(2 + len(turn["content"].split()) for turn in messages)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in re.finditer(r"\S+", text)]


def settings_for(policy: str, **changes: Any) -> Settings:
    return replace(Settings(policy, limit=40, floor=4, overlap=0.25, truncate_answers=False), **changes)


def chat(*lengths: int, answer: int = 6) -> dict[str, Any]:
    """A system turn of three words, then a user turn of each length with an answer."""
    turns = [{"role": "system", "content": "answer in French"}]
    for place, length in enumerate(lengths):
        turns += [
            {"role": "user", "content": " ".join(f"w{place}.{word}" for word in range(length))},
            {"role": "assistant", "content": " ".join(f"a{place}.{word}" for word in range(answer))},
        ]
    return {"id": "0" * 16, "messages": turns, "source": "s", "licence": "mit", "category": "c"}


def said(row: dict[str, Any], role: str) -> list[str]:
    return [turn["content"] for turn in row["messages"] if turn["role"] == role]


def test_head_tail_and_middle_keep_what_they_are_named_after() -> None:
    text, spans = "one two three four five", Words().spans("one two three four five")
    assert truncation.shortened(text, 2, "head", spans) == "one two"
    assert truncation.shortened(text, 2, "tail", spans) == "four five"
    assert truncation.shortened(text, 3, "middle", spans) == f"one two{truncation.GAP}five"
    assert truncation.shortened(text, 5, "middle", spans) == text


@pytest.mark.parametrize("policy", CUTTING)
@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=3), answer=st.integers(1, 20))
def test_whatever_comes_out_fits_and_has_its_whole_answer(policy: str, lengths: list[int], answer: int) -> None:
    row = chat(*lengths, answer=answer)
    try:
        rows = truncation.fitted(row, settings_for(policy), Words())
    except truncation.TooLong as error:
        assert "where 40 fit" in str(error)
        return
    for one in rows:
        assert Words().length(one["messages"]) <= 40
        assert said(one, "assistant") == said(row, "assistant")
        assert said(one, "system") == said(row, "system")


@given(words=st.integers(40, 200), overlap=st.sampled_from([0.0, 0.25, 0.5]))
@settings(max_examples=40, deadline=None)
def test_windows_together_hold_every_word_in_order(words: int, overlap: float) -> None:
    row = chat(words)
    rows = truncation.fitted(row, settings_for("sliding_window", overlap=overlap), Words())
    assert len(rows) > 1
    seen = list(dict.fromkeys(word for one in rows for word in said(one, "user")[0].split()))
    assert seen == said(row, "user")[0].split()
    assert len({one["id"] for one in rows}) == len(rows)
    assert {one["origin"] for one in rows} == {row["id"]}


def test_a_long_turn_pays_before_a_short_one() -> None:
    (one,) = truncation.fitted(chat(5, 100, answer=2), settings_for("head"), Words())
    short, long = said(one, "user")
    assert len(short.split()) == 5
    assert 5 < len(long.split()) < 100


def test_an_answer_that_does_not_fit_leaves_or_is_cut_where_that_was_asked_for() -> None:
    row = chat(10, answer=60)
    with pytest.raises(truncation.TooLong, match="answers have 60 and the system turn 3"):
        truncation.fitted(row, settings_for("tail"), Words())
    (one,) = truncation.fitted(row, settings_for("tail", truncate_answers=True), Words())
    assert Words().length(one["messages"]) == 40
    assert said(row, "assistant")[0].startswith(said(one, "assistant")[0])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"policy": "left"}, "audit.truncation is 'left'"),
        ({"overlap": 1.0}, "window_overlap"),
        ({"floor": 40}, "min_turn"),
    ],
)
def test_a_setting_without_meaning_is_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        truncation.check(settings_for(**{"policy": "head"} | wrong))
