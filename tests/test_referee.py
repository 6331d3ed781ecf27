"""A judge is measured against people before it is asked, and asked in both orders; one no better than a coin judges nothing."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts import judge as judge_stage
from temper import conversations, metrics, params, records, referee, reward_scores, vllm
from temper.human_labels import Chat, Comparison
from temper.published import Published
from temper.records import Row
from temper.referee import Labels, Ruling, Settings
from tests.test_human_labels import labels, vote, written
from tests.test_teacher import Body, Endpoint
from tests.test_teacher import settings as teacher


def chat(text: str) -> Chat:
    return [{"role": "assistant", "content": text}]


def comparison(first: str, second: str, name: str = "x") -> Comparison:
    return Comparison(name, [{"role": "user", "content": f"Ask {name}"}], (chat(first), chat(second)))


def compared(body: Body) -> tuple[str, str]:
    found = re.search(
        r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n\[End\]", body["messages"][-1]["content"], re.DOTALL
    )
    assert found
    return found[1], found[2]


def longer(body: Body) -> str:
    """Rates by length what is to be rated, and prefers the longer of two answers."""
    if "[Answer A]" not in body["messages"][-1]["content"]:
        return f"Fine. [[{min(10, len(body['messages'][-1]['content']) % 10 + 1)}]]"
    first, second = map(len, compared(body))
    return json.dumps({"verdict": "A" if first > second else "B" if second > first else "tie"})


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.chdir(tmp_path)
    served = Endpoint(longer)
    yield served
    served.close()


def at(url: str, **changes: Any) -> Settings:
    return Settings("endpoint", "models/base", 100, 2, teacher(url, **changes), "Longer is better.", 64, 17)


def pairs(path: Path, *lengths: tuple[int, int]) -> Published:
    """Pairs whose chosen and rejected answers have these lengths."""
    asked = "\n\nHuman: Why {}?\n\nAssistant: "
    rows = [
        {"chosen": asked.format(number) + "c" * chosen, "rejected": asked.format(number) + "r" * rejected}
        for number, (chosen, rejected) in enumerate(lengths)
    ]
    return written(path, *rows)


def rulings(settings: Settings, *asked: Comparison) -> list[Ruling]:
    with referee.seated(settings, {}) as found:
        return found.rulings(asked)


def test_an_endpoint_is_asked_in_both_orders_and_by_the_rubric(endpoint: Endpoint) -> None:
    found = rulings(at(endpoint.url), comparison("long answer", "short"), comparison("a", "bb"), comparison("c", "d"))
    assert [(ruling.value, ruling.flips) for ruling in found] == [(1.0, False), (0.0, False), (0.5, False)]
    asked = [compared(body) for body in endpoint.answered]
    assert {(second, first) for first, second in asked} == set(asked)
    assert len(asked) == 6
    assert all("Longer is better." in body["messages"][0]["content"] for body in endpoint.answered)
    assert all(body["response_format"]["type"] == "json_schema" for body in endpoint.answered)


def test_a_place_that_wins_is_a_tie_that_flips(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: json.dumps({"verdict": "A"})
    (found,) = rulings(at(endpoint.url), comparison("a", "bb"))
    assert (found.value, found.flips, found.evidence) == (0.5, True, ["A", "A"])
    assert referee.order_bias("win", [found], 0.95)["win_flips"] == 1


def test_a_reply_that_is_no_verdict_decides_nothing(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: "The first,\nI think."
    (found,) = rulings(at(endpoint.url), comparison("a", "bb"))
    assert (found.value, found.flips) == (None, None)
    assert found.evidence[-1] == "The first, I think."
    assert referee.order_bias("win", [found], 0.95) == {"win_without_verdict": 1}


def test_answers_of_several_turns_are_shown_with_their_roles(endpoint: Endpoint) -> None:
    turns = [*chat("one"), {"role": "user", "content": "and?"}, *chat("two")]
    one = Comparison("x", [{"role": "user", "content": "Ask"}], (turns, [*turns[:2], *chat("other")]))
    rulings(at(endpoint.url), one)
    first, second = compared(endpoint.answered[0])
    assert {first, second} == {
        "assistant: one\n\nuser: and?\n\nassistant: two",
        "assistant: one\n\nuser: and?\n\nassistant: other",
    }


def test_what_was_asked_is_not_asked_again(endpoint: Endpoint) -> None:
    for _ in range(2):
        rulings(at(endpoint.url), comparison("a", "bb"))
    assert endpoint.asked == 2


def standing(settings: Settings, found: Labels) -> referee.Standing:
    with referee.seated(settings, {}) as judge:
        return referee.standing(judge, found, 0.95, 17)


def test_a_judge_that_agrees_with_people_is_usable(endpoint: Endpoint, tmp_path: Path) -> None:
    votes = written(tmp_path / "votes.jsonl", *(vote(number, "model_a", models=("a" * 3, "b")) for number in range(8)))
    chosen = pairs(tmp_path / "pairs.jsonl", *[(9, 3)] * 20)
    found = standing(at(endpoint.url), Labels(chosen, votes, None, 8))
    assert found.is_usable
    assert (found.values["human_pairs_accuracy"], found.values["human_pairs_decided"]) == (1.0, 20)
    assert (found.values["human_votes_agreement"], found.values["human_votes_agreement_votes"]) == (1.0, 8)
    assert found.values["human_pairs_flips"] == 0


def test_one_no_better_than_chance_is_not(endpoint: Endpoint, tmp_path: Path) -> None:
    coin = standing(at(endpoint.url), Labels(pairs(tmp_path / "p.jsonl", *[(9, 3), (3, 9)] * 10), None, None, 8))
    assert coin.reason == "no better than chance: human_pairs_accuracy is 50.0% (29.9–70.1)"
    worse = standing(at(endpoint.url), Labels(pairs(tmp_path / "w.jsonl", *[(3, 9)] * 20), None, None, 8))
    assert "human_pairs_accuracy is 0.0%" in worse.reason
    mixed = Labels(pairs(tmp_path / "p.jsonl", *[(9, 3)] * 20), pairs_as_votes(tmp_path), None, 8)
    assert "human_votes_agreement is 0.0%" in standing(at(endpoint.url), mixed).reason


def test_nor_is_one_that_decided_too_few_however_good(endpoint: Endpoint, tmp_path: Path) -> None:
    five = pairs(tmp_path / "five.jsonl", *[(9, 3)] * 5, *[(4, 4)] * 30)
    few = standing(at(endpoint.url), Labels(five, None, None, 30))
    assert (few.values["human_pairs_accuracy"], few.values["human_pairs_decided"]) == (1.0, 5)
    assert few.values["human_pairs_accuracy_low"] > 0.5
    assert few.reason == "too few to tell: human_pairs_decided is 5, fewer than judge.labels.least (30)"
    # Thirty votes on three questions are three.
    votes = [vote(number % 3, "model_a", models=("a" * (3 + number), "b")) for number in range(30)]
    enough = pairs(tmp_path / "enough.jsonl", *[(9, 3)] * 30)
    clustered = standing(at(endpoint.url), Labels(enough, written(tmp_path / "votes.jsonl", *votes), None, 30))
    assert clustered.values["human_votes_agreement_votes"] == 30
    assert clustered.reason.startswith("too few to tell: human_votes_agreement_questions is 3, fewer than")
    assert standing(at(endpoint.url), Labels(enough, None, None, 30)).is_usable


def pairs_as_votes(folder: Path) -> Published:
    """Votes for the shorter answer."""
    return written(folder / "v.jsonl", *(vote(number, "model_b", models=("a" * 3, "b")) for number in range(8)))


def test_nor_is_one_that_was_not_measured(endpoint: Endpoint, tmp_path: Path) -> None:
    found = standing(at(endpoint.url), Labels(labels(tmp_path / "absent.jsonl"), None, None, 0))
    assert found.reason == "not measured on any comparison that people decided"
    assert found.values["human_pairs"].startswith("not measured: no file ")
    assert endpoint.asked == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "oracle"}, r"^judge\.kind is 'oracle': choose reward or endpoint$"),
        ({"endpoint": None}, r"^judge\.endpoint\.model is empty: choose judge=endpoint"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        referee.checked(Settings(**vars(at("http://127.0.0.1:1/v1")) | changes))


def rewarded(monkeypatch: pytest.MonkeyPatch, of: dict[str, float | None]) -> None:
    monkeypatch.setattr(
        reward_scores,
        "scored",
        lambda _scorer, chats: [of.get(one[-1]["content"], float(len(one[-1]["content"]))) for one in chats],
    )


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/reward").mkdir(parents=True)
    (tmp_path / "models/reward/config.json").write_text("{}")
    return Settings("reward", "models/reward", 100, 2, None, "", 0, 17)


def test_the_higher_reward_wins_and_a_missing_one_decides_nothing(
    reward: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(monkeypatch, {"good": 2.0, "bad": -1.0, "endless": None})
    asked = [
        comparison("good", "bad"),
        comparison("bad", "good"),
        comparison("bad", "bad"),
        comparison("good", "endless"),
    ]
    assert [one.value for one in rulings(reward, *asked)] == [1.0, 0.0, 0.5, None]
    assert referee.order_bias("win", rulings(reward, *asked), 0.95) == {"win_without_verdict": 1}


def test_without_a_reward_model_the_recipe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^models/reward: no reward model: .*recipe=sft-dpo-judged"):
        rulings(Settings("reward", "models/reward", 100, 2, None, "", 0, 17))


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A tree in which the stage runs for dpo, whose answers are longer than the base's on two rows of three."""
    labelled = ["judge.labels.pairs.file=pairs.jsonl", "judge.labels.least=20"]
    text = composed(["recipe=sft-dpo-judged", *labelled, *overrides])
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEMPER_SCRATCH", str(folder / "scratch"))
    monkeypatch.setattr("sys.argv", ["judge", "dpo"])
    monkeypatch.setattr(vllm, "require_build", lambda: None)
    (folder / "params.yaml").write_text(text)
    for name in ("base", "dpo", "reward"):
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
        (folder / "models" / name / "config.json").write_text("{}")
    records.write(folder / "data/mix/test.jsonl", map(row, range(3)))
    said = {"dpo": ["long answer", "ab", "even longer answer"], "base": ["short", "abc", "short"]}

    def answered(model: Path, asked: list[conversations.Conversation], *_: Any) -> list[list[str]]:
        rows, questions = said[model.name], asked[3:]
        return [[text] for text in rows] + [[f"{model.name} {one.id}", "second"] for one in questions]

    monkeypatch.setattr(conversations, "answered", answered)


