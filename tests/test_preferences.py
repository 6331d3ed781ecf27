"""The preference stage around its sampler: what is kept, what is rejected and why, and its errors; and once with real engines."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands.compose import composed
from scripts import preferences
from temper import answers, calls, judge, lengths, pairs, records
from temper.records import Row
from temper.vllm import Answer
from tests.test_judge import longer, saying
from tests.test_server import MODEL
from tests.test_teacher import BROKEN, Body, Endpoint

ROOT = Path(__file__).resolve().parent.parent
TOOL = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
RIGHT, WRONG = '{"name": "add", "arguments": {"a": 1}}', "null"
GOLD = {"name": "add", "arguments": {"a": [1]}}
Sampled = dict[str, list[str]]
"""The policy's answers by the id of a row."""
Run = Callable[..., Row]


@cache
def conf(*overrides: str) -> str:
    return composed(list(overrides))


def prepare(folder: Path, *overrides: str) -> None:
    """The graph, and params.yaml; an override of a value starts with preferences., of a group it does not."""
    groups = [one for one in overrides if not one.startswith("preferences.")]
    settings = OmegaConf.create(conf(*groups))
    values = ["preferences.gold_when_none_right=false", *(one for one in overrides if one not in groups)]
    settings.merge_with_dotlist(values)
    (folder / "params.yaml").write_text(OmegaConf.to_yaml(settings))
    shutil.copy(ROOT / "dvc.yaml", folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage over these prompts with these answers in the sampler's place; its metrics, which hold the funnel."""

    def started(prompts: list[Row], sampled: Sampled | None, *overrides: str, train: list[Row] | None = None) -> Row:
        def given(policy: Path, rows: list[Row], *others: Any) -> list[list[Answer]]:
            assert not rows or sampled is not None, "vLLM was started"
            return [[Answer(text, False) for text in (sampled or {})[row["id"]]] for row in rows]

        monkeypatch.chdir(ROOT)
        prepare(tmp_path, *overrides)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
        monkeypatch.setattr(answers, "sampled", given)
        monkeypatch.setattr(lengths, "counter", words)
        monkeypatch.setattr(sys, "argv", ["preferences", "sft"])
        records.write(preferences.PROMPTS, prompts)
        records.write(preferences.TRAIN, train or [])
        preferences.main()
        return outputs()

    return started


def words(_: Path) -> lengths.Count:
    """Stands in for the policy's tokenizer, which a test without models/sft has not."""
    return lambda rows: [max(len(said(row["messages"] + row[side]).split()) for side in pairs.SIDES) for row in rows]


def said(turns: list[Row]) -> str:
    return " ".join(turn["content"] for turn in turns)


def outputs() -> Row:
    """The metrics, if they say what is in the files."""
    values = dict(json.loads(Path("reports/training/preferences.json").read_text()))
    reasons = Counter(f"rejected_{row['reason']}" for row in records.read(preferences.REJECTED))
    assert {name: count for name, count in values.items() if name.startswith("rejected_")} == reasons
    assert values["kept"] == len(kept())
    assert values["seen"] == values["kept"] + reasons.total()
    return values


def kept() -> list[Row]:
    return list(records.read("data/preferences.jsonl"))


def rejected() -> dict[str, str]:
    return {one["id"]: one["reason"] for one in records.read(preferences.REJECTED)}


def row(name: str, gold: Row | None = GOLD) -> Row:
    turns = [("system", calls.system_prompt([TOOL])), ("user", f"add {name}"), ("assistant", calls.answer(gold))]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": name, "category": "simple_python", "messages": messages, "tools": [TOOL], "gold": gold}


def rows(of: list[list[str]], golds: list[Row | None] | None = None) -> tuple[list[Row], Sampled]:
    """A call row for each list of answers, and the answers by row."""
    golds = golds or [GOLD] * len(of)
    return [row(f"row{n}", gold) for n, gold in enumerate(golds)], {f"row{n}": texts for n, texts in enumerate(of)}


def other(kind: str, name: str) -> Row:
    """A row of a kind that no verifier judges."""
    question, *answers = ({"role": role, "content": f"{role} {name}"} for role in ("user", "assistant", "assistant"))
    parts: dict[str, Row] = {
        "text": {"text": name},
        "chat": {"messages": [question, answers[0]], "tools": []},
        "preference": {
            "messages": [question],
            "tools": [],
            "chosen": answers[:1],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
    }
    return {"id": name, "kind": kind, "category": kind, **parts[kind]}


def test_every_prompt_is_kept_or_rejected_with_its_reason(run: Run) -> None:
    values = run(*rows([[RIGHT, WRONG], [RIGHT, RIGHT], [WRONG, WRONG]]))
    assert (values["seen"], values["kept"], values["prompts"]) == (3, 1, 3)
    assert rejected() == {"row1": "all_right", "row2": "all_wrong"}
    (pair,) = kept()
    assert pair["chosen"][0]["content"] == RIGHT
    assert pair["rejected"][0]["content"] == WRONG


def test_pairs_that_would_unlearn_an_answer_leave_with_their_reason(run: Run) -> None:
    values = run(*rows([[RIGHT, WRONG]] * 3, golds=[GOLD, GOLD, None]))
    assert (values["pairs"], values["rejected_unbalanced"]) == (2, 1)
    (left,) = records.read(preferences.REJECTED)
    assert (left["prompt_id"], left["reason"], pairs.answer(left, "rejected")) == ("row1", "unbalanced", WRONG)


def test_preference_rows_are_pairs_and_start_no_engine(run: Run) -> None:
    train = [other("preference", "b"), other("chat", "c"), other("preference", "b")]
    values = run([other("preference", "a")], None, train=train)
    assert [(pair["prompt_id"], pair["prompt"][-1]["content"]) for pair in kept()] == [("a", "user a"), ("b", "user b")]
    assert [pairs.answer(pair, "chosen") for pair in kept()] == ["assistant a", "assistant b"]
    assert [pairs.answer(pair, "rejected") for pair in kept()] == ["no", "no"]
    assert (values["seen"], values["kept"], values["pairs"], values["pairs_given"]) == (2, 2, 2, 2)
    assert values["longer_chosen"] == 1


def test_other_prompts_leave_with_their_reason_beside_pairs_of_both_kinds(run: Run) -> None:
    prompts = [other("chat", "c"), row("row0"), other("text", "t"), other("preference", "a")]
    values = run(prompts, {"row0": [RIGHT, WRONG]})
    assert [pair["prompt_id"] for pair in kept()] == ["row0", "a"]
    assert (values["seen"], values["kept"]) == (4, 2)
    assert rejected() == {"c": "not_verifiable", "t": "no_prompt"}


def test_pairs_of_files_alone_sample_nothing(run: Run) -> None:
    run([row("row0"), other("preference", "a")], None, "preferences=files")
    assert rejected() == {"row0": "not_sampled"}
    run([row("row0"), other("preference", "a")], {"row0": [RIGHT, WRONG]}, "preferences.pairs=verifier")
    assert rejected() == {"a": "not_asked_for"}


def test_a_pair_that_two_rows_hold_is_kept_once_and_one_that_they_contradict_never(run: Run) -> None:
    twin, rival = other("preference", "a") | {"id": "twin"}, other("preference", "b") | {"id": "rival"}
    rival |= {"chosen": rival["rejected"], "rejected": rival["chosen"]}
    values = run([other("preference", name) for name in "abc"] + [twin, rival], None)
    assert rejected() == {"twin-0": "duplicate", "b-0": "contradicted", "rival-0": "contradicted"}
    assert values["kept"] == 2


def test_a_pair_that_training_would_cut_leaves_whichever_side_is_long(run: Run) -> None:
    longest = other("preference", "a") | {"rejected": [{"role": "assistant", "content": "no " * 19}]}
    whole = other("preference", "b") | {"rejected": [{"role": "assistant", "content": "no " * 18}]}
    values = run([longest, whole], None, "preferences.max_length=20")
    assert (rejected(), values["kept"]) == ({"a-0": "too_long"}, 1)
    with pytest.raises(SystemExit, match=r"\(1 too long\): raise dpo\.max_length, which preferences\.max_length"):
        run([longest], None, "preferences.max_length=20")


def test_a_pair_that_is_too_long_unbalances_no_other(run: Run) -> None:
    prompts, sampled = rows([[RIGHT, WRONG]] * 3, golds=[GOLD, None, None])
    prompts[1]["messages"][1]["content"] = "add " * 400
    run(prompts, sampled)
    assert rejected() == {"row1-0": "too_long"}


def test_a_length_bias_is_balanced_away_when_asked_to(run: Run) -> None:
    prompts, sampled = rows([[RIGHT, WRONG]] * 4)
    assert run(prompts, sampled)["longer_chosen"] == 1
    with pytest.raises(SystemExit, match=r"4 length bias.*preferences\.length\.max_share"):
        run(prompts, sampled, "preferences.length.max_share=0.5")
    assert (
        run(prompts, sampled | {"row0": [RIGHT, "x"]}, "preferences.length.max_ratio=20")["rejected_length_ratio"] == 1
    )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint(longer)
    yield served
    served.close()


def judging(endpoint: Endpoint, *overrides: str) -> list[str]:
    at = ["base_url=" + endpoint.url, "model=tutor", "licence=mit", "backoff=0.01"]
    own = [f"preferences.judge.endpoint.{value}" for value in at]
    return ["preferences=judge", *own, "preferences.length.max_share=null", *overrides]


def test_a_judge_makes_pairs_of_prompts_without_a_gold_call(run: Run, endpoint: Endpoint) -> None:
    prompts = [row("row0"), *(other("chat", name) for name in "abc"), other("preference", "p")]
    sampled = {"row0": [RIGHT, WRONG], "a": ["short", "much longer", "short"], "b": ["same", "same"], "c": ["ab", "cd"]}
    values = run(prompts, sampled, *judging(endpoint))
    assert [(pair["prompt_id"], pair["chosen_from"]) for pair in kept()] == [
        ("row0", "sample"),
        ("a", "judge"),
        ("p", "data"),
    ]
    assert pairs.answer(kept()[1], "chosen") == "much longer"
    assert kept()[1]["verdicts"] == [[0, 1, "B", "A"]]
    assert rejected() == {"b": "one_answer", "c": "tie"}
    assert (values["judge_prompts_decided"], values["judge_duplicates"], values["judge_requests"]) == (1, 2, 4)
    assert (values["judge_model"], values["judge_endpoint"], values["pairs_judged"]) == ("tutor", "local", 1)
    assert endpoint.url not in Path("reports/training/preferences.json").read_text()


def test_without_the_verifier_the_judge_compares_calls_too(run: Run, endpoint: Endpoint) -> None:
    run(*rows([[RIGHT, WRONG]]), *judging(endpoint, "preferences.pairs=judge"))
    assert [pair["chosen_from"] for pair in kept()] == ["judge"]
    assert all("Tools:\nadd(a: integer)" in body["messages"][0]["content"] for body in endpoint.answered)


def test_a_repeated_run_asks_nothing_and_writes_the_same(run: Run, endpoint: Endpoint) -> None:
    endpoint.fault = lambda body, attempt: BROKEN if attempt == 0 else None
    prompts, sampled = [other("chat", name) for name in "ab"], {"a": ["x", "xx", "xxx"], "b": ["y", "yy"]}
    run(prompts, sampled, *judging(endpoint))
    files = [Path("data/preferences.jsonl"), preferences.REJECTED, Path("reports/training/preferences.json")]
    before, asked = [file.read_bytes() for file in files], endpoint.asked
    assert asked == 2 * (6 + 2)
    run(prompts, sampled, *judging(endpoint))
    assert endpoint.asked == asked
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda body: saying("A"), ["1 tie", "preferences.judge.rubric"]),
        (lambda body: "Both are\nfine.", ["1 invalid verdict", "response_format", "(Both are fine.)"]),
    ],
    ids=["first", "garbage"],
)
def test_a_judge_without_a_decision_leaves_its_verdicts_and_a_line(
    run: Run, endpoint: Endpoint, answer: Callable[[Body], str], named: list[str]
) -> None:
    endpoint.answer = answer
    with pytest.raises(SystemExit) as error:
        run([other("chat", "a")], {"a": ["x", "xx"]}, *judging(endpoint))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in named), error.value
    (left,) = records.read(preferences.REJECTED)
    assert (len(left["answers"]), len(left["verdicts"])) == (2, 1)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["preferences=judge"], ["preferences.judge.endpoint.model is empty", "base_url"]),
        (["preferences.pairs=[verifier,judge]"], ["preferences.judge is null", "preferences=judge"]),
        (["preferences.pairs=judges"], ["preferences.pairs is 'judges'", "files, verifier, judge"]),
        (["preferences.pairs=[]"], ["preferences.pairs is []"]),
        (["preferences.length.max_ratio=0"], ["preferences.length.max_ratio"]),
    ],
    ids=["no endpoint", "no judge", "unknown", "none", "ratio"],
)
def test_a_setting_without_sense_is_a_line_before_anything_is_sampled(
    run: Run, overrides: list[str], named: list[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run([other("chat", "a"), row("row0")], None, *overrides)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in named), error.value


def test_an_endpoint_that_is_down_is_a_line_before_anything_is_sampled(run: Run, endpoint: Endpoint) -> None:
    endpoint.close()
    with pytest.raises(SystemExit, match=r"no answer .*preferences\.judge\.endpoint\.base_url"):
        run([other("chat", "a")], None, *judging(endpoint))


def test_prompts_that_make_no_pair_at_all_end_in_a_line(run: Run) -> None:
    with pytest.raises(
        SystemExit, match=r"no pair out of 2 prompts \(1 no prompt, 1 not verifiable\): only rows with a gold"
    ):
        run([other("chat", "c"), other("text", "t")], None, train=[other("chat", "d")])


def test_the_limit_is_in_prompts(run: Run) -> None:
    assert run(*rows([[RIGHT, WRONG]] * 4), "preferences.limit=3")["prompts"] == 3


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ([], ["data/mix/preferences.jsonl", "split.preferences"]),
        ([[RIGHT, RIGHT]], ["1 all right", "preferences.temperature"]),
        ([[WRONG, WRONG]], ["1 all wrong", "gold_when_none_right"]),
    ],
    ids=["empty", "all right", "all wrong"],
)
def test_nothing_to_prefer_says_what_to_change(run: Run, found: list[list[str]], named: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*rows(found))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in named)
    assert not Path("data/preferences.jsonl").exists()


