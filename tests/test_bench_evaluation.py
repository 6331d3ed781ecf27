"""The arithmetic of `make bench-eval`, that its planted regressions are what they say, and that its reference is one of its own."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evaluation, regressions
from benchmarks import openness as rules
from temper import gate, measured, metrics, openness, recipe, records
from temper.records import Row
from tests.test_gate import NULLS, RELEASE, ROWS, run, scored  # noqa: F401  `run` is a fixture

Found = tuple[list[Row], list[Row], dict[str, list[Row]]]


@pytest.fixture
def trained(run: Path) -> Path:  # noqa: F811
    """A run whose rows have ids, categories and every score, as `evaluate` writes them."""
    for name in ("base", "sft", RELEASE):
        for suffix in ("", "-golden"):
            path = Path(f"data/evaluate/{name}{suffix}.jsonl")
            more = {"category": "simple", "abstain": True}
            records.write(path, [row | more for row in records.read(path)])
    return run


def test_a_part_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def openness_part(arguments: argparse.Namespace) -> dict[str, Any]:
        calls.append(arguments.files)
        return {"openness_differing": 0}

    monkeypatch.setattr(evaluation, "OUT", tmp_path / "evaluation.json")
    monkeypatch.setitem(evaluation.PARTS, "openness", openness_part)
    metrics.write(tmp_path / "evaluation.json", {"gate_missed": 0, "openness_old": 1})
    for files in ("9", "9", "8"):
        monkeypatch.setattr(sys, "argv", ["evaluation", "--parts", "openness", "--files", files])
        evaluation.main()
    values = metrics.read(tmp_path / "evaluation.json")
    assert calls == [9, 8]
    assert "openness: measured already" in capsys.readouterr().out
    assert (values["gate_missed"], values["openness_differing"], values["openness_differing_target"]) == (0, 0, 0)
    assert "openness_old" not in values
    assert re.fullmatch("[0-9a-f]{12}(-dirty)?", values["openness_code"])


def logged(folder: Path, task: str, samples: list[Row]) -> None:
    records.write(folder / f"out/models__dpo/samples_{task}_2026-01-01.jsonl", samples)


def test_scores_by_hand_are_compared_row_by_row(tmp_path: Path) -> None:
    row = {"id": "a", "exact": True, "valid_json": True, "argument_f1": 1.0, "abstain": True, "output": "null"}
    chose = row | {"id": "b", "choose": True, "choose_norm": False}
    records.write(tmp_path / "data/evaluate/dpo.jsonl", [row, chose])
    records.write(tmp_path / "data/evaluate/dpo-golden.jsonl", [])
    records.write(
        tmp_path / "data/evaluate/dpo-likelihoods.jsonl",
        [{"task": task, "id": "a", "bits": 2.0, "bytes": 4} for task in ("domain", "general")],
    )
    said = {"doc": {"id": "a"}, "exact": 1.0, "valid_json": 1.0, "argument_f1": 1.0, "filtered_resps": ["null"]}
    logged(tmp_path, "call", [said, said | {"doc": {"id": "b"}}])
    logged(tmp_path, "abstain", [{"doc": {"id": id}, "acc": 1.0} for id in "ab"])
    logged(tmp_path, "choose", [{"doc": {"id": "b"}, "acc": 1.0, "acc_norm": 0.0}])
    for task in ("domain", "general"):
        logged(tmp_path, task, [{"doc": {"id": "a"}, "bits_per_byte": [-2.0 * math.log(2), 4]}])
    assert set(evaluation.answers_apart(tmp_path, "dpo")) == {0.0}
    assert list(evaluation.likelihoods_apart(tmp_path, "dpo")) == [0, 0, 0, 0]
    logged(tmp_path, "call", [said | {"argument_f1": 0.5, "filtered_resps": ["nul"]}, said | {"doc": {"id": "b"}}])
    assert sorted(evaluation.answers_apart(tmp_path, "dpo"))[-2:] == [0.5, 1.0]
    logged(tmp_path, "general", [{"doc": {"id": "b"}, "bits_per_byte": [-1.0, 4]}])
    with pytest.raises(SystemExit, match="general: other rows were asked: 2 of one side alone"):
        list(evaluation.likelihoods_apart(tmp_path, "dpo"))


def test_the_engine_s_arguments_are_written_as_a_command_line_takes_them() -> None:
    assert evaluation.pairs({"dtype": "bfloat16", "enforce_eager": True, "seed": 17}) == [
        "dtype=bfloat16",
        "enforce_eager=true",
        "seed=17",
    ]


PEERS = """
import runpy
from benchmarks import evaluation_tasks

