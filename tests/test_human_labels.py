"""Comparisons that people decided: read as they are published, and a judge's agreement with them counted as MT-Bench does."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from temper import human_labels
from temper.human_labels import Comparison, Labelled
from temper.published import Published

DATA = Path(os.environ.get("TEMPER_TEST_DATA", "/nonexistent"))
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="TEMPER_TEST_DATA names no folder of data sets")


def labels(path: Path) -> Published:
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return Published("labels", "file", None, None, digest, str(path), "mit")


def written(path: Path, *rows: dict[str, Any]) -> Published:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labels(path)


def vote(
    question: int, winner: str, turn: int = 1, models: tuple[str, str] = ("a", "b"), judge: str = "expert_1"
) -> dict[str, Any]:
    chats = {
        f"conversation_{side}": [
            {"role": role, "content": f"{role} {question} {model if role == 'assistant' else ''}{number}"}
            for number in (1, 2)
            for role in ("user", "assistant")
        ]
        for side, model in zip("ab", models, strict=True)
    }
    names = dict(zip(("model_a", "model_b"), models, strict=True))
    return {"question_id": question, "winner": winner, "turn": turn, "judge": judge, **names, **chats}


def test_a_dialogue_is_its_turns() -> None:
    assert human_labels.dialogue("\n\nHuman: Hi\n\nthere\n\nAssistant: Hello") == [
        {"role": "user", "content": "Hi\n\nthere"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert human_labels.dialogue("Just text") == []


def test_a_pair_needs_one_prompt_and_two_answers(tmp_path: Path) -> None:
    asked = "\n\nHuman: Why?\n\nAssistant:"
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}]
    found = human_labels.pairs(
        written(
            tmp_path / "pairs.jsonl",
            {"chosen": f"{asked} yes", "rejected": f"{asked} no"},
            {"chosen": f"{asked} yes", "rejected": f"{asked} yes"},
            {"chosen": f"{asked} yes", "rejected": "\n\nHuman: Who?\n\nAssistant: no"},
            {"chosen": f"{asked} yes", "rejected": f"{asked} "},
            {"chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "bad"}]},
        ),
        None,
    )
    assert [one.comparison.id for one in found] == ["1", "5"]
    first = found[0].comparison
    assert first.opening == [{"role": "user", "content": "Why?"}]
    assert [side[0]["content"] for side in first.sides] == ["yes", "no"]
    assert (found[0].votes, first.excess) == ((1.0,), 1)
    with pytest.raises(SystemExit, match=r"^conf/judge: 'labels': .*other\.jsonl has no pair"):
        human_labels.pairs(written(tmp_path / "other.jsonl", {"text": "x"}), None)


@NEEDS_DATA
def test_hh_rlhf_is_read_as_it_is_published() -> None:
    path = DATA / "hh_rlhf/harmless-base.test.jsonl.gz"
    found = human_labels.pairs(labels(path), None)
    with gzip.open(path) as lines:
        count = sum(1 for _ in lines)
    assert count * 0.97 < len(found) <= count
    roles = {tuple(turn["role"] for turn in one.comparison.opening)[:3] for one in found}
    assert {("user",), ("user", "assistant", "user")} <= roles
    assert all(one.comparison.opening[-1]["role"] == "user" for one in found)
    assert len(human_labels.pairs(labels(path), 10)) == 10


def test_votes_on_one_pair_of_models_are_together_whatever_their_order(tmp_path: Path) -> None:
    found = human_labels.votes(
        written(
            tmp_path / "votes.jsonl",
            vote(81, "model_a"),
            vote(81, "model_a", models=("b", "a"), judge="expert_2"),
            vote(81, "tie (inconsistent)", judge="author_1"),
            vote(81, "model_b", turn=2),
            vote(82, "model_b"),
        ),
        None,
    )
    assert [(one.comparison.id, one.votes) for one in found] == [
        ("81/a/b/1", (1.0, 0.0, 0.5)),
        ("81/a/b/2", (0.0,)),
        ("82/a/b/1", (0.0,)),
    ]
    assert [turn["content"] for turn in found[0].comparison.sides[0]] == ["assistant 81 a1"]
    assert [turn["role"] for turn in found[1].comparison.sides[1]] == ["assistant", "user", "assistant"]
    with pytest.raises(SystemExit, match=r"row 1 of .* is none of MT-Bench's human judgments"):
        human_labels.votes(written(tmp_path / "wrong.jsonl", {"question_id": 1}), None)


def labelled(cluster: str, *votes: float) -> Labelled:
    return Labelled(Comparison(cluster, [], ([], [])), votes, cluster)


def test_agreement_is_over_single_votes_with_ties_and_without() -> None:
    found = [labelled("1", 1.0, 1.0, 0.0), labelled("2", 0.5, 0.0), labelled("3", 1.0), labelled("4", 0.0)]
    values = human_labels.agreement("votes", found, [1.0, 0.0, 0.5, None], 0.95, 17)
    # Without ties: 2 of 3 and 1 of 1; the judge's own tie and what it did not decide count on neither side.
    assert (values["votes_agreement"], values["votes_agreement_votes"]) == (0.75, 4)
    assert (values["votes_agreement_questions"], values["votes_agreement_with_ties_questions"]) == (2, 3)
    # With them: 2 of 3, 1 of 2, 0 of 1.
    assert (values["votes_agreement_with_ties"], values["votes_agreement_with_ties_votes"]) == (0.5, 6)
    assert values["votes_agreement_low"] <= 0.75 <= values["votes_agreement_high"]
    assert human_labels.agreement("votes", found[:1], [None], 0.95, 17) == {
        "votes_agreement_votes": 0,
        "votes_agreement_questions": 0,
        "votes_agreement_with_ties_votes": 0,
        "votes_agreement_with_ties_questions": 0,
    }


def test_a_few_votes_that_agree_are_not_certain() -> None:
    values = human_labels.agreement("votes", [labelled("1", 1.0, 1.0), labelled("2", 1.0)], [1.0, 1.0], 0.95, 17)
    assert values["votes_agreement"] == 1.0
    assert values["votes_agreement_low"] == pytest.approx(0.342, abs=1e-3)


def test_accuracy_is_of_what_was_decided() -> None:
    found = [labelled(str(number), 1.0) for number in range(5)]
    values = human_labels.accuracy("pairs", found, [1.0, 1.0, 0.0, 0.5, None], 0.95)
    assert values["pairs_accuracy"] == pytest.approx(2 / 3)
    assert (values["pairs_pairs"], values["pairs_decided"], values["pairs_undecided"]) == (5, 3, 1)
    assert values["pairs_accuracy_low"] < 2 / 3 < values["pairs_accuracy_high"]
