"""Which sampled answers become preference pairs, and which pairs stay."""

from collections import Counter
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
    samples = pairs.verified(ROW, answers, lambda text: text.startswith("right"))
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
    (pair,) = pairs.pairs(pairs.verified(ROW, ["no", "right"], lambda text: text == "right"), "GOLD", 1, True)
    assert pair["prompt"] == ROW["messages"][:-1]
    assert pair["chosen"] == [{"role": "assistant", "content": "right"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "no"}]


def pair(chosen: str, rejected: str, prompt: str = "", origin: str = "sample", id: str = "") -> dict[str, Any]:
    sides = {side: [{"content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))}
    return {"id": id, "prompt_id": id, "prompt": prompt, "chosen_from": origin, **sides}


def short(found: list[Any]) -> pairs.Sizes:
    return {id(one): 1 for one in found}


def sifted(
    found: list[Any], balance: bool = False, share: float | None = None, ratio: float | None = None
) -> Counter[str]:
    """How many pairs stay, under "", and how many leave by reason; none is lost."""
    kept, dropped = pairs.sifted(found, short(found), 1, balance, pairs.Length(share, ratio))
    assert len(kept) + len(dropped) == len(found)
    return Counter(["" for _ in kept] + [one["reason"] for one in dropped])


def test_an_answer_of_many_prompts_is_chosen_as_often_as_it_is_rejected() -> None:
    calls = [pair(f"call {number}", "null") for number in range(5)]
    nulls = [pair("null", f"call {number}") for number in range(7, 9)]
    assert pairs.balanced([*calls, *nulls]) == [*calls[:2], *nulls]
    assert pairs.balanced([*calls[:1], *nulls]) == [*calls[:1], nulls[0]]


def test_answers_of_one_side_only_stay_however_often_they_come() -> None:
    made = [pair(f"call {number}", "null") for number in range(5)]
    assert pairs.balanced(made) == made


def test_a_balance_holds_for_every_answer_at_once() -> None:
    made = [pair(*texts) for texts in (("null", "yes"), ("yes", "null"), ("yes", "no"), ("no", "null"), ("no", "yes"))]
    kept = pairs.balanced(made)
    for text in ("null", "yes", "no"):
        assert sum(pairs.answer(one, "chosen") == text for one in kept) == sum(
            pairs.answer(one, "rejected") == text for one in kept
        )


def test_pairs_of_the_data_are_neither_balanced_nor_counted() -> None:
    own = [pair("call", "null"), pair("null", "call")]
    given = [pair("null", f"call {number}", origin="data") for number in range(3)]
    assert pairs.balanced([*own, *given]) == [*own, *given]


def test_the_same_pair_of_another_row_leaves_and_one_of_another_prompt_stays() -> None:
    assert sifted([pair("a", "b", "p"), pair("a", "b", "p"), pair("a", "b", "q")]) == {"": 2, "duplicate": 1}


def test_pairs_that_contradict_each_other_are_a_tie() -> None:
    found = [pair("a", "b", "p"), pair("b", "a", "p", "data"), pair("b", "a", "q"), pair("a", "c", "p")]
    assert sifted(found) == {"": 2, "contradicted": 2}


def test_pairs_leave_that_do_not_fit_or_cannot_be_rendered() -> None:
    found = [*lengths(1, 3, 3, "a"), *lengths(1, 30, 3, "b"), *lengths(1, 3, 31, "c"), *lengths(1, 7, 7, "d")]

    def count(rows: list[dict[str, Any]]) -> list[int | None]:
        longest = [max(len(row[side][0]["content"]) for side in pairs.SIDES) for row in rows]
        return [None if size == 7 else size for size in longest]

    for one in found:
        one["prompt"] = [{"role": "user", "content": one["id"]}]
    kept, dropped = pairs.sifted(found, pairs.sized(found, count), 30, False, pairs.Length(None, None))
    assert [one["id"] for one in kept] == ["a0", "b0"]
    assert {one["id"]: one["reason"] for one in dropped} == {"c0": "too_long", "d0": "template"}


def lengths(count: int, chosen: int, rejected: int, name: str) -> list[dict[str, Any]]:
    return [pair("x" * chosen, "y" * rejected, f"{name}{number}", id=f"{name}{number}") for number in range(count)]


@pytest.mark.parametrize(("share", "kept"), [(0.5, 3), (0.6, 4), (0.75, 9), (0.9, 10)])
@pytest.mark.parametrize("sizes", [(9, 4), (4, 9)], ids=["longer", "shorter"])
def test_neither_direction_has_more_than_its_share(sizes: tuple[int, int], share: float, kept: int) -> None:
    found = [*lengths(10, *sizes, "a"), *lengths(3, *sizes[::-1], "b"), *lengths(5, 4, 4, "c")]
    staying, _ = pairs.sifted(found, short(found), 1, False, pairs.Length(share, None))
    names = Counter(one["id"][0] for one in staying)
    assert names == {"a": kept, "b": 3, "c": 5}, "the rarer direction and answers of one length stay whole"
    assert kept / (kept + 3) <= share


def test_each_octave_of_the_difference_is_balanced_by_itself() -> None:
    found = [*lengths(4, 200, 10, "a"), *lengths(4, 10, 12, "b")]
    assert sifted(found, share=0.5) == {"length_bias": 8}, "small and large differences do not make up for each other"
    assert sifted([*found, *lengths(1, 10, 150, "c")], share=0.5) == {"": 2, "length_bias": 7}


def test_a_pair_of_very_different_lengths_leaves() -> None:
    found = [*lengths(1, 30, 10, "a"), *lengths(1, 10, 31, "b"), *lengths(1, 3, 0, "c"), *lengths(1, 0, 4, "d")]
    assert sifted(found, ratio=3.0) == {"": 2, "length_ratio": 2}


@pytest.mark.parametrize(
    ("length", "named"),
    [
        (pairs.Length(0.4, None), "max_share"),
        (pairs.Length(1.0, None), "max_share"),
        (pairs.Length(None, 0.5), "max_ratio"),
    ],
)
def test_a_limit_without_sense_is_named(length: pairs.Length, named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        pairs.checked(length)


def test_the_summary_shows_outcomes_and_duplicates() -> None:
    every = [
        pairs.verified(ROW, answers, lambda text: text.startswith("right"))
        for answers in (["right", "wrong answer", "wrong answer"], ["right", "right"], ["wrong"])
    ]
    values = pairs.summary(every)
    assert (values["mixed"], values["all_right"], values["all_wrong"]) == (1, 1, 1)
    assert values["samples"] == 6
    assert values["duplicates"] == 2
    assert values["pass_rate"] == 0.5


def test_a_length_bias_is_reported_with_its_interval() -> None:
    found = [
        *lengths(6, 9, 3, "a"),
        *lengths(2, 3, 9, "b"),
        *lengths(2, 5, 5, "c"),
        pair("xx", "y", origin="reference"),
    ]
    values = pairs.composition(found, 0.95)
    assert (values["pairs"], values["pairs_with_reference"], values["pairs_of_equal_length"]) == (11, 1, 2)
    assert values["mean_characters_chosen"] == pytest.approx(72 / 11)
    assert values["mean_characters_rejected"] == pytest.approx(47 / 11)
    assert values["longer_chosen"] == pytest.approx(7 / 9)
    assert 0.4 < values["longer_chosen_low"] < 0.5 < values["longer_chosen"] < values["longer_chosen_high"] < 1.0
