"""RewardBench 2 by its published rules, and pairs of held-out rows whose wrong answer is right elsewhere."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts import rewardbench as stage
from temper import calls, metrics, params, records, reward_scores, rewardbench, training
from temper.records import Row
from temper.reward_scores import Scorer
from temper.rewardbench import Item, Scored, Set
from tests.test_human_labels import written


def scored(subset: str, name: str, right: tuple[float, ...], wrong: tuple[float, ...]) -> Scored:
    item = Item(name, subset, [], tuple("r" * len(right)), tuple("w" * len(wrong)))
    return Scored(item, (*right, *wrong))


@pytest.mark.parametrize(
    ("rewards", "result"),
    [((4, 1, 2, 3), 1.0), ((3, 1, 2, 4), 0.0), ((4, 4, 2, 4), pytest.approx(1 / 3)), ((1, 1, 1, 1), 0.25)],
)
def test_the_best_of_four_is_right_and_a_shared_first_place_is_a_share(
    rewards: tuple[float, ...], result: float
) -> None:
    assert scored("Math", "1", rewards[:1], rewards[1:]).result == result


def reference_ties(rows: list[tuple[str, list[float], int]]) -> float:
    """The rule in scalar steps, as rewardbench/utils.py has it in arrays: (id, rewards, number of right answers)."""
    stats = {}
    for name, rewards, count in rows:
        right, wrong = rewards[:count], rewards[count:]
        stats[name] = (min(right) > max(wrong), max(right) - min(right), min(right) - max(wrong))
    tied, ref = ({k.split(":")[1]: v for k, v in stats.items() if k.startswith(kind)} for kind in ("tied", "ref"))
    both = [name for name in tied if name in ref]
    preferred = [tied[name][2] > tied[name][1] for name in both]
    hard = [min(tied[name][2], ref[name][2]) > tied[name][1] for name in both]
    gaps = [math.tanh(min(tied[name][2], ref[name][2]) / tied[name][1] - 1) for name in both]

    def mean(values: Any) -> float:
        found = list(values)
        return sum(found) / len(found)

    accuracy = 0.3 * mean(one[0] for one in tied.values()) + 0.3 * mean(one[0] for one in ref.values())
    return accuracy + 0.2 * mean(preferred) + 0.2 * mean(hard) + 0.01 * mean(gaps)


ROWS = [
    ("tied:1", [3.0, 2.5, 2.8, 1.0, 0.5], 3),
    ("ref:1", [2.0, 1.9, 0.0], 1),
    ("tied:2", [3.0, 0.5, 0.1], 2),
    ("ref:2", [1.0, 0.2], 1),
    ("tied:3", [1.0, 0.9, 2.0], 2),
    ("ref:3", [0.0, 0.5], 1),
    ("tied:4", [1.0, 0.0, -3.0], 2),
]


def tie(name: str, rewards: list[float], count: int) -> Scored:
    return scored("Ties", name, tuple(rewards[:count]), tuple(rewards[count:]))


def test_ties_are_scored_by_the_published_rule() -> None:
    found = [tie(*row) for row in ROWS]
    assert rewardbench.ties(found) == pytest.approx(reference_ties(ROWS))
    # By hand: tied prompts 3 of 4 right, ref 2 of 3; of prompts 1 to 3 the margin beats the spread in one, the smaller one in none.
    by_hand = 0.3 * 3 / 4 + 0.3 * 2 / 3 + 0.2 * 1 / 3 + 0.2 * 0
    gaps = [math.tanh(0.1 / 0.5 - 1), math.tanh(0.4 / 2.5 - 1), math.tanh(-1.1 / 0.1 - 1)]
    assert rewardbench.ties(found) == pytest.approx(by_hand + 0.01 * sum(gaps) / 3)


def test_equal_right_answers_count_as_the_rule_says() -> None:
    found = [tie("tied:1", [1.0, 1.0, 0.0], 2), tie("ref:1", [2.0, 1.0], 1)]
    assert rewardbench.ties(found) == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01)  # tanh of infinity is 1
    flat = [tie("tied:1", [1.0, 1.0, 1.0], 2), tie("ref:1", [1.0, 1.0], 1)]
    assert rewardbench.ties(flat) == 0.0  # 0 / 0 counts as 0


def test_the_score_is_the_mean_of_six_subsets_with_intervals() -> None:
    five = [
        scored(subset, str(n), (float(n % 2),), (0.5, 0.2, 0.1))
        for subset in rewardbench.SUBSETS[:-1]
        for n in range(10)
    ]
    values = rewardbench.summary([*five, *(tie(*row) for row in ROWS)], 0.95, 17)
    ties = reference_ties(ROWS)
    assert values["precise_if"] == 0.5
    assert values["ties"] == pytest.approx(ties)
    assert values["rewardbench2"] == pytest.approx((5 * 0.5 + ties) / 6)
    assert (values["ties_n"], values["math_n"]) == (7, 10)
    for name in ("factuality", "precise_if", "math", "safety", "focus", "ties"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
    assert "rewardbench2" not in rewardbench.summary(five, 0.95, 17)


def published(subset: str, name: str, right: int = 1) -> Row:
    return {
        "id": name,
        "prompt": "Q?",
        "chosen": ["r"] * right,
        "rejected": ["w"] * 3,
        "num_correct": right,
        "subset": subset,
    }


def test_its_rows_are_read_as_they_are_published(tmp_path: Path) -> None:
    rows = [published("Math", "1"), published("Math", "2"), published("Ties", "tied:5", 4)]
    found = rewardbench.items(Set("rewardbench2", written(tmp_path / "rb.jsonl", *rows), None))
    assert [(one.id, one.subset, len(one.right), len(one.wrong)) for one in found][2] == ("tied:5", "Ties", 4, 3)
    assert found[0].chats()[1] == [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "w"}]
    assert len(rewardbench.items(Set("rewardbench2", written(tmp_path / "rb.jsonl", *rows), 1))) == 2
    for wrong in (published("Poetry", "1"), published("Ties", "5"), {"id": "1"}):
        with pytest.raises(SystemExit, match=r"^conf/rewardbench: 'labels': row 1 of .* is none of rewardbench2"):
            rewardbench.items(Set("rewardbench2", written(tmp_path / "no.jsonl", wrong), None))


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 20])
def test_a_limit_never_parts_a_tied_prompt_from_its_reference(tmp_path: Path, limit: int) -> None:
    rows = [published("Math", str(number)) for number in range(20)]
    rows += [
        published("Ties", f"{kind}:{number}", 1 + (kind == "tied")) for kind in ("tied", "ref") for number in range(10)
    ]
    found = rewardbench.items(Set("rewardbench2", written(tmp_path / "rb.jsonl", *rows), limit))
    ties = [one.id for one in found if one.subset == "Ties"]
    assert len(found) - len(ties) == limit
    assert len(ties) == max(2, limit - limit % 2)
    assert {name for name in ties if name.startswith("ref")} == {name.replace("tied", "ref") for name in ties}
    prompts = {name.partition(":")[2] for name in ties}
    assert max(map(int, prompts)) == 10 * (len(prompts) - 1) // len(prompts), "spread over the subset"


def test_llmbar_names_the_output_that_follows(tmp_path: Path) -> None:
    rows = [{"input": "Do.", "output_1": "done", "output_2": "no", "label": label} for label in (1, 2)]
    (tmp_path / "llmbar.json").write_text(json.dumps(rows))
    from tests.test_human_labels import labels

    found = rewardbench.items(Set("llmbar", labels(tmp_path / "llmbar.json"), None))
    assert [(one.right, one.wrong, one.subset) for one in found] == [
        (("done",), ("no",), "labels"),
        (("no",), ("done",), "labels"),
    ]
    with pytest.raises(SystemExit, match=r"kind is 'mt': choose rewardbench2 or llmbar$"):
        rewardbench.items(Set("mt", labels(tmp_path / "llmbar.json"), None))


TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}


def held_out(name: str, request: str, number: int | None) -> Row:
    gold = None if number is None else {"name": "add", "arguments": {"a": [number]}}
    turns = [("system", calls.system_prompt([TOOL])), ("user", request), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": "simple", "messages": messages, "tools": [TOOL], "gold": gold}


def test_a_neighbours_answer_is_wrong_here_and_its_request_the_closest() -> None:
    rows = [
        held_out("a", "add one to two please", 1),
        held_out("b", "add one to two quickly please", 1),  # closest, and right here
        held_out("c", "add one to three please", 3),
        held_out("d", "write a poem", None),
    ]
    found = {one.id: one for one in rewardbench.neighbours(rows, None, "near")}
    assert found["a"].wrong == (calls.answer(rows[2]["gold"]),)
    assert found["d"].wrong == (calls.answer(rows[0]["gold"]),)
    assert found["a"].prompt == rows[0]["messages"][:-1]
    for item in found.values():
        row = next(one for one in rows if one["id"] == item.id)
        assert calls.score(item.right[0], row["tools"], row["gold"]).exact
        assert not calls.score(item.wrong[0], row["tools"], row["gold"]).exact
    assert rewardbench.neighbours(rows[:2], None, "near") == []  # every other answer is right


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, scorer: str) -> None:
    text = composed(["recipe=sft-dpo-judged"])
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["rewardbench", scorer])
    monkeypatch.setattr(training, "prepare", lambda: None)
    (folder / "params.yaml").write_text(text)
    (folder / "models" / scorer).mkdir(parents=True)
    (folder / "models" / scorer / "config.json").write_text("{}")
    rows = [held_out(str(number), f"add {number} to it", number) for number in range(6)]
    records.write(folder / "data/mix/test.jsonl", rows)


def trained(folder: Path, loss: str, start: str = "models/sft", settings: str = "trl:DPOConfig") -> None:
    run = {"model": start, "settings": settings, "trainer": {"beta": 0.5, "loss_type": [loss]}}
    (folder / "models/dpo/trl.yaml").write_text(json.dumps(run))


def test_the_stage_measures_held_out_pairs_and_says_which_files_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, monkeypatch, "reward")
    monkeypatch.setattr(
        reward_scores, "scored", lambda _scorer, chats: [None, 0.0, *(float(n % 2 == 0) for n in range(len(chats) - 2))]
    )
    stage.main()
    values = metrics.read("reports/rewardbench/reward.json")
    assert (values["neighbours"], values["neighbours_n"], values["too_long"]) == (1.0, 5, 1)
    assert values["set_reward-bench-2"].startswith("not measured: no file raw/benchmarks/reward-bench-2")
    assert values["reward"] == "model"
    assert len(list(records.read("data/rewardbench/reward.jsonl"))) == 5


def test_dpos_reward_is_measured_against_what_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, monkeypatch, "dpo")
    trained(tmp_path, "sigmoid_norm")
    seen: list[Scorer] = []

    def fake(scorer: Scorer, chats: list[Any]) -> list[float]:
        seen.append(scorer)
        return [0.0] * len(chats)

    monkeypatch.setattr(reward_scores, "scored", fake)
    stage.main()
    assert metrics.read("reports/rewardbench/dpo.json")["reward"] == "implicit"
    assert seen == [Scorer("models/dpo", "models/sft", 0.5, True, 1024, 8)]
    trained(tmp_path, "sigmoid", "models/base")
    with pytest.raises(
        SystemExit, match=r"^rewardbench\.reference is 'sft', and models/dpo was trained from models/base"
    ):
        stage.main()
    trained(tmp_path, "simpo", settings="trl.experimental.cpo:CPOConfig")
    stage.main()
    assert seen[-1] == Scorer("models/dpo", None, 0.5, True, 1024, 8)
    (tmp_path / "models/dpo/trl.yaml").unlink()
    with pytest.raises(SystemExit, match=r"implicit reward is that of a policy which `dpo` trained$"):
        stage.main()


def test_params_fit(tmp_path: Path) -> None:
    for option in ("default", "hub"):
        (tmp_path / "params.yaml").write_text(composed([f"rewardbench={option}"]))
        assert params.load("rewardbench", stage.Rewardbench, tmp_path / "params.yaml").sets
