"""Which sampled answers become preference pairs."""

from typing import Any

import pytest

from temper import pairs

ROW: dict[str, Any] = {
    "id": "ab",
    "category": "simple_python",
    "messages": [
        {"role": "system", "content": "tools"},
        {"role": "user", "content": "add 1 and 2"},
        {"role": "assistant", "content": "GOLD"},
    ],
}


def made(answers: list[str], limit: int = 2, gold: bool = True) -> list[tuple[str, str]]:
    samples = pairs.judged(ROW, answers, lambda text: text.startswith("right"))
    found = pairs.pairs(samples, "GOLD", limit, gold)
    return [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found]


def test_the_most_frequent_mistake_is_rejected_first() -> None:
    assert made(["wrong b", "right", "wrong a", "wrong b"]) == [("right", "wrong b"), ("right", "wrong a")]


def test_ties_do_not_depend_on_the_order_of_the_samples() -> None:
    assert made(["wrong b", "wrong a", "right"]) == made(["wrong a", "right", "wrong b"])


def test_identical_answers_make_one_pair() -> None:
    assert made(["wrong", "wrong", "wrong", "right"]) == [("right", "wrong")]


def test_the_limit_counts_pairs() -> None:
    assert len(made([f"wrong {n}" for n in range(9)] + ["right"], limit=3)) == 3


def test_right_answers_take_turns() -> None:
    assert [good for good, _ in made(["right 1", "right 2", "wrong 1", "wrong 2"])] == ["right 1", "right 2"]


@pytest.mark.parametrize(("gold", "expected"), [(True, [("GOLD", "wrong")]), (False, [])])
def test_the_reference_stands_in_only_where_it_may(gold: bool, expected: list[tuple[str, str]]) -> None:
    assert made(["wrong"], gold=gold) == expected


def test_all_right_leaves_nothing_to_prefer() -> None:
    assert made(["right", "right 2"]) == []


def test_a_pair_holds_the_prompt_and_one_answer_a_side() -> None:
    (pair,) = pairs.pairs(pairs.judged(ROW, ["no", "right"], lambda text: text == "right"), "GOLD", 1, True)
    assert pair["prompt"] == ROW["messages"][:-1]
    assert pair["chosen"] == [{"role": "assistant", "content": "right"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "no"}]


def test_the_summary_shows_outcomes_duplicates_and_a_length_bias() -> None:
    every = [
        pairs.judged(ROW, answers, lambda text: text.startswith("right"))
        for answers in (["right", "wrong answer", "wrong answer"], ["right", "right"], ["wrong"])
    ]
    found = [pair for samples in every for pair in pairs.pairs(samples, "GOLD", 2, True)]
    values = pairs.summary(every, found)
    assert (values["mixed"], values["all_right"], values["all_wrong"]) == (1, 1, 1)
    assert values["samples"] == 6
    assert values["duplicates"] == 2
    assert values["pass_rate"] == 0.5
    assert (values["pairs"], values["pairs_with_reference"]) == (2, 1)
    assert values["chosen_mean_characters"] == 4.5
    assert values["rejected_mean_characters"] == 8.5
