"""What `evaluate` asks, how it scores, and what it says about a few hundred rows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import evaluate
from temper import calls, harness, params
from temper.records import Row

TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
OTHER = {"name": "sub", "parameters": {"properties": {}, "required": []}}
GOLD = {"name": "sub", "arguments": {}}


def row(name: str, gold: Row | None, tools: list[Row]) -> Row:
    turns = [("system", calls.system_prompt(tools)), ("user", "subtract"), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": "multiple", "messages": messages, "tools": tools, "gold": gold}


def sample(gold: Any, category: str = "simple_python", **changed: Any) -> Row:
    same = {"exact": True, "valid_json": True, "argument_f1": 1.0, "abstain": True, "abstain_norm": True}
    return {"id": "x", "category": category, "gold": gold} | same | changed


def test_a_choice_is_null_or_the_beginning_of_a_call() -> None:
    asked = harness.question(row("a", GOLD, [TOOL, OTHER]), "PROMPT")
    assert asked["choices"] == ["null", '{"name": "add"', '{"name": "sub"']
    assert asked["choices"][asked["label"]] == '{"name": "sub"'
    assert calls.answer(GOLD).startswith(asked["choices"][asked["label"]])
    assert harness.question(row("b", None, [TOOL]), "PROMPT")["label"] == 0


@pytest.mark.parametrize(
    ("answer", "exact", "valid"), [('{"name": "sub", "arguments": {}}', 1.0, 1.0), ("null", 0.0, 1.0), ("{", 0.0, 0.0)]
)
def test_the_harness_scores_with_the_verifier(answer: str, exact: float, valid: float) -> None:
    asked = harness.question(row("a", GOLD, [OTHER]), "PROMPT")
    score = harness.scored(asked, [answer])
    assert (score["exact"], score["valid_json"]) == (exact, valid)


def test_both_kinds_of_request_are_asked_and_the_length_is_ours() -> None:
    call, abstain = harness.definitions(max_tokens=7)
    assert (call["output_type"], abstain["output_type"]) == ("generate_until", "multiple_choice")
    assert call["generation_kwargs"]["max_gen_toks"] == 7


def test_the_saved_configuration_is_the_same_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_vllm_version", lambda: "1")
    monkeypatch.setattr(harness.importlib.metadata, "version", lambda _name: "1")
    engines = [{"dtype": "bfloat16", "kv_cache_memory_bytes": size, "enforce_eager": True} for size in (1, 2)]
    saved = [
        yaml.safe_dump(harness.config(Path("models/dpo"), harness.definitions(8), engine, 3, "TEMPLATE"))
        for engine in engines
    ]
    assert saved[0] == saved[1]
    assert str(Path.cwd()) not in saved[0]


def test_samples_come_sorted_with_both_tasks_joined() -> None:
    rows = [row(name, GOLD, [OTHER]) for name in ("b", "a")]
    call: Row = {"filtered_resps": ["null"], "exact": 0.0, "valid_json": 1.0, "argument_f1": 0.0}
    abstain: Row = {"acc": 1.0, "acc_norm": 0.0}
    answered = {"call": dict.fromkeys("ab", call), "abstain": dict.fromkeys("ab", abstain)}
    made = harness.samples(rows, answered)
    assert [one["id"] for one in made] == ["a", "b"]
    assert made[0]["request"] == "subtract"
    assert (made[0]["output"], made[0]["exact"], made[0]["abstain"]) == ("null", False, True)


def test_the_summary_separates_calls_from_null_and_counts_each_category() -> None:
    samples = [sample(GOLD), sample(GOLD, exact=False, argument_f1=0.5), sample(None, "irrelevance", exact=False)]
    values = evaluate.summary(samples, 0.95, seed=1)
    assert (values["n"], values["call_n"], values["null_n"]) == (3, 2, 1)
    assert values["exact"] == pytest.approx(1 / 3)
    assert (values["call_exact"], values["null_exact"]) == (0.5, 0.0)
    assert (values["n_simple_python"], values["n_irrelevance"]) == (2, 1)
    assert values["exact_simple_python"] == 0.5
    assert values["argument_f1"] == pytest.approx(2.5 / 3)
    for name in ("exact", "call_exact", "null_exact", "argument_f1", "valid_json", "abstain", "exact_irrelevance"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]


def test_an_empty_test_split_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate", "dpo"])
    monkeypatch.setattr(params, "load", lambda _section, schema: schema("bfloat16", 8, 0.95, None, 1))
    evaluate.TEST.parent.mkdir(parents=True)
    evaluate.TEST.touch()
    with pytest.raises(SystemExit, match=r"data/split/test\.jsonl: no rows .*split\.test"):
        evaluate.main()
