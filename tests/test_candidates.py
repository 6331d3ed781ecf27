"""Base models before training: prompted alike, compared on the same items, the cheapest of the best recommended with its reason."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import compare_bases
from commands.compose import composed
from temper import calls, candidates, comparisons, metrics, params, records
from temper.candidates import FEW, ZERO, Enough, Outcome, Result
from temper.records import Row
from temper.task_metrics import Task
from tests.test_teacher import BROKEN, Body, Endpoint, Fault

TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
ENOUGH = Enough(0.9, 0.98)
INTENT = Task("intent", "intents.jsonl", ["accuracy"], ["card", "loan"], None)


def call(name: str, number: int | None, category: str = "simple") -> Row:
    gold = None if number is None else {"name": "add", "arguments": {"a": [number]}}
    turns = [("system", calls.system_prompt([TOOL])), ("user", f"add {name}"), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": category, "messages": messages, "tools": [TOOL], "gold": gold}


def chat(name: str, answer: str, source: str = "intents.jsonl") -> Row:
    turns = [{"role": "user", "content": name}, {"role": "assistant", "content": answer}]
    return {"id": name, "kind": "chat", "source": source, "category": "chat", "messages": turns, "tools": []}


def result(name: str, right: int, of: int = 100, usd: float = 1.0, seconds: float = 1.0, fits: int = 100) -> Result:
    outcomes = tuple(Outcome(number < right, number < fits) for number in range(of))
    return Result(name, ZERO, outcomes, seconds, of * 100, usd)


def test_an_answer_is_right_by_the_verifier_or_by_its_task() -> None:
    row = call("a", 2)
    assert candidates.scored(row, calls.answer(row["gold"]), []) == (True, True)
    assert candidates.scored(row, "null", []) == (False, True)
    assert candidates.scored(row, "Sure! 2", []) == (False, False)
    assert candidates.scored(chat("x", "card"), "Card.", [INTENT]) == (True, True)
    assert candidates.scored(chat("x", "card"), "loan", [INTENT]) == (False, True)
    assert candidates.scored(chat("x", "card"), "It is about a card", [INTENT]) == (False, False)
    schema = Task("order", "*", ["exact_match", "valid_schema"], None, {"type": "object", "required": ["item"]})
    assert candidates.scored(chat("x", '{"item": 1}'), '{"item": 2}', [schema]) == (False, True)
    assert candidates.scored(chat("x", '{"item": 1}'), "{}", [schema]) == (False, False)


def test_only_what_can_be_told_right_is_asked() -> None:
    preference = {
        "id": "p",
        "kind": "preference",
        "source": "intents.jsonl",
        "messages": [],
        "chosen": [],
        "rejected": [],
    }
    rows = [call("a", 1), chat("b", "card"), chat("c", "Hello", "talk.jsonl"), {"id": "t", "text": "x"}, preference]
    assert [row["id"] for row in candidates.scorable(rows, [INTENT])] == ["a", "b"]


def test_examples_are_of_every_category_with_and_without_a_call() -> None:
    rows = [call(str(n), n, "simple") for n in range(20)] + [
        call("none", None, "irrelevance"),
        call("many", 3, "multiple"),
    ]
    shown = candidates.examples(rows, 3, 17)
    assert {row["category"] for row in shown} == {"simple", "irrelevance", "multiple"}
    assert shown == candidates.examples(rows, 3, 17)
    assert candidates.examples(rows, 0, 17) == candidates.examples([], 3, 17) == []
    assert len(candidates.examples(rows, 40, 17)) == 22


def test_examples_stand_before_what_is_asked_with_their_own_instructions() -> None:
    row, example = call("asked", 1), call("shown", None)
    assert candidates.prompt(row, []) == row["messages"][:-1]
    few = candidates.prompt(row, [example])
    assert [turn["role"] for turn in few] == ["system", "user", "assistant", "user"]
    assert few[1]["content"] == f"{example['messages'][0]['content']}\n\nadd shown"
    assert (few[2]["content"], few[3]["content"]) == ("null", "add asked")
    assert [turn["content"] for turn in candidates.prompt(chat("q", "a"), [chat("e", "b")])] == ["e", "b", "q"]


def test_the_best_is_recommended_where_it_is_better_beyond_chance() -> None:
    found = candidates.recommended([result("small", 30, usd=0.1), result("large", 80, usd=9.0)], ENOUGH, 0.95, 17)
    assert found.result.candidate == "large"
    assert found.verdicts["small, zero-shot"].outcome == "worse"
    assert found.reason.startswith(
        "large, zero-shot has 80 of 100 right, more than every other beyond chance. Prompting alone is not"
    )
    assert not found.is_enough


def test_of_equals_the_cheapest_is_then_the_fastest() -> None:
    equals = [
        result("dear", 81, usd=9.0),
        result("cheap", 80, usd=0.1, seconds=2),
        result("slow", 79, usd=0.1, seconds=9),
    ]
    found = candidates.recommended(equals, ENOUGH, 0.95, 17)
    assert found.result.candidate == "cheap"
    assert "is the cheapest of 3 of 3 between which these items show no difference" in found.reason
    assert "(the most, 81, has dear, zero-shot)" in found.reason
    own = [result("a", 80, usd=0.0, seconds=2), result("b", 80, usd=0.0, seconds=1)]
    assert "and is the fastest, none having a price, of 2 of 2" in candidates.recommended(own, ENOUGH, 0.95, 17).reason


def test_prompting_alone_is_enough_only_with_the_low_ends() -> None:
    enough = candidates.recommended([result("good", 198, 200, fits=200)], ENOUGH, 0.95, 17)
    assert enough.is_enough
    assert "Prompting alone is enough" in enough.reason
    few = candidates.recommended([result("lucky", 10, 10, fits=10)], ENOUGH, 0.95, 17)
    assert not few.is_enough
    assert "score 72% of 90% and format 72% of 98% wanted, so train it" in few.reason


def test_what_got_no_reply_is_counted_and_left_out_of_both_sides() -> None:
    whole, broken = result("whole", 60), result("broken", 60)
    broken = replace(broken, outcomes=(None,) * 40 + broken.outcomes[40:])  # of what both would have right
    found = candidates.recommended([whole, broken], ENOUGH, 0.95, 17)
    verdict = found.verdicts["broken, zero-shot"]
    assert (verdict.outcome, verdict.difference.interval.value, verdict.difference.items) == ("no difference", 0, 60)
    assert (broken.failed, len(broken.right), sum(broken.right)) == (40, 60, 20)
    assert "Without a reply, and left out of both sides: 40 of broken, zero-shot" in found.reason
    values = candidates.values([whole, broken], found, 0.95)
    assert (values["broken_zero_shot_failed"], values["whole_zero_shot_failed"], values["items"]) == (40, 0, 100)
    assert values["broken_zero_shot_right"] == pytest.approx(1 / 3)
    line = next(line for line in candidates.table([whole, broken], found, 0.95) if "broken" in line)
    assert line.endswith("| 40 |")
    apart = replace(whole, candidate="apart", outcomes=whole.outcomes[:40] + (None,) * 60)
    alone = candidates.recommended([apart, broken], ENOUGH, 0.95, 17)
    assert (alone.verdicts, alone.result.candidate) == ({}, "apart")
    assert "no reply in common" in "".join(candidates.table([apart, broken], alone, 0.95))


def test_the_best_is_held_against_the_others_as_one_of_all_pairs() -> None:
    """Chosen on the items that it is compared on: for it alone, eight items more would be four tests' worth."""
    results = [result("best", 60), *(result(f"other {number}", 52) for number in range(4))]
    verdicts = candidates.against(results[0], results, 0.95, 17)
    assert len(verdicts) == 4
    assert min(comparisons.holm([one.difference.p for one in verdicts.values()])) < 0.05
    assert {one.outcome for one in verdicts.values()} == {"no difference"}
    two = candidates.against(results[0], results[:2], 0.95, 17)
    assert two["other 0, zero-shot"].outcome == "worse"


