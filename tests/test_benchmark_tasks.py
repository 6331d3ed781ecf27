"""Public benchmarks by the harness's own definitions, over rows of files: what is asked, how it is scored, what is recorded."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.compose import composed
from scripts.evaluate import Evaluate
from temper import benchmark_scores, benchmark_tasks, params, records
from temper.benchmark_tasks import BenchmarkTask, Loaded
from temper.published import Published
from temper.records import Row

DATA = Path(os.environ.get("TEMPER_TEST_DATA", "/nonexistent"))
PRESETS = ("default", "tasks", "benchmarks", "hub")


def file(path: Path) -> Published:
    return Published(path.name, "file", None, None, hashlib.sha256(path.read_bytes()).hexdigest(), str(path), "mit")


def made(path: Path, rows: list[Row], **changes: Any) -> BenchmarkTask:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: Row = {"name": "gsm8k", "definition": "gsm8k/gsm8k.yaml", "fewshot": 0, "chat": True, "limit": None}
    return BenchmarkTask(**settings | {"max_tokens": 8, "items": file(path), "shots": None} | changes)


ROWS = [{"question": f"{number} + 1?", "answer": f"#### {number + 1}"} for number in range(10)]


def test_rows_are_spread_and_examples_need_their_own(tmp_path: Path) -> None:
    (one,) = benchmark_tasks.loaded([made(tmp_path / "a.jsonl", ROWS, limit=2)])
    assert [row["question"] for row in one.items] == ["0 + 1?", "5 + 1?"]
    shots = file(tmp_path / "a.jsonl")
    (one,) = benchmark_tasks.loaded([made(tmp_path / "a.jsonl", ROWS, fewshot=2, shots=shots)])
    assert len(one.shots) == 10
    with pytest.raises(SystemExit, match=r"'gsm8k': 5 examples, and nothing to take them from: .*conf/evaluate"):
        benchmark_tasks.loaded([made(tmp_path / "a.jsonl", ROWS, fewshot=5)])
    with pytest.raises(SystemExit, match=r"two of one name"):
        benchmark_tasks.loaded([made(tmp_path / "a.jsonl", ROWS)] * 2)


def sample(filter_name: str, **scores: Any) -> Row:
    return {"benchmark": "b", "task": "b", "item": 0, "filter": filter_name, "scores": scores}


def test_each_metric_has_its_interval_by_filter() -> None:
    found = [sample("none", acc=1.0, mass=0.25), sample("none", acc=0.0, mass=0.75)]
    found += [sample("strict-match", exact_match=1.0), sample("strict-match", exact_match=1.0)]
    found += [sample("verified", inst=[True, False]), sample("verified", inst=[True])]
    values = benchmark_scores.summary(found, 0.95, 17)
    assert (values["b_acc"], values["b_mass"], values["b_exact_match_strict_match"]) == (0.5, 0.5, 1.0)
    assert values["b_inst_verified"] == pytest.approx(2 / 3)
    assert values["b_n"] == 2
    assert values["b_acc_low"] == pytest.approx(0.0945, abs=1e-3)  # Wilson's
    assert values["b_mass_low"] == 0.25  # a bootstrap's


def test_scores_by_item_have_the_metric_as_their_mean() -> None:
    found = [sample("none", acc=1.0), sample("none", acc=0.0), sample("verified", inst=[True, False])]
    found.append(sample("verified", inst=[True, True, True, False]))
    found = [row | {"item": number} for number, row in enumerate(found)]
    by_item, values = benchmark_scores.by_item(found), benchmark_scores.summary(found, 0.95, 17)
    assert by_item["b_acc"] == {("b", "0"): 1.0, ("b", "1"): 0.0}
    assert (
        sum(by_item["b_inst_verified"].values()) / 2 == pytest.approx(values["b_inst_verified"]) == pytest.approx(4 / 6)
    )


def test_a_metric_that_is_better_the_lower_it_is_is_refused() -> None:
    listed: list[Row] = [{"metric": "acc"}, {"metric": "word_perplexity", "higher_is_better": False}]
    with pytest.raises(SystemExit, match=r"'wikitext': word_perplexity is better the lower it is: .*conf/evaluate"):
        benchmark_tasks.check_metrics("wikitext", listed)
    benchmark_tasks.check_metrics("gsm8k", [{"metric": "exact_match", "higher_is_better": True}, {"metric": "acc"}])


def test_presets_fit_the_stage_and_pin_what_they_read(tmp_path: Path) -> None:
    for preset in PRESETS:
        (tmp_path / "params.yaml").write_text(composed([f"evaluate={preset}"]))
        cfg = params.load("evaluate", Evaluate, tmp_path / "params.yaml")
        for one in cfg.benchmarks:
            for rows in filter(None, (one.items, one.shots)):
                assert len(rows.revision or "") == 40 if rows.kind == "hub" else len(rows.sha256 or "") == 64
            assert bool(one.shots) == bool(one.fewshot)
    (tmp_path / "params.yaml").write_text(composed(["evaluate=hub"]))
    names = [one.name for one in params.load("evaluate", Evaluate, tmp_path / "params.yaml").benchmarks]
    assert names == ["mmlu_pro", "gsm8k", "ifeval", "hellaswag", "arc_challenge", "truthfulqa"]


# A made-up row of each benchmark that is published on the Hub alone, in its columns.
ENDINGS = [f"end {number}." for number in range(4)]
COOKING = {
    "activity_label": "Cooking",
    "ctx_a": "A man cuts an onion.",
    "ctx_b": "he",
    "endings": ENDINGS,
    "label": "2",
}
HUB: dict[str, list[Row]] = {
    "hellaswag/hellaswag.yaml": [COOKING],
    "arc/arc_challenge.yaml": [
        {
            "id": "1",
            "question": "What is hot?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    ],
    "truthfulqa/truthfulqa_mc2.yaml": [
        {
            "question": "Is the earth flat?",
            "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["No", "It is round", "Yes"], "labels": [1, 1, 0]},
        }
    ],
}

# The harness's definitions on our rows, with a model that says what it is told and finds the shorter choice the likelier.
RUN = """
import json, os, sys, tempfile
from pathlib import Path

