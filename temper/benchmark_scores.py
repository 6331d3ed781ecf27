"""What the samples of public benchmarks amount to: each metric with its interval, and item by item for comparisons.

A sample is a row of data/evaluate/<variant>-benchmarks.jsonl (temper/benchmark_tasks.py). A metric that scores parts of an item,
such as IFEval's single instructions, is their mean over all parts of all items.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from temper import intervals
from temper.records import Row

UNFILTERED = "none"
Items = Mapping[tuple[str, str], float]
"""Scores by part of the benchmark and item."""


def summary(found: Sequence[Row], confidence: float, seed: int) -> dict[str, float]:
    """Each metric of each benchmark over all its items, by filter where it has one, with its interval; and `<benchmark>_n`.

    The interval of a mean over parts of items is by a bootstrap over items.
    """
    values: dict[str, float] = {}
    for name, rows in by_measure(found).items():
        scores = [score for _, score in rows]
        values |= {f"{rows[0][0]['benchmark']}_n": len(rows)} | _measured(name, scores, confidence, seed)
    return values


def by_item(found: Sequence[Row]) -> dict[str, Items]:
    """Scores of every item, by metric as `summary` names it, such that their mean is the metric.

    Of an item with parts that is their sum over how many parts an item has on average, which is the same for every model.
    """
    scored: dict[str, Items] = {}
    for name, rows in by_measure(found).items():
        if any(isinstance(score, list) for _, score in rows):
            parts = fmean(len(score) for _, score in rows)
            scored[name] = {_item(row): sum(score) / parts for row, score in rows}
        else:
            scored[name] = {_item(row): float(score) for row, score in rows}
    return scored


def by_measure(found: Sequence[Row]) -> dict[str, list[tuple[Row, Any]]]:
    """The samples that have a metric, each with its score, by the metric's name in reports: `gsm8k_exact_match_strict_match`."""
    measures: dict[str, list[tuple[Row, Any]]] = {}
    for row in found:
        suffix = "" if row["filter"] == UNFILTERED else f"_{row['filter'].replace('-', '_')}"
        for metric, score in row["scores"].items():
            measures.setdefault(f"{row['benchmark']}_{metric}{suffix}", []).append((row, score))
    return dict(sorted(measures.items()))


def _item(row: Row) -> tuple[str, str]:
    return row["task"], str(row["item"])


def _measured(name: str, scores: Sequence[Any], confidence: float, seed: int) -> dict[str, float]:
    if any(isinstance(score, list) for score in scores):
        return intervals.ratio(
            name, [sum(score) for score in scores], [len(score) for score in scores], confidence, seed
        )
    values = [float(score) for score in scores]
    if set(values) <= {0.0, 1.0}:
        return intervals.rate(name, [value == 1 for value in values], confidence)
    return intervals.mean(name, values, confidence, seed)
