"""Metrics of answers to a task of one's own: a class, an object with fields, a form; by conf/evaluate, over rows of the test split.

- accuracy, macro_f1: the answer is one of the labels. Macro F1 is the mean of the labels' F1, each counted alike however rare it is
  (Sokolova and Lapalme, Information Processing & Management 45, 2009); an answer that is no label is wrong and `unlabelled`.
- exact_match: the answer is the reference, but for case, punctuation at its ends and how spaces are written; of two JSON texts, the
  same value.
- valid_json, valid_schema: the answer is JSON, and by the task's JSON Schema (draft 2020-12 where it names none).
- field_accuracy, field_f1: of two JSON objects, the share of the reference's fields that the answer has with the same value, and F1
  over (field, value) pairs; nested fields by their path, lists as one value. An answer that is no object has none right.
"""

import fnmatch
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import intervals
from temper.records import Row

RESAMPLES = 1000
ENDS = " \t\n.,;:!?\"'`*"
SPACES = re.compile(r"\s+")
MISSING = object()


@dataclass
class Task:
    """A task of the user's own: which rows are its, and what is measured of the answers."""

    name: str
    """In metrics."""
    sources: str
    """Glob over the rows' `source`: intents.jsonl, tickets/*.jsonl."""
    metrics: list[str]
    """Of METRICS."""
    labels: list[str] | None
    """All classes; null for those that the references name."""
    schema: dict[str, Any] | None
    """JSON Schema of an answer, for valid_schema."""


@dataclass(frozen=True)
class Answered:
    reference: str
    answer: str


Measure = Callable[[Task, Sequence[Answered]], list[float]]
"""A number for each answer."""


def checked(tasks: Sequence[Task]) -> None:
    """Exits naming the task that makes no sense."""
    for one in tasks:
        if unknown := [name for name in one.metrics if name not in METRICS]:
            raise SystemExit(
                f"evaluate.tasks: '{one.name}': no metric '{unknown[0]}': choose of {', '.join(METRICS)} (conf/evaluate)"
            )
        if not one.metrics:
            raise SystemExit(f"evaluate.tasks: '{one.name}': no metric: choose of {', '.join(METRICS)} (conf/evaluate)")
        if "valid_schema" in one.metrics:
            _validator(one)
    if len({one.name for one in tasks}) < len(tasks):
        raise SystemExit("evaluate.tasks: two of one name: rename one in conf/evaluate")