def test_the_best_of_some_alike_beats_another_as_seldom_as_promised() -> None:
    draw, wrong = random.Random(17), 0
    for _ in range(100):
        alike = [
            replace(result(str(number), 0), outcomes=tuple(Outcome(draw.random() < 0.5, True) for _ in range(100)))
            for number in range(6)
        ]
        best = max(alike, key=lambda one: sum(one.right))
        wrong += any(one.outcome == "worse" for one in candidates.against(best, alike, 0.95, 17).values())
    assert wrong <= 5


def test_prompting_is_enough_by_an_interval_that_holds_for_all_results() -> None:
    good = [result(str(number), 189, 200, fits=200, usd=1.0 + number) for number in range(20)]
    assert candidates.recommended(good[:1], ENOUGH, 0.95, 17).is_enough
    assert not candidates.recommended(good, ENOUGH, 0.95, 17).is_enough


def test_examples_are_paid_for_with_every_answer() -> None:
    short, long = (
        Result("m", way, (Outcome(True, True),) * 10, 1.0, tokens, 2.0) for way, tokens in ((ZERO, 1000), (FEW, 5000))
    )
    assert (short.usd_per_thousand, long.usd_per_thousand) == (pytest.approx(0.2), pytest.approx(1.0))
    assert candidates.recommended([long, short], ENOUGH, 0.95, 17).result is short
    assert candidates.local_price(3.6, 1000) == pytest.approx(1.0)


