"""The preference stage around its sampler: what is kept, what is rejected and why, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import preferences
from temper import calls, params, records
from temper.records import Row

TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
CFG: dict[str, Any] = {
    "dtype": "bfloat16",
    "samples": 2,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 8,
    "pairs_per_prompt": 2,
    "gold_when_none_right": False,
    "limit": None,
    "seed": 1,
}
RIGHT, WRONG = '{"name": "add", "arguments": {"a": 1}}', "null"


def row(name: str) -> Row:
    gold = {"name": "add", "arguments": {"a": [1]}}
    turns = [("system", calls.system_prompt([TOOL])), ("user", "add 1"), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": "simple_python", "messages": messages, "tools": [TOOL], "gold": gold}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: list[list[str]], **changed: Any) -> Row:
    """Run the stage in `folder` with these answers in the sampler's place; its metrics."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(params, "load", lambda _section, schema: schema(**CFG | changed))
    monkeypatch.setattr(preferences, "sampled", lambda rows, _cfg: answers[: len(rows)])
    records.write(preferences.PROMPTS, [row(f"row{number}") for number in range(len(answers))])
    preferences.main()
    return dict(json.loads(Path("reports/preferences.json").read_text()))


def test_every_prompt_is_kept_or_rejected_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = run(tmp_path, monkeypatch, [[RIGHT, WRONG], [RIGHT, RIGHT], [WRONG, WRONG]])
    assert (values["seen"], values["kept"]) == (3, 1)
    assert (values["rejected_all_right"], values["rejected_all_wrong"]) == (1, 1)
    rejected = {one["id"]: one["reason"] for one in records.read("data/rejected/preferences.jsonl")}
    assert rejected == {"row1": "all_right", "row2": "all_wrong"}
    (pair,) = records.read("data/preferences.jsonl")
    assert pair["chosen"][0]["content"] == RIGHT
    assert pair["rejected"][0]["content"] == WRONG


def test_the_limit_is_in_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, [[RIGHT, WRONG]] * 4, limit=3)["seen"] == 3


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        ([], ["data/contamination/preferences.jsonl", "split.preferences"]),
        ([[RIGHT, RIGHT]], ["1 all right", "preferences.temperature"]),
        ([[WRONG, WRONG]], ["1 all wrong", "gold_when_none_right"]),
    ],
    ids=["empty", "all right", "all wrong"],
)
def test_nothing_to_prefer_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[list[str]], named: list[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(tmp_path, monkeypatch, answers)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in named)
    assert not (tmp_path / "data/preferences.jsonl").exists()


def test_a_prompt_keeps_its_seed_whatever_its_neighbours() -> None:
    assert preferences.seed("ab", 17) == preferences.seed("ab", 17)
    assert len({preferences.seed(str(number), 17) for number in range(1000)}) == 1000
    assert preferences.seed("ab", 17) != preferences.seed("ab", 18)
    assert all(0 <= preferences.seed(str(number), 3) < 2**31 for number in range(1000))
