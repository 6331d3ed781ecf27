"""The gate stops what got worse, names it and what to do, and lets a sound release through."""

import hashlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from benchmarks import regressions
from commands.compose import composed
from scripts import contamination
from scripts import gate as stage
from temper import (
    benchmarks,
    comparisons,
    evaluation_matrix,
    extraction,
    gate,
    graph,
    metrics,
    params,
    probes,
    recipe,
    records,
    released,
    safety,
    safety_matrix,
)
from temper.evaluation_matrix import Evaluated
from temper.gate import FAILED, SKIPPED
from temper.records import Row

ROOT = Path(__file__).resolve().parent.parent
RELEASE = "dpo"
ROWS, NULLS, GOLDEN, PASSAGES = 167, 46, 37, 48  # about as many as a run on a laptop has
PROBES = {"harmful": 128, "jailbreak": 24, "privacy": 96, "benign": 96, "toxic": 24}
Edit = Callable[[], Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a sound run of the default leaves: as committed where git has it, rows that score about as much where it has not."""
    monkeypatch.chdir(tmp_path)
    Path("conf").symlink_to(ROOT / "conf")
    for name in ("dvc.yaml", "reports/contamination.json", "reports/bench/bf16.json"):
        copy(name)
    Path("params.yaml").write_text(text_of())
    for variant, right in (("base", 0.0), ("sft", 0.55), (RELEASE, 0.54)):
        copy(f"reports/evaluate/{variant}.json")
        records.write(f"data/evaluate/{variant}.jsonl", scored(ROWS, right, valid=0.97 if right else 0.0))
        records.write(f"data/evaluate/{variant}-golden.jsonl", scored(GOLDEN, right))
        for part in ("tasks", "benchmarks"):
            records.write(f"data/evaluate/{variant}-{part}.jsonl", [])
        records.write(f"data/evaluate/{variant}-likelihoods.jsonl", likelihoods(1.016 if variant == "base" else 1.037))
    for number, split in enumerate(stage.TRAINED + stage.HELD_OUT):
        records.write(f"data/mix/{split}.jsonl", [asking(f"row {number}-{row}") for row in range(9)])
    for name, kept in (("gptq", 0.98), ("awq", 1.0), ("gguf", 0.97)):
        metrics.write(f"reports/retention/{name}.json", {"exact_kept": kept, "released": True, "withheld": ""})
    for variant in ("base", RELEASE):
        records.write(f"data/safety/{variant}.jsonl", probed())
        copy(f"reports/safety/{variant}.json")
    released.FILE.write_text(released.text("v0.1.0", scored(GOLDEN, 0.54)))
    return tmp_path


@cache
def text_of(*overrides: str) -> str:
    return composed(list(overrides))


def copy(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes((ROOT / name).read_bytes())


def scored(count: int, right: float, valid: float = 1.0) -> list[Row]:
    """Rows of which the first `right` and the first `valid`, shares of all, are so; nulls stand in between.

    Every fifth row has several tools; what is likeliest is right as often as what is said.
    """
    return [
        {
            "id": f"{row:03}",
            "gold": None if row * NULLS // count != (row + 1) * NULLS // count else {"name": "f"},
            "exact": row < right * count,
            "valid_json": row < valid * count,
            "argument_f1": float(row < right * count),
            "abstain": row < right * count,
        }
        | ({"choose": row < right * count, "choose_norm": row < right * count} if row % 5 == 0 else {})
        for row in range(count)
    ]


def likelihoods(bits: float, spread: float = 0.02) -> list[Row]:
    return [
        {"task": "general", "id": str(row), "bits": 1000 * (bits + spread * math.sin(row)), "bytes": 1000}
        for row in range(PASSAGES)
    ]


def probed(refused: float = 0.4, falsely: float = 0.02, abusive: float = 0.0, leaking: float = 0.0) -> list[Row]:
    """Rows of data/safety of which the first of each role, shares of all of it, are so."""
    return [
        {
            "id": f"{role}/{number:03}",
            "role": role,
            "verdict": "refused" if number < (falsely if role == "benign" else refused) * count else "answered",
            "toxic": "swine" if number < abusive * count else "",
            "leaks": ["US_SSN"] if number < leaking * count else [],
        }
        for role, count in PROBES.items()
        for number in range(count)
    ]


def abstaining() -> list[Row]:
    """To every benign request."""
    return [row | ({"verdict": "abstained"} if row["role"] == "benign" else {}) for row in probed()]


def behaving(**shares: float) -> Edit:
    return lambda: records.write(f"data/safety/{RELEASE}.jsonl", probed(**shares))


def asking(text: str) -> Row:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "null"}]}


def edited(report: str, **values: float) -> Edit:
    path = Path(f"reports/{report}.json")
    return lambda: metrics.write(path, (metrics.read(path) if path.is_file() else {}) | values)


def answered(right: float = 0.54, valid: float = 0.97, suffix: str = "", count: int = ROWS) -> Edit:
    return lambda: records.write(f"data/evaluate/{RELEASE}{suffix}.jsonl", scored(count, right, valid))


def test_a_sound_release_passes_and_every_figure_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.main()
    values = metrics.read(gate.REPORT)
    printed = capsys.readouterr().out
    table = gate.table(values)
    assert values["failed"] == 0
    assert values["passed"] + values["skipped"] == len(table)
    for name, value, limit, verdict in table:
        assert f"{verdict:<8} {name}: " in printed
        assert f"({limit})" in printed
        assert value != ""
    unasked = ["safety_bbq", "safety_exposure", "safety_helped", "safety_winogender"]
    assert [name for name, _, _, verdict in table if verdict == SKIPPED] == unasked
    assert values["safety_helped_value"].startswith("trained on calls alone")
    assert values["retention_gguf_value"] == 0.97
    asked = {name for name, *_ in table if name.startswith("safety_")}
    measures = ("refusals", "privacy", "served", "helped", "clean", "discreet", "bbq", "winogender")
    assert asked == {f"safety_{name}" for name in (*measures, "false_refusals", "memory", "exposure")}
    assert values["safety_refusals_value"] == "no difference: +0.0 (-1.4 to +1.4), n = 152, p = 1.000"
    assert values["safety_refusals_limit"] == "not worse than base"
    assert values["exact_over_base_value"].startswith("better: +5")
    assert values["exact_over_sft_value"].startswith("no difference: -")


PLANTED: dict[str, tuple[Edit, list[str]]] = {
    "quality, against the base's": (
        lambda: (answered(0.3)(), records.write("data/evaluate/base.jsonl", scored(ROWS, 0.6, 0.97))),
        ["exact_over_base", "exact_over_sft", "call_exact_over_base", "argument_f1_over_base"],
    ),
    "quality, against SFT's": (answered(0.4), ["exact_over_sft", "call_exact_over_sft", "argument_f1_over_sft"]),
    "quality, on the golden set": (answered(0.2, 1.0, "-golden", GOLDEN), ["golden_exact", "golden_argument_f1"]),
    "every score, against both": (
        lambda: (
            answered(0.1, 0.4)(),
            *(records.write(f"data/evaluate/{name}.jsonl", scored(ROWS, 0.7, 0.97)) for name in ("base", "sft")),
        ),
        [f"{score}_over_{variant}" for score in evaluation_matrix.MEASURES for variant in ("base", "sft")],
    ),
    "format": (edited(f"evaluate/{RELEASE}", valid_json_low=0.85), ["format"]),
    "format, against SFT's": (answered(0.54, 0.8), ["valid_json_over_sft"]),
    "format, on the golden set": (answered(0.54, 0.7, "-golden", GOLDEN), ["golden_valid_json"]),
    "forgetting": (
        lambda: records.write(f"data/evaluate/{RELEASE}-likelihoods.jsonl", likelihoods(1.1)),
        ["forgetting"],
    ),
    "contamination, unlooked for": (edited("contamination", pass_ngram=0), ["contamination_pass"]),
    "contamination, let through": (
        lambda: records.write("data/mix/train.jsonl", [asking("ROW  4-3")]),
        ["contamination_overlap"],
    ),
    "contamination, of the golden set": (
        lambda: records.write("data/mix/preferences.jsonl", [asking("row 5-8")]),
        ["contamination_overlap"],
    ),
    "latency of the first token": (edited("bench/bf16", c1_ttft_p99_ms=10_001.0), ["latency_first_token"]),
    "latency of the others": (edited("bench/bf16", c1_itl_p99_ms=250.0), ["latency_token"]),
    "no number": (edited("bench/bf16", c1_itl_p99_ms=math.nan), ["latency_token"]),
    **{
        f"retention of {name}": (edited(f"retention/{name}", exact_kept=0.9), [f"retention_{name}"])
        for name in ("gptq", "awq", "gguf")
    },
    "safety, harmful requests answered": (behaving(refused=0.2), ["safety_refusals"]),
    "safety, private requests answered": (behaving(refused=0.0), ["safety_refusals", "safety_privacy"]),
    "safety, benign requests refused": (behaving(falsely=0.15), ["safety_served"]),
    "safety, benign requests not answered": (
        lambda: (
            records.write("data/mix/train.jsonl", [asking("row 0-0") | {"kind": "chat"}]),
            records.write(f"data/safety/{RELEASE}.jsonl", abstaining()),
        ),
        ["safety_helped"],
    ),
    "safety, abuse": (behaving(abusive=0.05), ["safety_clean"]),
    "safety, leaks": (behaving(leaking=0.05), ["safety_discreet"]),
    "safety, bias": (lambda: regressions.stereotype(RELEASE, "base", probes.BBQ), ["safety_bbq"]),
    "safety, gender": (lambda: regressions.stereotype(RELEASE, "base", probes.WINOGENDER), ["safety_winogender"]),
    "safety, more refused than the target": (
        edited(f"safety/{RELEASE}", false_refusals=0.1, false_refusals_low=0.055),
        ["safety_false_refusals"],
    ),
    "safety, rows known by heart": (edited(f"safety/{RELEASE}", verbatim_more_low=0.3), ["safety_memory"]),
    "safety, secrets known by heart": (edited(f"safety/{RELEASE}", exposure_fitted_most=27.0), ["safety_exposure"]),
}


def test_no_check_is_without_a_regression_that_it_finds(run: Path) -> None:
    stage.main()
    checks = {name for name, *_ in gate.table(metrics.read(gate.REPORT))}
    assert checks == {name for _, expected in PLANTED.values() for name in expected}


@pytest.mark.parametrize("planted", PLANTED)
def test_every_planted_regression_is_found(run: Path, planted: str, capsys: pytest.CaptureFixture[str]) -> None:
    edit, expected = PLANTED[planted]
    edit()
    with pytest.raises(SystemExit) as stopped:
        stage.main()
    values = metrics.read(gate.REPORT)
    failed = {name for name, _, _, verdict in gate.table(values) if verdict == FAILED}
    assert set(expected) <= failed
    message = str(stopped.value)
    count = len(gate.table(values))
    assert message.startswith(f"gate: {len(failed)} of {count} checks failed: ")
    assert "\n" not in message
    assert all(f"{name}: " in message for name in failed)
    assert capsys.readouterr().out.count("\n") == count


INTENT = "{name:intent,sources:intents.jsonl,metrics:[accuracy,macro_f1],labels:null,schema:null}"


def asked_more(variant: str, of_task: float, of_benchmark: float) -> None:
    """Answers to a task of the user's own and to a benchmark, of which the first, shares of all, are right."""
    own = {"source": "intents.jsonl", "request": "?", "reference": "card"}
    answers = [own | {"id": str(row), "output": "card" if row < of_task * 80 else "loan"} for row in range(80)]
    records.write(f"data/evaluate/{variant}-tasks.jsonl", answers)
    item = {"benchmark": "gsm8k", "task": "gsm8k", "filter": "none"}
    samples = [item | {"item": row, "scores": {"exact_match": float(row < of_benchmark * 80)}} for row in range(80)]
    records.write(f"data/evaluate/{variant}-benchmarks.jsonl", samples)


@pytest.mark.parametrize(
    ("shares", "failed"),
    [
        ((0.8, 0.7), set()),
        ((0.4, 0.7), {"intent_accuracy_over_base", "intent_macro_f1_over_base"}),
        ((0.8, 0.3), {"gsm8k_exact_match_over_base"}),
    ],
)
def test_own_tasks_and_benchmarks_must_not_be_worse_where_there_are_such(
    run: Path, shares: tuple[float, float], failed: set[str]
) -> None:
    Path("params.yaml").write_text(text_of("gate=report", f"evaluate.tasks=[{INTENT}]"))
    edited("contamination", benchmark_gsm8k=1319)()
    for variant in ("base", "sft"):
        asked_more(variant, 0.8, 0.7)
    asked_more(RELEASE, *shares)
    stage.main()
    values = metrics.read(gate.REPORT)
    found = {name for name, _, _, verdict in gate.table(values) if verdict == FAILED}
    assert found == failed | {name.replace("_base", "_sft") for name in failed}
    assert {values[f"{name}_verdict"] for name in ("abstain_over_base", "choose_over_sft")} == {gate.PASSED}


@pytest.mark.parametrize(("looked_for", "verdict"), [({}, FAILED), ({"benchmark_mmlu-pro": 12032}, gate.PASSED)])
def test_what_is_scored_is_looked_for_in_what_is_trained_on(
    run: Path, looked_for: dict[str, float], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(text_of("gate=report"))
    for variant in ("base", "sft", RELEASE):
        sample = {"benchmark": "mmlu_pro", "task": "law", "filter": "none", "item": 1, "scores": {"acc": 1.0}}
        records.write(f"data/evaluate/{variant}-benchmarks.jsonl", [sample])
    edited("contamination", **looked_for)()
    stage.main()
    failed = {name for name, *_, verdict in gate.table(metrics.read(gate.REPORT)) if verdict == FAILED}
    assert metrics.read(gate.REPORT)["contamination_mmlu_pro_verdict"] == verdict
    assert failed == ({"contamination_mmlu_pro"} if verdict == FAILED else set())
    assert ("contamination=files or hub" in capsys.readouterr().out) is bool(failed)


@pytest.mark.parametrize(("scored", "looked_for"), [("hub", "hub"), ("benchmarks", "files")])
def test_every_benchmark_that_a_preset_scores_another_looks_for(run: Path, scored: str, looked_for: str) -> None:
    settings = yaml.safe_load(text_of(f"evaluate={scored}", f"contamination={looked_for}"))
    samples = [{"benchmark": one["name"]} for one in settings["evaluate"]["benchmarks"]]
    found = {f"benchmark_{one['name']}": 1 for one in settings["contamination"]["benchmarks"]}
    metrics.write("reports/contamination.json", found)
    assert {check.verdict for check in gate.looked_for(samples, "none")} == {gate.PASSED}


PUBLISHED: dict[str, tuple[Row, list[str]]] = {
    "hellaswag": (
        {"ind": 24, "ctx_a": "A man sits.", "ctx_b": "he", "ctx": "A man sits. he", "endings": ["rips.", "eats."]},
        ["A man sits. he\nrips.\neats.", "A man sits. he\nA. rips.\nB. eats."],
    ),
    "arc-challenge": (
        {"id": "M_1", "question": "Which is densest?", "choices": {"text": ["Ice", "Lead"], "label": ["A", "B"]}},
        ["Which is densest?"],
    ),
    "truthfulqa": (
        {"question": "What do dogs see?", "best_answer": "Yellow and blue", "correct_answers": ["Blue"]},
        ["What do dogs see?\nYellow and blue"],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_benchmarks_of_the_hub_are_read_as_they_are_published(tmp_path: Path, name: str) -> None:
    row, texts = PUBLISHED[name]
    (tmp_path / "params.yaml").write_text(text_of("contamination=hub"))
    settings = params.load("contamination", contamination.Contamination, tmp_path / "params.yaml")
    (stated,) = (one for one in settings.benchmarks if one.name == name)
    path = tmp_path / "rows.jsonl"
    records.write(path, [row])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    local = replace(stated, kind="file", file=str(path), sha256=digest)
    assert [item.text for item in benchmarks.items(local)] == texts


def test_the_format_of_own_tasks_has_a_limit_where_no_row_has_a_call(run: Path) -> None:
    order = "{name:order,sources:orders.jsonl,metrics:[exact_match,valid_json,valid_schema],labels:null,schema:{}}"
    Path("params.yaml").write_text(text_of("gate=report", f"evaluate.tasks=[{order}]"))
    edited(f"evaluate/{RELEASE}", n=0, valid_json_low=0.0, order_valid_json_low=0.95, order_valid_schema_low=0.8)()
    stage.main()
    values = metrics.read(gate.REPORT)
    found = {name: verdict for name, *_, verdict in gate.table(values) if name.startswith("format")}
    assert found == {
        "format": SKIPPED,
        "format_order_valid_json": gate.PASSED,
        "format_order_valid_schema": FAILED,
    }


def test_a_check_that_fails_alone_names_no_other(run: Path) -> None:
    edited("bench/bf16", c1_itl_p99_ms=250.0)()
    with pytest.raises(SystemExit, match=r"^gate: 1 of \d+ checks failed: latency_token: measure on an idle machine"):
        stage.main()


@pytest.mark.parametrize("shares", [{"refused": 0.38}, {"refused": 1.0}, {"falsely": 0.0}], ids=str)
def test_a_few_refusals_less_are_chance_and_more_are_not_worse(shares: dict[str, float]) -> None:
    found = safety_matrix.differences(probed(**shares), probed(), True, 0.95, 17)
    remedies = params.load("gate", stage.Gate).safety
    checks = gate.decided(list(gate.safe(remedies, recipe.load(), found, True)), 0.95)
    passed = {check.name for check in checks if check.verdict == gate.PASSED}
    assert passed == {f"safety_{name}" for name in remedies.keys() - {"bbq", "winogender"}}
    assert FAILED not in {check.verdict for check in checks}


def test_the_same_model_asked_again_is_stopped_as_seldom_as_the_confidence_says() -> None:
    """By any of the three kinds of comparisons, on rows and probes of which some are easy and some hard."""
    draw, cfg, found = random.Random(17), params.load("gate", stage.Gate), recipe.load()
    chances = {row["id"]: draw.random() for row in [*probed(), *scored(ROWS, 0.5), *scored(GOLDEN, 0.5)]}

    def answers() -> list[Row]:
        return [row | {"verdict": "refused" if draw.random() < chances[row["id"]] else "answered"} for row in probed()]

    def rows(count: int) -> list[Row]:
        keys = ("exact", "valid_json", "argument_f1", "abstain", "choose")
        again = [
            row | {key: draw.random() < chances[row["id"]] for key in keys if key in row} for row in scored(count, 0.5)
        ]
        return [row | {"argument_f1": float(row["argument_f1"])} for row in again]

    stopped = 0
    for _ in range(100):
        evaluated = {name: Evaluated(rows(ROWS)) for name in found.variants}
        last = released.Released("v0.1.0", {row["id"]: row for row in rows(GOLDEN)})
        measures = gate.measures_of(cfg.not_worse, [], evaluated[RELEASE])
        asked = [
            *gate.not_worse(measures, found, evaluation_matrix.differences(found, evaluated, [], 0.95, 17), "none"),
            *gate.safe(cfg.safety, found, safety_matrix.differences(answers(), answers(), True, 0.95, 17), True),
            *gate.golden_parity(last, rows(GOLDEN), 0.95, 17, "none"),
        ]
        assert sum(isinstance(one, gate.Comparison) for one in asked) == 7 * 2 + 6 + 3
        stopped += any(check.verdict == FAILED for check in gate.decided(asked, 0.95))
    assert stopped <= 5


def test_all_comparisons_of_the_gate_are_one_family(run: Path) -> None:
    """Eight golden rows lost are one chance in 43 among the three measures of golden rows, and nothing rare among all."""
    golden = scored(GOLDEN, 0.54)
    right = [number for number, row in enumerate(golden) if row["exact"]]
    lost = {"exact": False, "argument_f1": 0.0}
    worse = [row | (lost if number in right[:8] else {}) for number, row in enumerate(golden)]
    records.write(f"data/evaluate/{RELEASE}-golden.jsonl", worse)
    alone = list(gate.golden_parity(released.read(), worse, 0.95, 17, "none"))
    assert FAILED in {check.verdict for check in gate.decided(alone, 0.95)}
    stage.main()
    assert metrics.read(gate.REPORT)["golden_exact_value"].startswith("no difference: -21.6")


@pytest.mark.parametrize(("count", "verdict"), [(9, SKIPPED), (GOLDEN, FAILED)])
def test_golden_rows_that_are_too_few_to_tell_a_loss_of_all_are_no_evidence_of_parity(
    run: Path, count: int, verdict: str
) -> None:
    Path("params.yaml").write_text(text_of("gate=report"))
    released.FILE.write_text(released.text("v0.1.0", scored(count, 1.0)))
    answered(0.0, 1.0, "-golden", count)()
    stage.main()
    values = metrics.read(gate.REPORT)
    assert values["golden_exact_verdict"] == verdict
    few = f"too few to tell: all {count} that v0.1.0 scored on may be lost by chance: raise split.golden"
    assert (values["golden_exact_value"] == few) is (verdict == SKIPPED)


def test_where_the_last_release_scored_on_no_golden_row_nothing_can_be_lost(run: Path) -> None:
    released.FILE.write_text(released.text("v0.1.0", scored(GOLDEN, 0.0)))
    stage.main()
    assert metrics.read(gate.REPORT)["golden_exact_verdict"] == gate.PASSED


def test_few_golden_rows_that_are_answered_better_pass() -> None:
    last = released.Released("v0.1.0", {row["id"]: row for row in scored(30, 0.1)})
    checks = gate.decided(list(gate.golden_parity(last, scored(30, 1.0), 0.95, 17, "none")), 0.95)
    assert {check.name: check.verdict for check in checks}["golden_exact"] == gate.PASSED


def test_canaries_that_nobody_knows_seldom_stop_a_release() -> None:
    limit = params.load("gate", stage.Gate).limits["safety_exposure"]
    assert limit.most
    assert 1 - (1 - 2**-limit.most) ** len(extraction.CANARIES) < 0.05


def test_bias_is_counted_as_the_card_has_it(run: Path) -> None:
    regressions.stereotype(RELEASE, "base", probes.BBQ)
    regressions.stereotype(RELEASE, "base", probes.WINOGENDER)
    rows = list(records.read(f"data/safety/{RELEASE}.jsonl"))
    published = safety.people(rows, 0.95, 17)
    means = {measure: fmean(of.values()) for measure, of in gate.fair(rows).items()}
    assert means == {"bbq": -published["bbq_ambiguous_bias"], "winogender": published["winogender_parity"]}
    with pytest.raises(SystemExit, match=r"^data/responses: .*dvc repro safety"):
        gate.fairness(rows, rows[:-1], 0.95, 17)


def test_as_many_private_probes_as_the_default_has_find_a_loss_of_thirteen_points() -> None:
    """Four times in five, as conf/responses says, with the other comparisons of the gate beside."""
    counts = params.tree().responses.limits.counts
    assert {role: counts[role] for role in PROBES} == PROBES
    draw, cfg, chain = random.Random(17), params.load("gate", stage.Gate), recipe.load()
    base, draws = probed(refused=1.0), 200
    rows = Evaluated(scored(ROWS, 0.5))
    others = list(gate.not_worse(gate.measures_of(cfg.not_worse, [], rows), chain, same(chain, rows), "none"))
    found = 0
    for _ in range(draws):
        now = [
            row | ({"verdict": "answered"} if row["role"] == "privacy" and draw.random() < 0.13 else {}) for row in base
        ]
        differences = safety_matrix.differences(now, base, False, 0.95, 17)
        checks = gate.decided([*others, *gate.safe(cfg.safety, chain, differences, False)], 0.95)
        found += {check.name for check in checks if check.verdict == FAILED} == {"safety_privacy"}
    assert found >= 0.7 * draws


def same(chain: recipe.Recipe, rows: Evaluated) -> dict[evaluation_matrix.Asked, comparisons.Difference]:
    """Of variants that answer alike."""
    return evaluation_matrix.differences(chain, dict.fromkeys(chain.variants, rows), [], 0.95, 17)


def test_a_release_that_answers_in_words_must_not_abstain_from_benign_requests(run: Path) -> None:
    records.write(f"data/safety/{RELEASE}.jsonl", abstaining())
    stage.main()
    records.write("data/mix/train.jsonl", [asking("row 0-0"), asking("row 0-1") | {"kind": "chat"}])
    with pytest.raises(SystemExit, match=r"^gate: 1 of \d+ checks failed: safety_helped: add ordinary requests"):
        stage.main()


def test_what_no_probe_asks_of_is_skipped_and_other_probes_are_not_compared(run: Path) -> None:
    for variant in ("base", RELEASE):
        records.write(f"data/safety/{variant}.jsonl", [row for row in probed() if row["role"] != "privacy"])
    stage.main()
    assert metrics.read(gate.REPORT)["safety_privacy_verdict"] == SKIPPED
    behaving()()
    with pytest.raises(SystemExit, match=r"^data/responses: .*dvc repro safety"):
        stage.main()


def test_a_report_of_another_run_is_not_read(run: Path) -> None:
    limit = gate.Limit("bench/other", "rate", 1.0, None, False, "none")
    metrics.write("reports/bench/other.json", {"rate": 0.5})
    verdicts = [
        check.verdict
        for made in ((), ("reports/bench/other.json",))
        for check in gate.limits({"speed": limit}, {}, made)
    ]
    assert verdicts == [SKIPPED, FAILED]


def test_a_quant_that_is_withheld_or_of_another_run_is_no_part_of_the_release(run: Path) -> None:
    withheld = {"exact_kept": 0.9, "released": False, "withheld": "exact_kept 0.9 < 0.97"}
    metrics.write("reports/retention/gptq.json", withheld)
    stage.main()
    values = metrics.read(gate.REPORT)
    assert values["retention_gptq_value"] == "not released: exact_kept 0.9 < 0.97"
    assert values["retention_gptq_verdict"] == SKIPPED
    assert (values["retention_awq_verdict"], values["retention_gguf_verdict"]) == (gate.PASSED, gate.PASSED)
    edited("retention/awq", exact_kept=0.5)()
    for formats, names in (("[gguf]", {"retention_gguf"}), ("[]", {"retention"})):
        Path("params.yaml").write_text(text_of(f"recipe.formats={formats}"))
        stage.main()
        found = {name for name, *_ in gate.table(metrics.read(gate.REPORT)) if name.startswith("retention")}
        assert found == names


def test_a_quant_whose_answers_could_not_be_judged_is_no_failure(run: Path) -> None:
    unjudged = {"released": True, "withheld": "", "unjudged": "exact_kept: no answered row has a gold call"}
    metrics.write("reports/retention/gptq.json", unjudged)
    stage.main()
    values = metrics.read(gate.REPORT)
    assert values["retention_gptq_value"] == "reports/retention/gptq.json: has no exact_kept"
    assert values["retention_gptq_verdict"] == SKIPPED


def test_a_required_figure_that_is_missing_fails(run: Path) -> None:
    Path("reports/bench/bf16.json").write_text("{}")
    with pytest.raises(SystemExit, match="latency_first_token"):
        stage.main()
    assert metrics.read(gate.REPORT)["latency_token_value"] == "reports/bench/bf16.json: has no c1_itl_p99_ms"


def test_a_rate_of_no_rows_is_held_against_nothing() -> None:
    limit = gate.Limit("evaluate/dpo", "valid_json_low", 0.9, None, True, "none")
    checks = [gate.held("format", limit, {"n": count, "valid_json_low": 0.0}) for count in (0, 1)]
    assert [check.verdict for check in checks] == [SKIPPED, FAILED]
    assert checks[0].value == "reports/evaluate/dpo.json: of no rows"


def test_with_report_the_graph_goes_on_and_the_verdict_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(text_of("gate=report"))
    edited("bench/bf16", c1_itl_p99_ms=250.0)()
    stage.main()
    assert metrics.read(gate.REPORT)["failed"] == 1
    assert "gate.action is report" in capsys.readouterr().out


def test_before_the_first_release_and_with_other_data_parity_is_skipped_by_name(run: Path) -> None:
    for version, rows in ((None, []), ("v0.1.0", [row | {"id": "other"} for row in scored(1, 1.0)])):
        released.FILE.write_text(released.text(version, rows))
        stage.main()
        values = metrics.read(gate.REPORT)
        assert values["golden_exact_verdict"] == SKIPPED
        assert (version or "nothing was released before") in values["golden_exact_value"]


def test_a_base_that_is_released_as_it_is_is_compared_with_nothing(run: Path) -> None:
    Path("params.yaml").write_text(text_of("recipe=adapter", "gate=report"))
    stage.main()
    values = metrics.read(gate.REPORT)
    assert values["exact_verdict"] == values["safety_refusals_verdict"] == SKIPPED
    assert values["forgetting_value"] == 0


def test_a_limit_without_a_bound_and_an_unknown_action_are_refused(run: Path) -> None:
    with pytest.raises(SystemExit, match=r"^gate\.limits\.speed: neither least nor most"):
        gate.held("speed", gate.Limit("bench/bf16", "x", None, None, True, "none"), {"x": 1})
    Path("params.yaml").write_text(text_of("gate.action=warn"))
    with pytest.raises(SystemExit, match=r"^gate\.action is 'warn': choose stop or report"):
        stage.main()
    Path("params.yaml").write_text(text_of("gate.not_worse=[exakt]"))
    with pytest.raises(SystemExit, match=r"^gate\.not_worse: 'exakt' is no measure: choose of exact, "):
        stage.main()
    Path("params.yaml").write_text(text_of("+gate.safety.refusal=none"))
    with pytest.raises(SystemExit, match=r"^gate\.safety: 'refusal' is no measure: choose of refusals, "):
        stage.main()


def test_a_lost_record_of_the_last_release_names_its_remedy(run: Path) -> None:
    for text in ("{", "[]", '{"version": null}'):
        released.FILE.write_text(text)
        with pytest.raises(SystemExit, match=r"^reports/released\.json: .*git checkout"):
            stage.main()


def test_the_committed_figures_are_within_the_limits() -> None:
    cfg = params.load("gate", stage.Gate)
    own: dict[str, gate.Values] = {"forgetting": {"change_high": 0.0}, "overlap": {"rows": 0}}
    made = {out for one in graph.stages() for out in one.outs}
    checks = list(gate.limits(cfg.limits, own, made))
    assert [check.line() for check in checks if check.verdict == FAILED] == []
    if gate.REPORT.is_file():
        assert metrics.read(gate.REPORT)["failed"] == 0


def test_what_the_checks_read_is_a_dep_of_the_stage() -> None:
    (own,) = (one for one in graph.stages() if one.name == "gate")
    made = {out for one in graph.stages() for out in one.outs}
    for _, limit in gate.each(params.load("gate", stage.Gate).limits, made):
        path = f"reports/{limit.report}.json"
        assert path not in made or any(path == dep or path.startswith(f"{dep}/") for dep in own.deps), path
    assert {"data/evaluate", "data/safety"} <= set(own.deps)


def test_a_failed_gate_stops_the_graph_before_the_card() -> None:
    assert ("gate", "card") in graph.edges(graph.stages())


@pytest.mark.slow
def test_what_a_failed_gate_wrote_stays_and_what_follows_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outs = {"reports/gate.json": {"cache": False}}
    failing = {"cmd": "mkdir -p reports && echo 1 > reports/gate.json && exit 1", "metrics": [outs]}
    card = {"cmd": "echo card > card.md", "deps": ["reports/gate.json"], "outs": ["card.md"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"gate": failing, "card": card}}))
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, check=True)
    for _ in range(2):  # nor is it taken for done
        done = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Running stage 'gate'" in done.stdout
        assert Path("reports/gate.json").read_text() == "1\n"
        assert not Path("card.md").exists()
    assert not gate.LOCK.exists()


def test_released_keeps_what_parity_needs_and_nothing_else() -> None:
    found = json.loads(released.text("v1.0.0", [row | {"output": "x"} for row in scored(1, 1.0)]))
    assert found == {"version": "v1.0.0", "golden": {"000": {"exact": True, "valid_json": True, "argument_f1": 1.0}}}


def test_only_a_committed_run_whose_gate_passed_is_released_or_deployed(run: Path) -> None:
    stage.main()
    for lock in ("stages: {}", locked("0")):
        gate.LOCK.write_text(lock)
        with pytest.raises(
            SystemExit, match=r"reports/gate\.json: not the verdict .*`make gate`.*then `make release`$"
        ):
            gate.require("make release")
    gate.LOCK.write_text(locked(hashlib.md5(gate.REPORT.read_bytes()).hexdigest()))
    gate.require("make release")
    metrics.write(gate.REPORT, metrics.read(gate.REPORT) | {"failed": 1, "latency_token_verdict": FAILED})
    gate.LOCK.write_text(locked(hashlib.md5(gate.REPORT.read_bytes()).hexdigest()))
    with pytest.raises(SystemExit, match=r"failed: latency_token: mend it"):
        gate.require("make deploy")


def locked(md5: str) -> str:
    return f"stages: {{gate: {{outs: [{{path: reports/gate.json, md5: '{md5}'}}]}}}}"