def test_the_table_marks_the_recommended_one() -> None:
    results = [result("small", 30, usd=0.0), result("large", 80)]
    found = candidates.recommended(results, ENOUGH, 0.95, 17)
    lines = candidates.table(results, found, 0.95)
    assert len({line.count("|") for line in lines}) == 1
    assert "**large, zero-shot** | 80.0% (" in lines[3] and "the best" in lines[3]
    assert "worse: -50.0" in lines[2] and "0 (own machine)" in lines[2]
    values = candidates.values(results, found, 0.95)
    assert (values["recommended"], values["small_zero_shot_right"], values["small_zero_shot_verdict"]) == (
        "large",
        0.3,
        "worse",
    )


def right(body: Body) -> str:
    """A model that needs an example to answer in form."""
    number = body["messages"][-1]["content"].split()[-1]
    if len(body["messages"]) < 4:
        return f"I would add {number}."
    return "null" if number == "nothing" else calls.answer({"name": "add", "arguments": {"a": [int(number)]}})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint(right)
    yield served
    served.close()


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    text = composed(list(overrides))
    monkeypatch.chdir(folder)
    compare_bases.SETTINGS.parent.mkdir(parents=True)
    compare_bases.SETTINGS.write_text(text)
    records.write(folder / "data/mix/validation.jsonl", [call(str(number), number) for number in range(6)])
    records.write(folder / "data/mix/preferences.jsonl", [call("nothing", None, "irrelevance")])
    train = [call(str(number), number) for number in range(20, 26)] + [call("nothing", None, "irrelevance")]
    records.write(folder / "data/mix/train.jsonl", train)


