"""MT-Bench as its makers run it: 80 questions, two turns, their prompts, their references, their way to read a rating."""

import hashlib
import os
from pathlib import Path

import pytest

from temper import mt_bench
from temper.mt_bench import Files, Question, Rating
from temper.published import Published

DATA = Path(os.environ.get("TEMPER_TEST_DATA", "/nonexistent")) / "mt_bench"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="TEMPER_TEST_DATA names no folder with mt_bench")
WRITING = Question("81", "writing", ("Write.", "Again."), None)
MATHS = Question("111", "math", ("1 + 1?", "2 + 2?"), ("It is 2.", "It is 4."))


def file(name: str) -> Published:
    path = DATA / name
    return Published(name, "file", None, None, hashlib.sha256(path.read_bytes()).hexdigest(), str(path), "apache-2.0")


def files() -> Files:
    return Files(file("question.jsonl"), file("judge_prompts.jsonl"), file("reference_answer_gpt-4.jsonl"))


@NEEDS_DATA
def test_there_are_80_questions_of_two_turns_and_30_with_references() -> None:
    found = mt_bench.questions(files())
    assert len(found) == 80
    assert all(len(one.turns) == 2 for one in found)
    assert {one.category for one in found} == set(mt_bench.TEMPERATURES)
    assert {one.category for one in found if one.references} == set(mt_bench.REFERENCED)
    assert sum(one.references is not None for one in found) == 30
    assert found[0].conversation().after(["Aloha."]) == [
        {"role": "user", "content": found[0].turns[0]},
        {"role": "assistant", "content": "Aloha."},
        {"role": "user", "content": found[0].turns[1]},
    ]


@NEEDS_DATA
def test_each_turn_is_asked_by_the_prompt_that_it_wants() -> None:
    known = mt_bench.prompts(files())
    first = mt_bench.asked(WRITING, ["One {brace}.", "Two."], 1, known)
    assert [turn["role"] for turn in first] == ["system", "user"]
    assert "[Question]\nWrite.\n\n" in first[1]["content"] and "One {brace}." in first[1]["content"]
    assert "Two." not in first[1]["content"] and "reference" not in first[1]["content"].lower()
    second = mt_bench.asked(WRITING, ["One.", "Two."], 2, known)[1]["content"]
    assert all(text in second for text in ("### User:\nWrite.", "One.", "### User:\nAgain.", "Two."))
    graded = [mt_bench.asked(MATHS, ["2", "4"], turn, known)[1]["content"] for turn in (1, 2)]
    assert "It is 2." in graded[0] and "It is 4." not in graded[0]
    assert "It is 2." in graded[1] and "It is 4." in graded[1]


@NEEDS_DATA
def test_files_of_another_kind_are_refused_in_one_line() -> None:
    found = files()
    with pytest.raises(SystemExit, match=r"no prompt 'single-v1': name FastChat's judge_prompts\.jsonl$"):
        mt_bench.prompts(Files(found.questions, found.questions, found.references))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("Rating: [[8.5]], not [[2]]", 8.5),
        ("Rating: [6]", 6.0),
        ("I give it seven.", None),
        ("[[11]]", None),
        ("[[0]]", None),
    ],
)
def test_a_rating_is_the_first_in_brackets(reply: str, expected: float | None) -> None:
    assert mt_bench.rating(reply) == expected


def test_the_score_is_the_mean_over_turns_and_says_what_was_no_rating() -> None:
    found = [Rating(WRITING, 1, 8.0), Rating(WRITING, 2, 6.0), Rating(MATHS, 1, 1.0), Rating(MATHS, 2, None)]
    values = mt_bench.summary("mt_bench_dpo", found, 0.95, 17)
    assert values["mt_bench_dpo"] == 5.0
    assert (values["mt_bench_dpo_turn_1"], values["mt_bench_dpo_turn_2"]) == (4.5, 6.0)
    assert (values["mt_bench_dpo_writing"], values["mt_bench_dpo_math"]) == (7.0, 1.0)
    assert (values["mt_bench_dpo_ratings_invalid"], values["mt_bench_dpo_questions"]) == (1, 2)
    assert values["mt_bench_dpo_low"] <= 5.0 <= values["mt_bench_dpo_high"]
    assert mt_bench.summary("x", [Rating(MATHS, 1, None)], 0.95, 17) == {"x_ratings": 1, "x_ratings_invalid": 1}


def test_temperatures_are_by_category() -> None:
    assert (WRITING.temperature, MATHS.temperature, Question("1", "new", ("", ""), None).temperature) == (0.7, 0.0, 0.7)