from temper import benchmark_scores, benchmark_tasks, ifeval
from temper.benchmark_tasks import BenchmarkTask
from temper.published import Published

os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR", HF_DATASETS_CACHE=sys.argv[2])
from lm_eval.api.model import LM

from temper import harness


class Told(LM):
    def __init__(self, said):
        super().__init__()
        self.said, self.asked = said, []

    @property
    def tokenizer_name(self):
        return "none"

    def apply_chat_template(self, chat, add_generation_prompt=True):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat)

    def generate_until(self, requests):
        self.asked += [request.args[0] for request in requests]
        return [self.said] * len(requests)

    def loglikelihood(self, requests):
        self.asked += [request.args[0] for request in requests]
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


found = []
for one in json.loads(Path(sys.argv[1]).read_text()):
    sources = {key: one[key] and Published(**one[key]) for key in ("items", "shots")}
    task = BenchmarkTask(**{key: value for key, value in one.items() if key != "said"} | sources)
    (loaded,) = benchmark_tasks.loaded([task])
    model = Told(one["said"])
    with tempfile.TemporaryDirectory() as folder, ifeval.Scorer() as scorer:
        parts = benchmark_tasks.definitions(loaded, Path(folder), "<s>", scorer)
        samples = list(benchmark_tasks.samples(loaded, harness._simple(model, parts, 17, task.chat)))
        record = benchmark_tasks.record(loaded, parts)
    found.append({"values": benchmark_scores.summary(samples, 0.95, 17), "record": record, "first": model.asked[0]})