def shown(*_, **__):
    from lm_eval.models.huggingface import HFLM
    from vllm.platforms import current_platform

    print(HFLM.__name__, current_platform.device_type)

runpy.run_module = shown
evaluation_tasks.run(["--model", "vllm"])
"""


@pytest.mark.engine
def test_lm_eval_by_hand_finds_what_each_of_its_backends_needs(tmp_path: Path) -> None:
    evaluation.borrow(tmp_path)
    found = os.environ | {"PYTHONPATH": f"{evaluation.REPOSITORY}:{tmp_path}"}
    command = [sys.executable, "-m", "temper.envs", "run", "serve", "-c", PEERS]
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    backend, device = done.stdout.split()[-2:]
    assert backend == "HFLM"
    assert device in ("cpu", "cuda")


def test_a_model_against_itself_is_told_as_often_better_as_the_verdicts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SPREADS", (0.4,))
    said = iter([["better", "worse"], ["no difference"], ["worse"], ["no difference"]])
    monkeypatch.setattr(evaluation, "matrix", lambda _: next(said))
    monkeypatch.setattr(evaluation, "seeded", lambda *_: "no difference")
    values = evaluation.verdicts(argparse.Namespace(draws=4))
    assert (values["verdicts_matrix_better"], values["verdicts_matrix_worse"]) == (0.25, 0.5)
    assert (values["verdicts_seeds_0.4_better"], values["verdicts_better_most"]) == (0, 0.25)


def test_a_model_is_held_against_its_own_answers_under_other_seeds(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "REPOSITORY", trained)
    generator = np.random.default_rng(0)

    def answers(better: int) -> list[dict[str, object]]:
        """Of which `better` seeds are always right, as no seed of one model is."""
        wrong = {"exact": False, "valid_json": True, "argument_f1": 0.5}
        right = {"exact": True, "valid_json": True, "argument_f1": 1.0}
        return [
            {
                "id": str(number),
                "gold": {"name": "f"},
                "seeds": [
                    right if seed < better or generator.random() < 0.5 else wrong for seed in range(evaluation.SAMPLED)
                ],
            }
            for number in range(100)
        ]

    def share(answered: list[dict[str, object]]) -> float:
        found = recipe.load(trained / "params.yaml")
        return float(np.mean(["better" in evaluation.redrawn(generator, found, answered) for _ in range(20)]))

    assert share(answers(0)) <= 0.2
    assert share(answers(evaluation.SAMPLED // 2)) >= 0.5


def test_drawn_answers_are_as_many_and_as_right_as_the_release_s() -> None:
    generator = np.random.default_rng(0)
    report = {"call_n": 400, "null_n": 200, "call_exact": 0.4, "null_exact": 0.9}
    rows = evaluation.rows(generator, report)
    assert Counter(is_call for _, is_call, _ in rows) == {True: 400, False: 200}
    answers = [evaluation.answer(generator, *row) for row in rows]
    right = {
        kind: np.mean([one["exact"] for one in answers if (one["gold"] is not None) == kind]) for kind in (True, False)
    }
    assert right == pytest.approx({True: 0.4, False: 0.9}, abs=0.08)
    assert all(one["valid_json"] and one["argument_f1"] == 1 for one in answers if one["exact"])


@pytest.mark.slow
def test_verdicts_of_a_few_draws(tmp_path: Path) -> None:
    values = evaluation.verdicts(argparse.Namespace(draws=20))
    assert values["verdicts_better_most"] <= 0.2
    assert values["verdicts_matrix_better_low"] == 0


def test_every_planted_regression_is_one_that_the_gate_finds(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "REPOSITORY", trained)
    values = evaluation.gated(argparse.Namespace())
    assert (values["gate_missed"], values["gate_clean_failed"]) == (0, 0)
    words = " ".join(key for key in values if key.startswith("gate_found_"))
    for kind in ("quality", "format", "safety", "forgetting", "contamination", "latency", "quant"):
        assert kind in words
    assert values["gate_planted"] == len(regressions.planted())


def test_what_is_planted_spoils_nothing_else(trained: Path) -> None:
    regressions.prepare()
    before = metrics.read(f"reports/evaluate/{RELEASE}.json")
    regressions.worsen(RELEASE, "", "valid_json", 0.5)
    rows = list(records.read(f"data/evaluate/{RELEASE}.jsonl"))
    assert sum(row["valid_json"] for row in rows) == pytest.approx(0.97 * ROWS / 2, abs=2)
    assert not any(row["exact"] for row in rows if not row["valid_json"])
    after = metrics.read(f"reports/evaluate/{RELEASE}.json")
    assert after["general_perplexity"] == before["general_perplexity"]
    assert (after["n"], after["null_n"]) == (ROWS, NULLS)
    assert len(scored(ROWS, 1.0)) == ROWS


def test_a_gate_that_lets_a_regression_through_is_counted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "REPOSITORY", trained)
    monkeypatch.setattr(regressions, "forget", lambda _: None)
    values = evaluation.gated(argparse.Namespace())
    assert (values["gate_missed"], values["gate_found_forgetting"]) == (1, False)
    assert gate.SKIPPED == "skipped"


def test_a_run_without_answers_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(Path("params.yaml").read_text())
    monkeypatch.setattr(evaluation, "REPOSITORY", tmp_path)
    with pytest.raises(SystemExit, match=r"no answers of \w+ to golden rows: run `make repro` first"):
        evaluation.gated(argparse.Namespace())
    records.write(tmp_path / f"data/evaluate/{RELEASE}-golden.jsonl", [])
    with pytest.raises(SystemExit, match=r"no answers of \w+ to probes: run `make repro` first"):
        evaluation.gated(argparse.Namespace())
    with pytest.raises(SystemExit, match=r"missing: run `make repro` first"), evaluation.place(None):
        pass
    monkeypatch.setenv("TEMPER_TEST_DATA", "")
    with pytest.raises(SystemExit, match="TEMPER_TEST_DATA names no folder"):
        evaluation.classes(argparse.Namespace(files=10))


def test_files_of_every_class_are_made() -> None:
    generator = np.random.default_rng(0)
    reached = Counter(openness.assess(rules.release(generator, number % 4)).reached for number in range(600))
    assert all(reached[level] >= 30 for level in (0, 1, 2, 3)), reached


def test_the_readme_has_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    assert measured.table(measured.EVALUATION) == "Not measured yet."
    values = {"equality_differing": 0, "equality_compared": 1234, "equality_most": 0.0, "machine": "a machine"}
    values |= {"time_times": 4.25, "time_rows": 64, "time_ours_seconds": 100.0, "time_hf_seconds": 425.0}
    values |= {"itself_better": 0.02, "itself_better_low": 0.005, "itself_better_high": 0.05}
    values |= {"itself_rows": 219, "itself_seeds": 24, "itself_draws": 200}
    metrics.write(tmp_path / "evaluation.json", values | {"gate_missed": 1, "gate_planted": 10, "gate_clean_failed": 0})
    table = measured.table(measured.EVALUATION)
    assert "| 0 of 1,234 differ | identical |" in table
    assert "| all tasks, 64 rows of each at most, 2 cores | 4.2× (100 s, 425 s) | 3× |" in table
    assert "| 9 of 10; 0 on the clean run | all; none |" in table
    assert "| answers of the release to 219 rows under 24 seeds, 200 draws | 2.0% (0.01–0.05) of matrices |" in table
    assert "openness" not in table.lower()
    assert json.loads((tmp_path / "evaluation.json").read_text())["time_times"] == 4.25