def chosen(tasks: Sequence[Task], rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each task, by its name; exits naming a task that has none."""
    found = {one.name: [row for row in rows if is_of(row, one)] for one in tasks}
    for one in tasks:
        if not found[one.name]:
            sources = ", ".join(sorted({str(row.get("source")) for row in rows})) or "none"
            raise SystemExit(
                f"evaluate.tasks: '{one.name}': no chat row of the test split is of {one.sources} (there are: {sources}): correct "
                "`sources` in conf/evaluate, or raise split.test"
            )
    return found


def is_of(row: Row, task: Task) -> bool:
    return fnmatch.fnmatch(str(row.get("source")), task.sources)


def is_label(answer: str, labels: Sequence[str]) -> bool:
    return _plain(answer) in {_plain(label) for label in labels}


def summary(task: Task, answers: Sequence[Answered], confidence: float, seed: int) -> dict[str, float]:
    """`<task>_<metric>` with its interval, and `<task>_n`."""
    values: dict[str, float] = {f"{task.name}_n": len(answers)}
    for metric in task.metrics:
        name = f"{task.name}_{metric}"
        if metric == "macro_f1":
            values |= _macro_f1(name, task, answers, confidence, seed)
            continue
        found = MEASURES[metric](task, answers)
        if set(found) <= {0.0, 1.0}:
            values |= intervals.rate(name, [value == 1 for value in found], confidence)
        else:
            values |= intervals.mean(name, found, confidence, seed)
    if {"accuracy", "macro_f1"} & set(task.metrics):
        known = {_plain(label) for label in labels(task, answers)}
        strays = [_plain(one.answer) not in known for one in answers]
        values |= intervals.rate(f"{task.name}_unlabelled", strays, confidence)
    return values


def labels(task: Task, answers: Sequence[Answered]) -> list[str]:
    """All classes, as answers are compared with them."""
    return sorted({_plain(label) for label in task.labels or [one.reference for one in answers]})


def measures(task: Task) -> list[str]:
    """Its metrics as they are named in reports."""
    return [f"{task.name}_{metric}" for metric in task.metrics]


def counts(task: Task, answers: Sequence[Answered]) -> NDArray[np.float64]:
    """Answers × 3·classes: of each class, whether answer and reference are it, whether the answer is, whether the reference is."""
    classes = np.array(labels(task, answers))
    given, expected = (
        np.array([_plain(text) for text in of])[:, None] == classes
        for of in ([one.answer for one in answers], [one.reference for one in answers])
    )
    return np.stack([given & expected, given, expected], axis=2).reshape(len(answers), -1).astype(np.float64)


def macro_f1_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """`macro_f1` of each row of sums of `counts`, draws × 3·classes."""
    right, given, expected = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
    size = given + expected
    scores = np.divide(2 * right, size, out=np.zeros_like(size), where=size > 0)
    return np.asarray(scores.sum(axis=1) / np.maximum(1, (size > 0).sum(axis=1)))


def macro_f1(classes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> float:
    """Of (reference, answer) pairs: the mean over the classes that either side has of 2·right / (given + expected)."""
    scores = []
    for label in classes:
        given, expected = (sum(pair[side] == label for pair in pairs) for side in (1, 0))
        right = sum(pair == (label, label) for pair in pairs)
        if given or expected:
            scores.append(2 * right / (given + expected))
    return fmean(scores) if scores else 0.0


def parsed(text: str) -> Any:
    """The value of JSON in a text, in a fenced block too; MISSING where it is none."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return MISSING


def fields(value: Any) -> dict[str, Any]:
    """Leaves of a JSON object by their path, `address.city`; an empty object within is a leaf. {} for what is no object."""
    return dict(_leaves(value, "")) if isinstance(value, dict) else {}


def _leaves(value: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, place)
        else:
            yield place, inner


def _same(one: Any, other: Any) -> bool:
    """Whether two values of fields are one: texts by their plain form, numbers by value, booleans as what they are."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return _plain(one) == _plain(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _plain(text: str) -> str:
    """What texts are compared by: lower case, single spaces, nothing at the ends."""
    return SPACES.sub(" ", text).strip(ENDS).casefold()


def _accuracy(task: Task, answers: Sequence[Answered]) -> list[float]:
    return [float(_plain(one.answer) == _plain(one.reference)) for one in answers]


def _exact_match(task: Task, answers: Sequence[Answered]) -> list[float]:
    found = []
    for one in answers:
        expected, given = parsed(one.reference), parsed(one.answer)
        is_same = given is not MISSING and _same(given, expected) if isinstance(expected, dict | list) else False
        found.append(float(is_same or _plain(one.answer) == _plain(one.reference)))
    return found


def _valid_json(task: Task, answers: Sequence[Answered]) -> list[float]:
    return [float(parsed(one.answer) is not MISSING) for one in answers]


def _valid_schema(task: Task, answers: Sequence[Answered]) -> list[float]:
    validator = _validator(task)
    values = (parsed(one.answer) for one in answers)
    return [float(value is not MISSING and validator.is_valid(value)) for value in values]


def _field_accuracy(task: Task, answers: Sequence[Answered]) -> list[float]:
    return [right / expected if expected else float(not given) for right, given, expected in map(_matched, answers)]


def _field_f1(task: Task, answers: Sequence[Answered]) -> list[float]:
    return [
        2 * right / (given + expected) if given + expected else 1.0 for right, given, expected in map(_matched, answers)
    ]


def _matched(one: Answered) -> tuple[int, int, int]:
    """(fields with the same value, fields of the answer, fields of the reference)."""
    given, expected = fields(parsed(one.answer)), fields(parsed(one.reference))
    right = sum(key in given and _same(given[key], value) for key, value in expected.items())
    return right, len(given), len(expected)


def _macro_f1(name: str, task: Task, answers: Sequence[Answered], confidence: float, seed: int) -> dict[str, float]:
    """Its interval is a bootstrap over rows, each resample with its own F1 of each class; where all have one value, Wilson's."""
    classes = labels(task, answers)
    pairs = [(_plain(one.reference), _plain(one.answer)) for one in answers]
    draw = random.Random(seed)
    found = sorted(macro_f1(classes, draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    value, low, high = macro_f1(classes, pairs), found[floor(tail * RESAMPLES)], found[ceil((1 - tail) * RESAMPLES) - 1]
    if low == high:
        low, high = intervals.wilson(round(value * len(pairs)), len(pairs), confidence)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _validator(task: Task) -> Any:
    return _compiled(task.name, json.dumps(task.schema, sort_keys=True))


@cache
def _compiled(name: str, schema: str) -> Any:
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError

    value = json.loads(schema)
    if value is None:
        raise SystemExit(
            f"evaluate.tasks: '{name}': valid_schema needs a JSON Schema: state it as `schema` (conf/evaluate)"
        )
    kind = validators.validator_for(value, default=validators.Draft202012Validator)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise SystemExit(
            f"evaluate.tasks: '{name}': schema: {' '.join(str(error.message).split())}: correct it in conf/evaluate"
        ) from None
    return kind(value)


MEASURES: Mapping[str, Measure] = {
    "accuracy": _accuracy,
    "exact_match": _exact_match,
    "valid_json": _valid_json,
    "valid_schema": _valid_schema,
    "field_accuracy": _field_accuracy,
    "field_f1": _field_f1,
}
METRICS = ("macro_f1", *MEASURES)
