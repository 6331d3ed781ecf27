"""Seeds grow into rows that say where they come from; what is no good leaves with a reason; a killed run pays nothing twice."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from commands import synthesize
from commands.compose import composed as compose_all
from commands.synthesize import METHODS
from temper import calls, evol_instruct, metrics, record, records, rephrase, seeds, self_instruct, sources, synthesis
from temper.records import Row
from temper.rouge import Wordings, rouge_l
from temper.teacher import Reply
from tests.test_server import MODEL
from tests.test_teacher import SLOW, Body, Endpoint, Fault

ROOT = Path(__file__).resolve().parent.parent
SEEDS = "raw/seeds/seeds.jsonl"
TOPICS = re.findall(
    r"\w+",
    "harbour winter battery recipe orchestra tax volcano password garden engine passport cheese comet saddle library"
    " glacier mortgage violin compost rocket bakery canal lantern museum tractor pharmacy meadow railway theatre kettle",
)
VERBS = re.findall(r"\w+", "Explain Summarise Compare Describe List Plan Translate Rate Improve Shorten")


def tutor(body: Body) -> str:
    """A teacher whose answer is a function of the request: it does what each of the prompts asks for."""
    text = body["messages"][-1]["content"]
    chance = random.Random(json.dumps(body, sort_keys=True))
    topic, other = chance.sample(TOPICS, 2)
    answers = {
        "Is it classification? Answer": "Yes" if "Rate" in text.rpartition("Task:")[2] else "No",
        "Class label: ...": f"Class label: good\nInput: the {topic}\nClass label: bad\nInput: the {other}",
        "Output: ...": f"**Input:** none\n**Output:** It is about {topic}, in short.",
        "#Given Prompt#": f"{_between(text, 'Given Prompt#:', '#')} Mention {topic} {chance.random()}.",
        "Are they equal": "Not Equal",
        "Reword the request": f"Kindly do this for me: {_between(text, 'Request:', '$')}",
        'form "Score: 7"': f"Fine.\nScore: {3 + len(text) % 7}",
        'form "Scores: 7 4"': "Scores: 8 5",
    }
    if found := re.search(r"numbered from (\d+)", text):
        return "Sure!\n" + "\n".join(f"Task {int(found[1]) + n}: {invented(chance)}" for n in range(4))
    asked = [answer for form, answer in answers.items() if form in text]
    return asked[0] if asked else f"Here is answer {chance.randrange(10**6)} about it."


def _between(text: str, start: str, end: str) -> str:
    return text.rpartition(start)[2].split(end)[0].strip() if text.count(start) == 1 else ""


def invented(chance: random.Random) -> str:
    topics = " ".join(chance.sample(TOPICS, 7))
    return f"{chance.choice(VERBS)} {topics} {chance.randrange(10**6)} briefly."


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint(tutor)
    yield served
    served.close()


Run = Callable[..., tuple[list[Row], list[Row], dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> Run:
    """Write seeds, run a method with changed settings, and return kept rows, rejected rows and the manifest."""

    def started(method: str, seeds: list[Row], *overrides: str) -> tuple[list[Row], list[Row], dict[str, Any]]:
        prepare(tmp_path, method, endpoint.url, seeds, *overrides)
        monkeypatch.chdir(tmp_path)
        synthesize.main([])
        return outputs(tmp_path, method)

    return started


def prepare(folder: Path, method: str, url: str, seeds: list[Row], *overrides: str) -> None:
    records.write(folder / "raw/seeds/seeds.jsonl", seeds)
    changes = ["base_url=" + url, "model=tutor", "licence=mit", "backoff=0.01"]
    settings = OmegaConf.create(composed(method))
    settings.merge_with_dotlist([*(f"synthesize.teacher.{change}" for change in changes), *overrides])
    (folder / "params.yaml").write_text(OmegaConf.to_yaml(settings))


@cache
def composed(method: str, teacher: str = "endpoint") -> str:
    """params.yaml with an option of conf/synthesize and of its teacher."""
    with TemporaryDirectory() as name:
        conf = Path(name)
        for group in ("synthesize", "model", "hardware"):
            (conf / group).symlink_to(ROOT / "conf" / group)
        groups = f"{{model: tiny}}, {{hardware: cpu}}, {{synthesize: {method}}}"
        (conf / "config.yaml").write_text(f"defaults: [_self_, {groups}]\nseed: 17\n")
        with initialize_config_dir(str(conf), version_base=None):
            cfg = compose("config", [f"synthesize/teacher={teacher}"])
    OmegaConf.resolve(cfg)
    return OmegaConf.to_yaml(cfg)


def outputs(folder: Path, method: str) -> tuple[list[Row], list[Row], dict[str, Any]]:
    name = f"synthetic-{method}"
    kept, rejected = (list(records.read(folder / part / f"{name}.jsonl")) for part in ("raw", "raw/rejected"))
    manifest = metrics.read(folder / f"raw/{name}.manifest.json")
    reasons = Counter(row["reason"] for row in rejected)
    assert manifest["seen"] == manifest["kept"] + sum(reasons.values())
    assert manifest["kept"] == len(kept)
    assert {key: value for key, value in manifest.items() if key.startswith("rejected_")} == {
        f"rejected_{reason}": number for reason, number in reasons.items()
    }
    assert not any("messages" in row or "text" in row or "instruction" in row for row in rejected)
    return kept, rejected, manifest


def seed(number: int, **more: Any) -> Row:
    texts = {
        "instruction": f"{VERBS[number % 10]} the {TOPICS[number % 30]} for {number} guests",
        "output": f"Yes, {number}.",
    }
    return {"id": f"seed-{number}", **texts, **more}


WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
ASKED: Row = {
    "id": "call-1",
    "tools": [WEATHER],
    "messages": [
        {"role": "user", "content": "Weather in Paris for 3 days?"},
        {"role": "assistant", "content": CALL},
    ],
    "gold": {"name": "get_weather", "arguments": {"city": ["Paris"], "days": [3, ""]}},
}


# Settings


@pytest.mark.parametrize("teacher", ["base", "endpoint"])
def test_every_method_and_every_teacher_composes_and_fits(tmp_path: Path, teacher: str) -> None:
    methods = sorted(file.stem for file in (ROOT / "conf/synthesize").glob("*.yaml"))
    assert methods == sorted(METHODS)
    for method in methods:
        text = composed(method, teacher).replace("licence: ''", "licence: mit")
        (tmp_path / "params.yaml").write_text(text)
        cfg, options = synthesize.settings(tmp_path / "params.yaml")
        assert cfg.method == method
        assert cfg.teacher.start_server is (teacher == "base")
        assert type(options) is METHODS[method][0]


def test_a_key_among_the_extra_settings_is_refused_and_not_repeated(tmp_path: Path) -> None:
    extra = "{extra_body: {api_key: s3cret-of-mine}}"
    prepare(tmp_path, "distil", "http://127.0.0.1/v1", [], f"synthesize.teacher.extra={extra}")
    with pytest.raises(SystemExit, match=r"teacher.extra holds a key \('api_key'\)") as error:
        synthesize.settings(tmp_path / "params.yaml")
    assert "s3cret" not in str(error.value)


def test_a_teacher_without_a_licence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed("distil"))
    with pytest.raises(SystemExit, match="licence"):
        synthesize.settings(tmp_path / "params.yaml")


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, "distil", "http://127.0.0.1/v1", [], "synthesize.options.sample=3")
    with pytest.raises(SystemExit, match=r"synthesize.options.*sample"):
        synthesize.settings(tmp_path / "params.yaml")


def test_missing_seeds_say_what_to_write(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"raw/mine.jsonl: no seed examples: .*instruction.*messages"):
        run("distil", [seed(1)], "synthesize.seeds=raw/mine.jsonl")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"instruction": ""}, "instruction"),
        ({"instruction": 3}, "instruction"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "user turn"),
        ({"messages": "hi"}, "messages"),
        ({"instruction": "x", "instances": [3]}, "instances"),
        ({"instruction": "x", "tools": [{"name": "f"}]}, "schema"),
        ({"instruction": "x", "gold": {"name": "f", "arguments": {"a": 1}}}, "gold"),
        ({"instruction": "\ud800"}, "surrogate"),
        ({"id": "seed-1", "instruction": "another example"}, "seed-1"),
    ],
)
def test_a_bad_seed_is_named_with_its_line(tmp_path: Path, row: Row, named: str) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (seed(1), row)))
    with pytest.raises(SystemExit) as error:
        seeds.read(file, None)
    assert str(error.value).startswith(f"{file}:2: ")
    assert named in str(error.value)


def test_every_format_of_a_seed_is_read(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"instruction": "Rate it", "input": "a film", "output": "good"},
        {"instruction": "Rate it", "instances": [{"input": "b", "output": "1"}, {"input": "c", "output": "2"}]},
        {"prompt": "Say hi", "completion": "hi"},
        ASKED,
    ]
    records.write(tmp_path / "seeds.jsonl", rows)
    found = seeds.read(tmp_path / "seeds.jsonl", None)
    assert [one.request for one in found] == [
        "Rate it\n\na film",
        "Rate it\n\nb",
        "Rate it\n\nc",
        "Say hi",
        "Weather in Paris for 3 days?",
    ]
    assert [one.answer for one in found] == ["good", "1", "2", "hi", CALL]
    assert found[-1].system == calls.system_prompt([WEATHER])
    assert len({one.id for one in found}) == 5


# Self-Instruct


def test_self_instruct_grows_as_many_instructions_as_asked_for(run: Run, endpoint: Endpoint) -> None:
    size = ["synthesize.options.instructions=30", "synthesize.options.batch=2"]
    kept, rejected, manifest = run("self-instruct", [seed(n) for n in range(10)], *size)
    grown = {row["provenance"]["task"] for row in kept}
    assert len(grown) == 30
    assert {row["reason"] for row in rejected} <= {"surplus", "similar"}
    known = grown | {f"seed-{n}" for n in range(10)}
    for row in kept:
        assert set(row["provenance"]["parents"]) <= known
        assert len(row["provenance"]["parents"]) == 8
        assert row["messages"][-1]["role"] == "assistant"
        assert row["licence"] == "mit"
    assert any(set(row["provenance"]["parents"]) & grown for row in kept), "generated examples are shown too"
    assert manifest["requests"] == endpoint.asked == len(endpoint.answered)
    assert manifest["prompt_tokens"] == 10 * manifest["requests"]


def test_classification_tasks_are_made_from_the_label(run: Run) -> None:
    kept, _, _ = run("self-instruct", [seed(n) for n in range(10)], "synthesize.options.instructions=30")
    rated = [row for row in kept if row["messages"][0]["content"].startswith("Rate")]
    assert rated
    for row in rated:
        assert row["messages"][1]["content"] in ("good", "bad")
        assert "\n\nthe " in row["messages"][0]["content"]


def test_an_instruction_like_another_leaves_with_its_likeness(run: Run, endpoint: Endpoint) -> None:
    copied, repeated = seed(3)["instruction"], "Name seven rivers of northern Europe"

    def copying(body: Body) -> str:
        asked = "Continue the list" in body["messages"][-1]["content"]
        new = invented(random.Random(str(body)))
        return f"1. {copied} please\n2. {new}\n3. {repeated}" if asked else tutor(body)

    endpoint.answer = copying
    kept, rejected, _ = run("self-instruct", [seed(n) for n in range(10)], "synthesize.options.instructions=5")
    similar = [row for row in rejected if row["reason"] == "similar"]
    assert {row["similar_to"] for row in similar} == {copied, repeated}
    assert all(row["rouge_l"] >= 0.7 for row in similar)
    requests = [row["messages"][0]["content"] for row in kept]
    assert not any(copied in request for request in requests)
    assert sum(repeated in request for request in requests) == 1


def test_a_teacher_with_nothing_new_ends_at_the_request_limit(run: Run, endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: f"1. {seed(1)['instruction']}"
    with pytest.raises(SystemExit) as error:
        run("self-instruct", [seed(1)], "synthesize.options.max_requests=5")
    assert "no row stays of 5 (5 similar)" in str(error.value)
    assert endpoint.asked == 5


def test_the_last_instruction_of_a_reply_that_was_cut_off_is_none(run: Run, endpoint: Endpoint) -> None:
    endpoint.finish = lambda body: "length" if "Continue the list" in body["messages"][-1]["content"] else "stop"
    _, rejected, _ = run("self-instruct", [seed(1)], "synthesize.options.instructions=6")
    assert Counter(row["reason"] for row in rejected)["truncated"] >= 2


def test_a_reply_without_instructions_is_counted(run: Run, endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: "I would rather not." if body["seed"] % 2 else tutor(body)
    _, rejected, _ = run("self-instruct", [seed(1)], "synthesize.options.instructions=9")
    assert "no_instruction" in {row["reason"] for row in rejected}


def options(**changes: Any) -> self_instruct.SelfInstruct:
    found = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/synthesize/self-instruct.yaml").options)
    return self_instruct.SelfInstruct(**{**found, **changes})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write it down", "too_short"),
        ("word " * 151, "too_long"),
        ("Describe the image shown above", "keyword"),
        ("Please go to the nearest shop", "keyword"),
        ("Describe the imagery of this poem", None),
        ("- describe the old man", "punctuation"),
    ],
)
def test_the_filters_of_the_paper(text: str, reason: str | None) -> None:
    assert self_instruct.ill_formed(text, options(), has_tools=False) == reason


def test_tools_may_be_asked_for_what_text_cannot_do() -> None:
    assert self_instruct.ill_formed("Open the file notes.txt now", options(), has_tools=True) is None


@pytest.mark.parametrize(
    "text",
    [
        "Sure:\nTask 9: Do this\nTask 10: And\n that",
        "9. Do this\n10. And that",
        "**Task 9:** Do this\n\n## 10) And that",
    ],
)
def test_lists_are_read_in_the_forms_that_models_give_them(text: str) -> None:
    assert self_instruct.listed(text) == ["Do this", "And that"]


def test_instances_are_filtered_as_in_the_paper() -> None:
    text = (
        "Input: a\nOutput: 1\n\nInput: a\nOutput: 2\nInput: b\nOutput: b\nInput: c\nOutput: such as:\n"
        "Example 5\nInput: d\nOutput: 4\nInput: d\nOutput: 4\nInput: none\nOutput: x\ny\nInput: e\nOutput:"
    )
    pairs = self_instruct.instances(text, is_label=False)
    assert pairs[-2:] == [("", "x\ny"), ("e", "")]
    found = ["contradictory", "contradictory", "repeats_input", "cut_off", None, "duplicate", None, "empty"]
    assert self_instruct.flaws(pairs) == found


def test_under_a_system_turn_requests_stay_under_it(run: Run, endpoint: Endpoint) -> None:
    def calling(body: Body) -> str:
        text = body["messages"][-1]["content"]
        if "Continue the list" in text:
            assert "get_weather(city: string, days?: integer)" in text
            return tutor(body)
        return CALL if body["seed"] % 3 else '{"name": "get_time", "arguments": {}}'

    endpoint.answer = calling
    kept, rejected, _ = run("self-instruct", [ASKED], "synthesize.options.instructions=12")
    assert kept
    assert {row["reason"] for row in rejected} <= {"bad_call", "surplus", "similar"}
    assert "bad_call" in {row["reason"] for row in rejected}
    for row in kept:
        made = record.make(row, "synthetic", row["licence"], "synthetic")
        assert made["gold"] == {"name": "get_weather", "arguments": {"city": ["Paris"], "days": [3]}}
        assert row["messages"][0]["content"] == calls.system_prompt([WEATHER])


# ROUGE-L


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d", "a c d e", 0.75),
        ("a b", "b a", 0.5),
        ("a", "b", 0.0),
        ("", "a", 0.0),
        ("the cat the", "the the", 0.8),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(first: str, second: str, expected: float) -> None:
    assert rouge_l(first.split(), second.split()) == pytest.approx(expected)


@given(st.lists(st.text("abcde ", max_size=24), max_size=12), st.text("abcde ", max_size=24), st.floats(0.3, 0.95))
def test_the_nearest_wording_is_found_without_comparing_all(texts: list[str], text: str, limit: float) -> None:
    wordings = Wordings(limit)
    for other in texts:
        wordings.add(other)
    best = max((_slow_rouge_l(text.split(), other.split()) for other in texts), default=0.0)
    found = wordings.nearest(text)
    assert (found is not None) == (best >= limit)
    assert found is None or found[0] == pytest.approx(best, abs=1e-4)


def _slow_rouge_l(first: list[str], second: list[str]) -> float:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(first) + len(second)) if table[-1][-1] else 0.0


# Evol-Instruct


def test_each_evolution_grows_from_the_one_before(run: Run) -> None:
    kept, rejected, _ = run("evol-instruct", [seed(n) for n in range(6)], "synthesize.options.generations=3")
    assert len(kept) == 18
    assert not rejected
    by_id = {row["id"]: row for row in kept}
    for row in kept:
        (parent,) = row["provenance"]["parents"]
        first = row["provenance"]["generation"] == 1
        assert parent.startswith("seed-") is first
        if not first:
            assert row["messages"][0]["content"].startswith(by_id[parent]["messages"][0]["content"])
    assert {row["provenance"]["operation"] for row in kept} == set(
        OmegaConf.load(ROOT / "conf/synthesize/evol-instruct.yaml").options.operations
    )


ELIMINATED = {
    "no_gain": lambda text: "Equal" if "Are they equal" in text else None,
    "unjudged": lambda text: "Maybe" if "Are they equal" in text else None,
    "refusal": lambda text: "Sorry, as a model I cannot say." if "Mention" in text and "Are they" not in text else None,
    "no_content": lambda text: "Is it that?!" if "Mention" in text and "Are they" not in text else None,
    "copied_prompt": lambda text: "Answer the given prompt in verse" if "#Given" in text else None,
    "empty": lambda text: " " if "#Given" in text else None,
}


@pytest.mark.parametrize("reason", ELIMINATED)
def test_failed_evolutions_are_eliminated_and_their_origin_tries_again(
    run: Run, endpoint: Endpoint, reason: str
) -> None:
    def failing(body: Body) -> str:
        text = body["messages"][-1]["content"]
        spared = "7 guests" in text
        return (None if spared else ELIMINATED[reason](text)) or tutor(body)

    endpoint.answer = failing
    kept, rejected, _ = run("evol-instruct", [seed(1), seed(7)], "synthesize.options.generations=3")
    assert {row["reason"] for row in rejected} == {reason}
    assert [row["parents"] for row in rejected] == [["seed-1"]] * 3
    assert [row["generation"] for row in rejected] == [1, 2, 3]
    assert len(kept) == 3


def test_a_long_answer_may_say_sorry_and_words_of_the_seed_are_its_own() -> None:
    assert synthesis.flaw(Reply("Sorry to hear that! " + "Here is help. " * 40), []) is None
    assert evol_instruct.failed("Answer the given prompt now, in verse", "Answer the given prompt") is None
    assert evol_instruct.failed("ANSWER it!", "answer it") == "no_gain"


def test_an_unknown_operation_lists_the_known_ones(run: Run) -> None:
    with pytest.raises(SystemExit, match="no 'shrink': choose among breadth, concretise"):
        run("evol-instruct", [seed(1)], "synthesize.options.operations=[shrink]")


# Rewording


def reworded(text: str) -> Callable[[Body], str]:
    return lambda body: text


def test_a_reworded_request_keeps_its_answer_and_its_gold_call(run: Run, endpoint: Endpoint) -> None:
    endpoint.answer = reworded('"Tell me how the weather will be in Paris over the next 3 days"')
    kept, rejected, _ = run("rephrase", [ASKED])
    (row,) = kept
    assert row["messages"][1]["content"] == "Tell me how the weather will be in Paris over the next 3 days"
    assert row["messages"][2]["content"] == CALL
    assert record.make(row, "synthetic", "mit", "synthetic")["gold"] == ASKED["gold"]
    assert row["provenance"]["parents"] == ["call-1"]
    assert row["provenance"]["style"]
    # The other styles gave the same words.
    assert {found["reason"] for found in rejected} == {"similar"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How warm will it be in Paris these days?", "lost_value"),
        ("How warm will it be there for 3 days?", "lost_value"),
        ("How warm will it be in Paris for 3 days at 7?", "added_value"),
        ("Weather in Paris for 3 days!", "similar"),
        ("How warm will it be in Paris for 3 days " + "and more " * 20, "too_long"),
        ("", "empty"),
    ],
)
def test_a_request_that_drifted_leaves(run: Run, endpoint: Endpoint, text: str, reason: str) -> None:
    endpoint.answer = reworded(text)
    with pytest.raises(SystemExit, match=rf"4 {reason}"):
        run("rephrase", [ASKED])


def test_what_must_survive_is_found() -> None:
    text = "Pay 1,234.50 to \"Ann Lee\" by 2024-05-01, see `x=1`, https://a.org/b?c=2, or ask me@b.org; don't, can't"
    found = rephrase.values(text)
    for value in ("1,234.50", "Ann Lee", "2024-05-01", "x=1", "https://a.org/b?c=2", "me@b.org"):
        assert found[value] == 1, value
    assert not any("t, can" in value for value in found)


def test_a_seed_without_an_answer_has_nothing_to_keep(run: Run) -> None:
    kept, rejected, _ = run("rephrase", [seed(1), {"id": "bare", "instruction": "Explain the kettle to me"}])
    assert {row["reason"] for row in rejected if row["parents"] == ["bare"]} == {"no_answer"}
    assert {parent for row in kept for parent in row["provenance"]["parents"]} == {"seed-1"}


# Distilled answers


def test_the_answer_with_the_highest_score_is_kept(run: Run, endpoint: Endpoint) -> None:
    def judging(body: Body) -> str:
        text = body["messages"][-1]["content"]
        if "[Answer]" not in text:
            return f"Answer of quality {body['seed'] % 10}."
        return f"It is not 10, but:\n**Score: {text.partition('of quality ')[2][0]}**"

    endpoint.answer = judging
    kept, rejected, _ = run("distil", [seed(n) for n in range(12)], "synthesize.options.samples=2")
    assert kept
    assert rejected
    best: dict[str, int] = {}
    for body in endpoint.answered:
        text = body["messages"][-1]["content"]
        if "[Answer]" not in text:
            best[text] = max(best.get(text, 0), body["seed"] % 10)
    assert len(best) == len(kept) + len(rejected) == 12
    for row in kept:
        quality = best[row["messages"][0]["content"]]
        assert quality >= 6
        assert row["messages"][1]["content"] == f"Answer of quality {quality}."
        assert row["provenance"]["score"] == quality
    assert all(best[row["proposal"]["request"]] < 6 for row in rejected)


def test_in_pairs_a_judge_that_favours_the_first_place_decides_nothing(run: Run, endpoint: Endpoint) -> None:
    def judging(body: Body) -> str:
        text = body["messages"][-1]["content"]
        if "[Answer 1]" not in text:
            return "right" if body["seed"] % 2 else "wrong"
        first, second = re.findall(r"\[Answer \d\]\n(\w+)", text)
        # Two points for the first place, one for being right.
        return f"Scores: {6 + (first == 'right')} {4 + (second == 'right')}"

    endpoint.answer = judging
    kept, _, _ = run(
        "distil", [seed(n) for n in range(12)], "synthesize.options.judge=pairwise", "synthesize.options.min_score=1"
    )
    mixed = [row for row in kept if row["provenance"]["score"] in (5.0, 6.0)]
    assert mixed
    assert all(row["messages"][1]["content"] == "right" for row in mixed)


def test_the_verifier_decides_where_there_is_a_gold_call(run: Run, endpoint: Endpoint) -> None:
    wrong = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    endpoint.answer = lambda body: CALL if body["seed"] % 4 == 0 else wrong if body["seed"] % 4 == 1 else "Rainy!"
    asked = [
        ASKED | {"id": f"call-{n}", "messages": [{"role": "user", "content": f"Weather in Paris for 3 days? #{n}"}]}
        for n in range(16)
    ]
    kept, rejected, _ = run("distil", asked, "synthesize.options.samples=2")
    assert kept
    assert all(row["messages"][-1]["content"] == CALL and row["gold"] == ASKED["gold"] for row in kept)
    assert all(row["provenance"]["judge"] == "verifier" for row in kept)
    assert {row["reason"] for row in rejected} == {"none_right", "bad_call"}
    assert not any("[Answer]" in body["messages"][-1]["content"] for body in endpoint.answered)


def test_a_null_gold_call_is_a_gold_call(run: Run, endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: "null"
    asked = {"tools": [WEATHER], "messages": [{"role": "user", "content": "Sing me a song"}], "gold": None}
    kept, _, _ = run("distil", [asked])
    assert kept[0]["gold"] is None
    assert kept[0]["provenance"]["judge"] == "verifier"


@pytest.mark.parametrize("verdict", ["Good.", "Score: 11", "Score: 0"])
def test_a_verdict_that_cannot_be_read_keeps_nothing(run: Run, endpoint: Endpoint, verdict: str) -> None:
    endpoint.answer = lambda body: verdict if "[Answer]" in body["messages"][-1]["content"] else "An answer."
    with pytest.raises(SystemExit, match="1 unjudged"):
        run("distil", [seed(1)])


def test_history_goes_to_the_teacher_and_into_the_row(run: Run, endpoint: Endpoint) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And now?"},
    ]
    kept, _, _ = run("distil", [{"messages": turns}], "synthesize.options.judge=none")
    assert kept[0]["messages"][:-1] == turns
    assert endpoint.answered[0]["messages"] == turns


# What holds for all


@pytest.mark.parametrize("method", sorted(METHODS))
def test_rows_say_where_they_come_from(run: Run, method: str) -> None:
    seeds = [seed(n, licence="cc-by-4.0", category="trivia") for n in range(8)]
    kept, _, manifest = run(method, seeds, *small(method))
    assert kept
    for row in kept:
        provenance = row["provenance"]
        assert provenance["method"] == method
        assert provenance["teacher"] == "tutor"
        assert provenance["teacher_licence"] == "mit"
        assert provenance["endpoint"] == "local"
        assert provenance["parents"]
        assert row["licence"] == "cc-by-4.0 AND mit"
        assert row["category"] == "trivia"
    assert len({row["id"] for row in kept}) == len(kept)
    assert manifest["teacher"] == "tutor"
    assert manifest["sha256"]
    assert "http" not in json.dumps(manifest)


def small(method: str) -> list[str]:
    return ["synthesize.options.instructions=8"] if method == "self-instruct" else []


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_result_does_not_depend_on_who_answers_first(
    run: Run, endpoint: Endpoint, tmp_path: Path, method: str
) -> None:
    seeds = [seed(n) for n in range(6)]
    first = run(method, seeds, "synthesize.teacher.concurrency=1", *small(method))
    (tmp_path / f"tmp/synthesize/{method}.journal.jsonl").unlink()

    def hurried(body: Body) -> str:
        time.sleep(random.Random(str(body)).random() / 50)
        return tutor(body)

    endpoint.answer = hurried
    assert run(method, seeds, "synthesize.teacher.concurrency=16", *small(method)) == first


def test_a_second_run_asks_nothing_and_writes_the_same_bytes(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    seeds = [seed(n) for n in range(6)]
    run("evol-instruct", seeds)
    before = {path: path.read_bytes() for path in (tmp_path / "raw").rglob("*.*")}
    asked = endpoint.asked
    run("evol-instruct", seeds)
    assert endpoint.asked == asked
    assert {path: path.read_bytes() for path in (tmp_path / "raw").rglob("*.*")} == before


def test_troubles_of_the_teacher_change_nothing(run: Run, endpoint: Endpoint, tmp_path: Path) -> None:
    seeds = [seed(n) for n in range(8)]
    calm = run("distil", seeds)
    (tmp_path / "tmp/synthesize/distil.journal.jsonl").unlink()
    troubles = [(429, {"Retry-After": "0.05"}, b""), (500, {}, b"x"), (200, {}, b'{"choices": 3}'), (0, {}, b""), SLOW]
    endpoint.times.clear()

    def fault(body: Body, attempt: int) -> Any:
        return troubles[body["seed"] % 5] if attempt == 0 and body["seed"] % 7 < 4 else None

    endpoint.fault = fault
    assert run("distil", seeds, "synthesize.teacher.timeout=0.5") == calm


def test_a_request_too_long_for_the_teacher_leaves_with_its_words(run: Run, endpoint: Endpoint) -> None:
    too_long: Fault = (400, {}, b'{"error": {"message": "context length exceeded"}}')
    endpoint.fault = lambda body, attempt: too_long if "7 guests" in body["messages"][-1]["content"] else None
    _, rejected, _ = run("distil", [seed(1), seed(7)])
    (row,) = [row for row in rejected if row["reason"] == "refused_request"]
    assert row["parents"] == ["seed-7"]
    assert "context length exceeded" in row["detail"]


def test_a_key_is_in_no_file_and_no_message(
    run: Run, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.key = "s3cret-of-mine"
    monkeypatch.setenv("TUTOR_KEY", endpoint.key)
    run("distil", [seed(1)], "synthesize.teacher.api_key_env=TUTOR_KEY")
    printed = capfd.readouterr()
    assert endpoint.key not in printed.out + printed.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert not [path for path in files if endpoint.key.encode() in path.read_bytes()]


def test_the_report_has_the_entry_with_which_ingest_reads_the_rows_and_no_rejected_one(
    run: Run, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.answer = lambda body: CALL if body["seed"] % 2 else "Rainy!"
    asked = [
        ASKED | {"id": f"call-{n}", "messages": [{"role": "user", "content": f"Weather in Paris for 3 days? #{n}"}]}
        for n in range(8)
    ]
    kept, rejected, manifest = run("distil", asked, "synthesize.options.samples=1")
    entry = capsys.readouterr().out.splitlines()[-1].strip().removeprefix("- ")
    shape = OmegaConf.structured(sources.Source)
    source = OmegaConf.to_object(OmegaConf.merge(shape, OmegaConf.create(f"source: {entry}").source))
    assert isinstance(source, sources.Source)
    assert source.sha256 == manifest["sha256"]
    assert source.licence == manifest["licence"] == "mit"
    rows = ingested(source)
    assert [row["messages"] for row in rows] == [row["messages"] for row in kept]
    assert all(row["gold"] == ASKED["gold"] for row in rows)
    # Seeds and rejected rows are where the README's glob does not take them in, which stops at a bad row.
    assert rejected
    assert [row["messages"] for row in ingested(replace(source, id="raw/*.jsonl", sha256=None), "fail")] == [
        row["messages"] for row in kept
    ]


def ingested(source: sources.Source, bad_rows: str = "reject") -> list[Row]:
    rules = sources.Rules(bad_rows=bad_rows, max_bytes=1 << 20, refusal="unknown")
    return [row for unit in sources.units([source], rules) for row in sources.read(unit, rules)]


@pytest.mark.slow
def test_killed_half_way_a_run_goes_on_and_pays_once(tmp_path: Path) -> None:
    seeds = [seed(n) for n in range(12)]
    endpoint = Endpoint(tutor)
    try:
        prepare(tmp_path, "evol-instruct", endpoint.url, seeds, "synthesize.teacher.concurrency=3")
        for number in (20, 45):
            kill_after(endpoint, tmp_path, number)
            assert not list((tmp_path / "raw").rglob("synthetic-*"))
        assert complete(tmp_path).returncode == 0
        result = outputs(tmp_path, "evol-instruct")
        repeated = [times for times in endpoint.times.values() if len(times) > 1]
        # Only what was under way when the process was killed is asked for again.
        assert 1 <= len(repeated) <= 2 * 3
        assert len(result[0]) + len(result[1]) == 12 * 4

        whole = tmp_path / "whole"
        prepare(whole, "evol-instruct", endpoint.url, seeds)
        assert complete(whole).returncode == 0
        assert outputs(whole, "evol-instruct") == result
    finally:
        endpoint.close()


def kill_after(endpoint: Endpoint, folder: Path, answers: int) -> None:
    """Start a run, let the endpoint give so many answers and no more, and SIGKILL it while it waits."""

    def stuck(body: Body) -> str:
        if len(endpoint.answered) >= answers:
            endpoint.hold.clear()
            time.sleep(0.5)
        return tutor(body)

    endpoint.answer = stuck
    process = subprocess.Popen(COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while endpoint.hold.is_set():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    endpoint.answer = tutor
    endpoint.hold.set()
    while endpoint.active:
        time.sleep(0.01)


COMMAND = [sys.executable, "-m", "commands.synthesize"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def complete(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        COMMAND, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_two_seeds_of_self_instruct_grow_out_of_public_ones(run: Run) -> None:
    data = os.environ.get("TEMPER_TEST_DATA")
    if not data:
        pytest.skip("TEMPER_TEST_DATA is not set: no seed tasks")
    tasks = list(records.read(Path(data) / "self_instruct/seed_tasks.jsonl"))
    kept, _, _ = run("self-instruct", tasks, "synthesize.options.instructions=20")
    ids = {task["id"] for task in tasks}
    assert len(kept) >= 20
    assert any(set(row["provenance"]["parents"]) & ids for row in kept)


def test_the_seeds_shipped_are_calls_that_every_method_can_grow_and_no_data() -> None:
    found = seeds.read(ROOT / SEEDS, None)
    assert len({seed.system for seed in found}) == 2, "self-instruct shows seeds of one system turn together"
    for seed in found:
        assert seed.has_gold
        assert seed.answer == calls.answer(seed.gold)
        assert calls.score(seed.answer, seed.tools, seed.gold).exact
        assert seed.carried["licence"] == "apache-2.0"
    globs = [file.read_text() for file in (ROOT / "conf/data").glob("*.yaml")]
    assert not any("raw/**" in text or "raw/seeds" in text for text in globs)


@pytest.mark.engine
def test_the_tiny_model_served_here_answers_the_seeds_shipped(tmp_path: Path) -> None:
    """Two layers write no calls: what is shown is that base, server, client and journal work together, and how it ends."""
    overrides = ["limit=3", "options.samples=2", "sampling.max_tokens=32"]
    chosen = ["model=tiny", "synthesize=distil", *(f"synthesize.{override}" for override in overrides)]
    (tmp_path / "params.yaml").write_text(compose_all(chosen))
    shutil.copytree(ROOT / "raw/seeds", tmp_path / "raw/seeds")
    base = [sys.executable, "-m", "temper.envs", "run", "train", "-m", "scripts.base"]
    subprocess.run(base, cwd=tmp_path, env=environment(), check=True, timeout=120)
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    replies = [entry["reply"] for entry in records.read(tmp_path / "tmp/synthesize/distil.journal.jsonl")]
    assert len(replies) == 6, done.stderr[-3000:]
    assert all(reply["failure"] is None and 0 < reply["completion_tokens"] <= 32 for reply in replies)
    rejected = list(records.read(tmp_path / "raw/rejected/synthetic-distil.jsonl"))
    assert {row["reason"] for row in rejected} <= {"truncated", "bad_call", "none_right", "empty"}
    if done.returncode:
        assert done.stderr.strip().splitlines()[-1].startswith("distil: no row stays of 3 (")
    else:
        assert outputs(tmp_path, "distil")[2]["seen"] == 3


@pytest.mark.engine
def test_the_server_of_this_repository_is_a_teacher(tmp_path: Path) -> None:
    larger = MODEL.replace("max_position_embeddings=512", "max_position_embeddings=4096")
    model = tmp_path / "models/tiny"
    in_serve = [sys.executable, "-m", "temper.envs", "run", "serve", "-c"]
    subprocess.run(
        [*in_serve, f"import torch\ntorch.manual_seed(0)\n{larger}", str(model)], check=True, env=environment()
    )
    records.write(tmp_path / "raw/seeds/seeds.jsonl", [seed(n) for n in range(16)])
    overrides = [
        "synthesize.teacher.model=models/tiny",
        "synthesize.teacher.dtype=float32",
        "synthesize.teacher.licence=cc0-1.0",
        "synthesize.sampling.max_tokens=256",
        "synthesize.options.judge=none",
        "synthesize.options.samples=2",
    ]
    settings = OmegaConf.create(composed("distil", "base"))
    settings.merge_with_dotlist(overrides)
    (tmp_path / "params.yaml").write_text(OmegaConf.to_yaml(settings))
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept, rejected, manifest = outputs(tmp_path, "distil")
    assert manifest["seen"] == 16
    assert kept, "one layer of random weights ends about half of its answers"
    assert {row["reason"] for row in rejected} <= {"truncated", "empty", "encoding", "no_content"}
    assert manifest["requests"] == 32
    assert 32 <= manifest["completion_tokens"] <= 32 * 256
    assert manifest["prompt_tokens"] > 32
    assert len(manifest["teacher_sha256"]) == 64
    for row in kept:
        assert row["provenance"]["teacher"] == "tiny"
        assert row["provenance"]["endpoint"] == "local"
        assert row["provenance"]["parents"][0].startswith("seed-")
