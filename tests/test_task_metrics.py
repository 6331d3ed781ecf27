"""Metrics of tasks of one's own, held against scikit-learn and jsonschema where they know the same ones."""

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.compose import composed
from scripts.evaluate import Evaluate
from temper import params, task_metrics
from temper.task_metrics import Answered, Task

DATA = Path(os.environ.get("TEMPER_TEST_DATA", "/nonexistent")) / "banking77"
SCHEMA = {
    "type": "object",
    "required": ["item"],
    "properties": {"item": {"type": "string"}, "quantity": {"type": "integer"}},
}
ORDER = {"item": "Tea", "quantity": 2, "address": {"city": "Bonn", "zip": "53111"}}


def task(*metrics: str, **changes: Any) -> Task:
    return Task(**{"name": "own", "sources": "*", "metrics": list(metrics), "labels": None, "schema": None} | changes)


def answered(*pairs: tuple[str, str]) -> list[Answered]:
    return [Answered(*pair) for pair in pairs]


def values(one: Task, *pairs: tuple[str, str]) -> dict[str, float]:
    return task_metrics.summary(one, answered(*pairs), 0.95, 17)


def test_a_class_is_right_whatever_its_case_and_full_stop() -> None:
    found = values(task("accuracy"), ("card_arrival", "Card_arrival."), ("loan", "the loan"), ("loan", " loan\n"))
    assert found["own_accuracy"] == pytest.approx(2 / 3)
    assert found["own_unlabelled"] == pytest.approx(1 / 3)
    assert found["own_n"] == 3
    assert found["own_accuracy_low"] < 2 / 3 < found["own_accuracy_high"]


@pytest.mark.skipif(not DATA.is_dir(), reason="TEMPER_TEST_DATA names no folder with banking77")
def test_macro_f1_is_that_of_scikit_learn_on_77_intents() -> None:
    from sklearn.metrics import f1_score

    with (DATA / "test.csv").open() as lines:
        labels = [row["category"] for row in csv.DictReader(lines)]
    draw = random.Random(3)
    kinds = sorted(set(labels))
    said = [label if draw.random() < 0.7 else draw.choice(kinds) for label in labels]
    pairs = [(one.casefold(), other.casefold()) for one, other in zip(labels, said, strict=True)]
    expected = f1_score([one for one, _ in pairs], [other for _, other in pairs], average="macro")
    assert task_metrics.macro_f1(sorted({one for one, _ in pairs}), pairs) == pytest.approx(expected)


def test_macro_f1_counts_a_rare_class_as_much_and_has_an_interval() -> None:
    pairs = [("common", "common")] * 18 + [("rare", "common")] * 2
    found = values(task("macro_f1", labels=["common", "rare"]), *pairs)
    assert found["own_macro_f1"] == pytest.approx((36 / 38 + 0) / 2)
    assert found["own_macro_f1_low"] <= found["own_macro_f1"] <= found["own_macro_f1_high"]
    perfect = values(task("macro_f1"), ("a", "a"), ("b", "b"))
    assert (perfect["own_macro_f1"], perfect["own_macro_f1_low"]) == (1.0, pytest.approx(0.342, abs=1e-3))
    stray = values(task("macro_f1", labels=["common", "rare"]), ("common", "neither"), ("rare", "rare"))
    assert (stray["own_macro_f1"], stray["own_unlabelled"]) == (0.5, 0.5)


def test_macro_f1_of_sums_is_that_of_the_answers() -> None:
    draw, one = random.Random(5), task("macro_f1", labels=["a", "b", "c", "never"])
    said = [(draw.choice("abc"), draw.choice(["a", "b", "c", "neither"])) for _ in range(50)]
    counts = task_metrics.counts(one, answered(*said))
    sums = np.stack([counts.sum(axis=0), counts[:20].sum(axis=0), counts[:1].sum(axis=0)])
    expected = [task_metrics.macro_f1(["a", "b", "c", "never"], part) for part in (said, said[:20], said[:1])]
    assert task_metrics.macro_f1_of(sums) == pytest.approx(expected)
    assert task_metrics.macro_f1_of(np.zeros((1, 12))) == pytest.approx([0])


def test_exact_match_is_of_values_where_both_are_json() -> None:
    spaced = json.dumps(ORDER, indent=2, sort_keys=True)
    found = values(
        task("exact_match"),
        (json.dumps(ORDER), spaced),
        (json.dumps(ORDER), json.dumps(ORDER | {"quantity": 3})),
        ("Yes.", "yes"),
        ("1", "true"),
    )
    assert found["own_exact_match"] == 0.5


def test_json_may_stand_in_a_fence_and_must_fit_its_schema() -> None:
    fenced = '```json\n{"item": "Tea"}\n```'
    found = values(
        task("valid_json", "valid_schema", schema=SCHEMA),
        ("{}", fenced),
        ("{}", '{"item": "Tea", "quantity": "two"}'),
        ("{}", "item: Tea"),
        ("{}", '{"quantity": 2}'),
    )
    assert (found["own_valid_json"], found["own_valid_schema"]) == (0.75, 0.25)


def test_fields_are_counted_by_their_path() -> None:
    other = {"item": "tea", "quantity": 2, "address": {"city": "Köln", "zip": "53111"}, "gift": True}
    found = values(task("field_accuracy", "field_f1"), (json.dumps(ORDER), json.dumps(other)))
    assert found["own_field_accuracy"] == pytest.approx(3 / 4)
    assert found["own_field_f1"] == pytest.approx(2 * 3 / (5 + 4))
    broken = values(task("field_accuracy", "field_f1"), (json.dumps(ORDER), "Tea, 2"))
    assert (broken["own_field_accuracy"], broken["own_field_f1"]) == (0, 0)
    empty = values(task("field_accuracy", "field_f1"), ("{}", "{}"))
    assert (empty["own_field_accuracy"], empty["own_field_f1"]) == (1, 1)


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ("A  b", "a b", True),
        ([1, "x"], [1, "X"], True),
        ([1], [1, 2], False),
        (None, None, True),
    ],
)
def test_values_of_fields_are_compared_by_what_they_are(expected: Any, given: Any, same: bool) -> None:
    found = values(task("field_accuracy"), (json.dumps({"a": expected}), json.dumps({"a": given})))
    assert found["own_field_accuracy"] == float(same)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task("bleu")], r"^evaluate\.tasks: 'own': no metric 'bleu': choose of macro_f1, accuracy, "),
        ([task()], r"'own': no metric: choose of"),
        ([task("valid_schema")], r"'own': valid_schema needs a JSON Schema"),
        ([task("valid_schema", schema={"type": "objekt"})], r"'own': schema: 'objekt' is not valid .*conf/evaluate$"),
        ([task("accuracy"), task("accuracy")], r"^evaluate\.tasks: two of one name"),
    ],
)
def test_a_task_that_makes_no_sense_is_named(tasks: list[Task], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        task_metrics.checked(tasks)


def test_the_template_of_conf_fits(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed(["evaluate=tasks"]))
    tasks = params.load("evaluate", Evaluate, tmp_path / "params.yaml").tasks
    task_metrics.checked(tasks)
    assert {metric for one in tasks for metric in one.metrics} == {*task_metrics.METRICS}