def test_endpoints_are_asked_both_ways_timed_and_reported(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosted = f"{{name:host,base_url:'{endpoint.url}',model:tutor,api_key_env:null,usd_per_million_prompt_tokens:1,"
    hosted += "usd_per_million_completion_tokens:2}"
    prepared(tmp_path, monkeypatch, "compare.candidates=[]", f"compare.endpoints=[{hosted}]", "compare.timed=2")
    compare_bases.main(["--prepared"])
    values = metrics.read("reports/compare-bases.json")
    assert (values["host_zero_shot_right"], values["host_zero_shot_format"]) == (0.0, 0.0)
    assert (values["host_few_shot_right"], values["host_few_shot_format"], values["items"]) == (1.0, 1.0, 7)
    assert (values["recommended"], values["recommended_prompt"]) == ("host", "few-shot")
    # 10 prompt and 3 answer tokens each, at 1 and 2 dollars a million.
    assert values["host_few_shot_usd_per_million_tokens"] == pytest.approx(16 / 13, abs=1e-5)
    assert values["host_few_shot_seconds"] > 0
    assert "**host, few-shot**" in Path("reports/compare-bases.md").read_text()
    assert "recommended: host, few-shot has 7 of 7 right" in capsys.readouterr().out
    before = endpoint.asked
    compare_bases.main(["--prepared"])
    assert endpoint.asked == before + 4  # only the times are taken anew


def test_a_failed_reply_is_asked_again_and_no_wrong_answer(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(body: Body, attempt: int) -> Fault | None:
        last = body["messages"][-1]["content"]
        if last == "add 0":
            return 400, {}, b'{"error": {"message": "filtered"}}'
        return BROKEN if last == "add 1" and attempt == 0 and "seed" in body else None

    endpoint.fault = fault
    hosted = f"{{name:host,base_url:'{endpoint.url}',model:tutor,api_key_env:null,usd_per_million_prompt_tokens:1,"
    hosted += "usd_per_million_completion_tokens:2}"
    prepared(tmp_path, monkeypatch, "compare.candidates=[]", f"compare.endpoints=[{hosted}]", "compare.timed=2")
    compare_bases.main(["--prepared"])
    values = metrics.read("reports/compare-bases.json")
    assert (values["host_few_shot_failed"], values["host_few_shot_right"], values["items"]) == (1, 1.0, 7)
    assert values["host_few_shot_seconds"] > 0, "what has no reply is not timed"
    endpoint.fault = lambda body, attempt: (400, {}, b"")
    cfg = params.load("compare", compare_bases.Compare, compare_bases.SETTINGS)
    items, _ = compare_bases.asked(cfg, [])
    prompts = {ZERO: [candidates.prompt(row, []) for row in items]}
    with pytest.raises(SystemExit, match=r"^other: no reply to any of 7 zero-shot prompts \(.*compare\.endpoints$"):
        list(compare_bases.remote(replace(cfg.endpoints[0], name="other"), items, prompts, [], cfg))


def test_what_is_asked_leaves_the_test_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, monkeypatch)
    cfg = params.load("compare", compare_bases.Compare, compare_bases.SETTINGS)
    assert "test" not in cfg.splits
    items, shown = compare_bases.asked(cfg, [])
    assert len(items) == 7
    assert {row["id"] for row in shown} <= {"nothing", *map(str, range(20, 26))}
    assert len(shown) == cfg.shots
    records.write(tmp_path / "data/mix/validation.jsonl", [chat("x", "y")])
    records.write(tmp_path / "data/mix/preferences.jsonl", [])
    with pytest.raises(SystemExit, match=r"^compare: no row of validation, preferences can be told right from wrong"):
        compare_bases.asked(cfg, [])


def test_an_unknown_preset_is_named_before_anything_is_made() -> None:
    with pytest.raises(
        SystemExit, match=r"^compare\.candidates: no preset 'gpt' in conf/model: choose of gemma3-12b, "
    ):
        compare_bases.prepare(["compare.candidates=[gpt]"])


def test_a_preset_that_names_another_model_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    for revision, others, is_kept in (("1", "a", False), ("1", "b", True), ("2", "b", False)):
        compare_bases.settle(folder, f"base: {{revision: {revision}}}\ncompare: {others}\n")
        assert (folder / "models").exists() is is_kept
        (folder / "models").mkdir(exist_ok=True)
    assert "revision: 2" in (folder / "params.yaml").read_text()


def test_a_machine_costs_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, monkeypatch, "hardware=gpu1")
    cfg = params.load("compare", compare_bases.Compare, compare_bases.SETTINGS)
    assert compare_bases.hourly(cfg) == 0.8
    cfg.usd_per_hour = 5.0
    assert compare_bases.hourly(cfg) == 5.0


@pytest.mark.engine
@pytest.mark.slow
def test_presets_are_made_served_and_compared(tmp_path: Path, clone_to: Any) -> None:
    import subprocess
    import sys

    root = clone_to(tmp_path / "tree")
    for name, rows in (("validation", 4), ("preferences", 2), ("train", 6)):
        records.write(root / f"data/mix/{name}.jsonl", [call(str(number), number) for number in range(rows)])
    settings = ["compare.candidates=[tiny]", "compare.timed=1", "compare.load.requests=2", "compare.load.concurrency=2"]
    command = [sys.executable, "-m", "commands.compare_bases", *settings, "compare.max_tokens=8"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    values = json.loads((root / "reports/compare-bases.json").read_text())
    assert (values["items"], values["recommended"]) == (6, "tiny")
    assert values["tiny_few_shot_tokens"] > values["tiny_zero_shot_tokens"] > 0
    assert values["tiny_zero_shot_seconds"] > 0
