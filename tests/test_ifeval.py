"""IFEval's verifiers, in the environment that has what they need."""

from typing import Any

import pytest

from temper import ifeval

pytestmark = pytest.mark.engine


def doc(*instructions: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": list(instructions),
        "kwargs": [kwargs] * len(instructions),
    }


def test_answers_are_held_against_each_instruction() -> None:
    with ifeval.Scorer() as scorer:
        found = scorer.score(doc("punctuation:no_comma"), ["One, two"])
        assert found["prompt_level_strict_acc"] is False
        assert found["inst_level_strict_acc"] == [False]
        both = scorer.score(
            doc("punctuation:no_comma", "change_case:english_lowercase"), ["the sun rises and it is a warm day"]
        )
        assert (both["prompt_level_strict_acc"], both["inst_level_strict_acc"]) == (True, [True, True])
        starred = scorer.score(doc("startend:end_checker", end_phrase="done."), ["*done.*"])
        assert (starred["prompt_level_strict_acc"], starred["prompt_level_loose_acc"]) == (False, True)
        counted = doc("length_constraints:number_sentences", relation="at least", num_sentences=3)
        assert scorer.score(counted, ["It is one. It is two. It is three."])["prompt_level_strict_acc"] is True
        assert scorer.score(counted, ["It is one. It is two."])["prompt_level_strict_acc"] is False
        assert scorer.sentences in (ifeval.TRAINED, ifeval.UNTRAINED)