print("FOUND", json.dumps(found))
"""


def ran(folder: Path, *tasks: tuple[BenchmarkTask, str]) -> list[Row]:
    from dataclasses import asdict

    asked = folder / "tasks.json"
    asked.write_text(json.dumps([asdict(task) | {"said": said} for task, said in tasks]))
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", RUN, str(asked), str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Row] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    return found


@pytest.mark.engine
@pytest.mark.skipif(not DATA.is_dir(), reason="TEMPER_TEST_DATA names no folder of data sets")
def test_the_harness_scores_published_rows_of_files(tmp_path: Path) -> None:
    gsm8k, train = (file(DATA / f"gsm8k/{name}.jsonl") for name in ("test", "train"))
    mmlu, instructions = file(DATA / "mmlu_pro/mmlu_pro_test.jsonl.gz"), file(DATA / "ifeval/input_data.jsonl")
    shot = BenchmarkTask("gsm8k", "gsm8k/gsm8k.yaml", 3, True, 8, 64, gsm8k, train)
    subjects = BenchmarkTask("mmlu_pro", "mmlu_pro/mmlu_pro_*.yaml", 0, False, 60, 64, mmlu, None)
    verified = BenchmarkTask("ifeval", "ifeval/ifeval.yaml", 0, True, None, 64, instructions, None)
    answer = json.loads(next((DATA / "gsm8k/test.jsonl").open()))["answer"].split()[-1]
    found = ran(
        tmp_path, (shot, f"So it is #### {answer}"), (subjects, "The answer is (A)."), (verified, "no commas here")
    )
    assert found[0]["values"]["gsm8k_n"] == 8
    assert found[0]["values"]["gsm8k_exact_match_strict_match"] >= 1 / 8
    assert found[0]["first"].count("Question:") == 4 and found[0]["first"].startswith("<user>")
    assert found[0]["record"]["versions"] == {"gsm8k": "3.0"}
    assert found[1]["values"]["mmlu_pro_n"] == 60
    assert 0 < found[1]["values"]["mmlu_pro_exact_match_custom_extract"] < 0.5
    assert found[1]["first"].startswith("<s>The following are multiple choice questions")
    assert len(found[1]["record"]["versions"]) == 14
    values = found[2]["values"]
    assert values["ifeval_n"] == 541
    assert 0 < values["ifeval_prompt_level_strict_acc"] <= values["ifeval_inst_level_strict_acc"] < 1
    assert values["ifeval_inst_level_strict_acc"] <= values["ifeval_inst_level_loose_acc"]
    assert str(tmp_path) not in yaml.safe_dump([one["record"]["versions"] for one in found])


@pytest.mark.engine
def test_the_harness_scores_rows_in_the_columns_of_the_hub(tmp_path: Path) -> None:
    tasks = []
    for number, (definition, rows) in enumerate(HUB.items()):
        path = tmp_path / f"{number}.jsonl"
        records.write(path, rows)
        tasks.append((BenchmarkTask(f"b{number}", definition, 0, False, None, None, file(path), None), ""))
    found = [one["values"] for one in ran(tmp_path, *tasks)]
    assert {"b0_acc", "b0_acc_norm"} <= found[0].keys()
    assert found[1]["b1_acc"] == 0.0  # the shorter answer, ice, is the likelier one
    assert 0.5 < found[2]["b2_acc"] < 1  # of the probability, most is of the shortest right answer


def test_a_record_tells_what_was_asked_and_not_where(tmp_path: Path) -> None:
    (one,) = benchmark_tasks.loaded([made(tmp_path / "a.jsonl", ROWS, limit=3)])
    parts: list[Row] = [
        {"task": "gsm8k", "metadata": {"version": 3.0}, "output_type": "generate_until", "process_docs": len}
    ]
    recorded = benchmark_tasks.record(one, parts)
    assert (recorded["versions"], recorded["rows"], recorded["fewshot"]) == ({"gsm8k": "3.0"}, 3, 0)
    assert recorded["rows_sha256"] != benchmark_tasks.record(Loaded(one.task, one.items[:2], []), parts)["rows_sha256"]
    yaml.safe_dump(recorded)