def test_a_prompt_keeps_its_seed_whatever_its_neighbours() -> None:
    assert answers.seed("ab", 17) == answers.seed("ab", 17)
    assert len({answers.seed(str(number), 17) for number in range(1000)}) == 1000
    assert answers.seed("ab", 17) != answers.seed("ab", 18)
    assert all(0 <= answers.seed(str(number), 3) < 2**31 for number in range(1000))


# Random weights under a JSON schema write spaces for ever; among whole verdicts they have to choose.
VERDICTS = json.dumps([saying(word) for word in judge.SWAPPED])
CHOICE = f"{{response_format: null, structured_outputs: {{choice: {VERDICTS}}}}}"
STAGE = [sys.executable, "-m", "temper.envs", "run", "serve", "-m", "scripts.preferences", "base"]


@pytest.mark.engine
def test_the_policy_is_sampled_and_then_the_server_of_this_repository_judges(tmp_path: Path) -> None:
    """One layer of random weights has no opinion: what is shown is that sampler, server, client and journal work together."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TEMPER_SCRATCH": str(tmp_path / "scratch")}
    larger = MODEL.replace("max_position_embeddings=512", "max_position_embeddings=4096")
    code = f"import torch\ntorch.manual_seed(0)\n{larger}"
    create = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", code, str(tmp_path / "models/base")]
    subprocess.run(create, check=True, env=environment)
    small = ["samples=4", "max_tokens=256", "judge.answers=2", "judge.max_tokens=64", "judge.endpoint.dtype=float32"]
    served = ["preferences=judge", "synthesize/teacher@preferences.judge.endpoint=base"]
    records.write(tmp_path / preferences.PROMPTS, [other("chat", name) for name in "abcd"] + [other("preference", "p")])
    records.write(tmp_path / preferences.TRAIN, [])

    judgments = []
    for extra in ("{}", CHOICE):
        changed = [*(f"preferences.{value}" for value in small), f"preferences.judge.endpoint.extra={extra}"]
        prepare(tmp_path, *served, *changed, "preferences.length.max_share=null")
        done = subprocess.run(
            STAGE, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        judgments.append([entry["reply"]["text"] for entry in records.read(tmp_path / judge.JOURNAL)])
    assert judgments[0]
    assert all(text.lstrip().startswith("{") for text in judgments[0]), "the server holds answers to the form asked for"
    assert judgments[1][: len(judgments[0])] == judgments[0]
    assert len(judgments[1]) == 2 * len(judgments[0]), "the policy answers the same twice"
    values = json.loads((tmp_path / "reports/training/preferences.json").read_text())
    assert (values["judge_model"], values["judge_endpoint"], values["judge_samples"]) == ("base", "local", 16)
    assert values["judge_requests"] == values["judge_verdicts"] == len(judgments[0])
    assert values["judge_verdicts_invalid"] == 0
    assert values["seen"] == values["kept"] + sum(
        count for name, count in values.items() if name.startswith("rejected_")
    )
    assert not list((tmp_path / "scratch").glob("*"))