def row(number: int) -> Row:
    turns = [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant")]
    return {"id": str(number), "kind": "chat", "category": "chat", "messages": turns, "tools": []}


def stated(benchmark: Published) -> str:
    return f"judge.labels.pairs.sha256={benchmark.sha256}"


def test_the_stage_says_how_often_a_variant_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pairs(tmp_path / "pairs.jsonl", *[(9, 3)] * 20)
    prepared(tmp_path, monkeypatch, stated(chosen))
    rewarded(monkeypatch, {})
    judge_stage.main()
    values = metrics.read("reports/judge/dpo.json")
    assert (values["usable"], values["wins"], values["losses"], values["prompts"]) == (1, 2, 1, 3)
    assert values["win_rate"] == pytest.approx(2 / 3, abs=1e-5)
    assert values["human_pairs_accuracy"] == 1.0
    assert values["judge"] == "reward model models/reward"
    assert "length_controlled_win_rate" in values
    assert values["mt_bench"].startswith("not measured")
    kept = list(records.read("data/judge/dpo.jsonl"))
    assert (kept[0]["answer"], kept[0]["base"], kept[0]["value"]) == ("long answer", "short", 1.0)


def test_an_unusable_judge_judges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = pairs(tmp_path / "pairs.jsonl", *[(9, 3), (3, 9)] * 10)
    prepared(tmp_path, monkeypatch, stated(chosen))
    rewarded(monkeypatch, {})
    monkeypatch.setattr(conversations, "answered", None)  # nothing is sampled for it
    judge_stage.main()
    values = metrics.read("reports/judge/dpo.json")
    assert values["usable"] == 0
    assert values["unusable_because"].startswith("no better than chance")
    assert not {"win_rate", "wins", "length_controlled_win_rate"} & values.keys()
    assert list(records.read("data/judge/dpo.jsonl")) == []
    assert "reward model models/reward is unusable, so nothing is judged by it: no better" in capsys.readouterr().out


def test_an_endpoint_also_rates_mt_bench(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pairs(tmp_path / "pairs.jsonl", *[(9, 3)] * 20)
    questions = written(tmp_path / "q.jsonl", {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]})
    prompt = {"system_prompt": "Judge.", "prompt_template": "{question}{answer}"}
    second = {"system_prompt": "Judge.", "prompt_template": "{question_1}{answer_1}{question_2}{answer_2}"}
    names = {
        "single-v1": prompt,
        "single-math-v1": prompt,
        "single-v1-multi-turn": second,
        "single-math-v1-multi-turn": second,
    }
    prompts = written(tmp_path / "p.jsonl", *({"name": name, **of} for name, of in names.items()))
    references = written(tmp_path / "r.jsonl", {"question_id": 111, "choices": [{"turns": ["a", "b"]}]})
    files = {"questions": questions, "prompts": prompts, "references": references}
    stated_files = [
        f"judge.mt_bench.{name}.{key}={getattr(one, key)}" for name, one in files.items() for key in ("file", "sha256")
    ]
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    settings = [
        f"judge.endpoint.{key}={value}"
        for key, value in (("base_url", endpoint.url), ("model", "tutor"), ("licence", "mit"))
    ]
    prepared(
        tmp_path, monkeypatch, "judge=endpoint", "judge.labels.votes=null", stated(chosen), *settings, *stated_files
    )
    judge_stage.main()
    values = metrics.read("reports/judge/dpo.json")
    assert values["wins"] == 2
    assert values["judge"] == "tutor (local)"
    assert {"mt_bench_base", "mt_bench_dpo", "mt_bench_dpo_low", "mt_bench_dpo_turn_2"} <= values.keys()
    assert (values["mt_bench_dpo_questions"], values["mt_bench_dpo_ratings"]) == (1, 2)
    rated = [body["messages"] for body in endpoint.answered if body["messages"][0]["role"] == "system"]
    # They are asked side by side, in no order.
    assert {messages[1]["content"] for messages in rated} >= {"Write.base 81", "Write.base 81Again.second"}
    assert (values["win_judge_requests"], values["mt_bench_judge_requests"]) == (6, 4)


def test_params_fit_both_kinds(tmp_path: Path) -> None:
    for kind in ("reward", "endpoint"):
        (tmp_path / "params.yaml").write_text(composed([f"judge={kind}"]))
        cfg = params.load("judge", judge_stage.Judge, tmp_path / "params.yaml")
        assert cfg.kind == kind
        assert (cfg.mt_bench is None) == (kind == "reward")
