"""Score a variant with lm-evaluation-harness: held-out rows (calls, choices, abstention, own tasks), benchmarks, perplexity.

Reads   models/<variant>, data/mix/test.jsonl, data/mix/golden.jsonl, data/general.jsonl, public benchmarks (evaluate.benchmarks)
Writes  data/evaluate/<variant>.{jsonl,yaml} (samples, what was run), data/evaluate/<variant>-{golden,likelihoods,tasks,
        benchmarks}.jsonl, reports/evaluate/<variant>.json
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from temper import (
    benchmark_scores,
    benchmark_tasks,
    evaluation_figures,
    harness,
    metrics,
    params,
    record,
    records,
    spread,
    stage,
    task_metrics,
    vllm,
)
from temper.benchmark_tasks import BenchmarkTask
from temper.harness import Asked, Evaluation
from temper.records import Row
from temper.task_metrics import Answered, Task

TEST, GOLDEN, GENERAL = Path("data/mix/test.jsonl"), Path("data/mix/golden.jsonl"), Path("data/general.jsonl")


@dataclass
class Evaluate:
    dtype: str
    quantized_dtype: str
    """Of a model of 4-bit weights, which vLLM takes in half precision alone."""
    max_tokens: int
    """Of an answer."""
    confidence: float
    """Of the intervals."""
    limit: int | None
    """Rows of each set, and passages of general text, for small runs; null for all."""
    domain: int
    """Rows, spread over the test split, whose answers' likelihood is measured."""
    tasks: list[Task]
    """Of the user's own."""
    benchmarks: list[BenchmarkTask]
    length: int
    """Tokens of a benchmark's item and answer; the harness cuts longer items at their beginning."""
    seed: int


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("evaluate", Evaluate)
    asked, chosen = prepared(cfg)

    vllm.require_build()
    model = Path("models") / variant
    dtype = cfg.quantized_dtype if vllm.is_quantized(model) else cfg.dtype
    found = harness.evaluate(model, asked, dtype, cfg.max_tokens, cfg.length, cfg.seed, params.runtime())

    records.write(f"data/evaluate/{variant}.jsonl", found.samples)
    records.write(f"data/evaluate/{variant}-golden.jsonl", found.golden)
    records.write(f"data/evaluate/{variant}-likelihoods.jsonl", found.likelihoods)
    records.write(f"data/evaluate/{variant}-tasks.jsonl", found.answers)
    records.write(f"data/evaluate/{variant}-benchmarks.jsonl", found.benchmarks)
    Path(f"data/evaluate/{variant}.yaml").write_text(yaml.safe_dump(found.config))
    metrics.write(f"reports/evaluate/{variant}.json", measured(found, asked, chosen, cfg))


def prepared(cfg: Evaluate) -> tuple[Asked, dict[str, list[Row]]]:
    """What is asked, and the rows of each task of the user's own; exits where nothing is, or settings make no sense."""
    if cfg.domain < 1:
        raise SystemExit(f"evaluate.domain is {cfg.domain}: set it to 1 or more rows in conf/evaluate")
    task_metrics.checked(cfg.tasks)
    test = list(records.read(TEST))
    rows, golden = ([row for row in part if "gold" in row][: cfg.limit] for part in (test, records.read(GOLDEN)))
    chosen = task_metrics.chosen(cfg.tasks, [row for row in test if record.kind(row) == "chat"])
    chats = {row["id"]: row for of in chosen.values() for row in of[: cfg.limit]}
    if not rows and not chats:
        raise SystemExit(
            f"{TEST}: no rows with a gold call to evaluate on: raise split.test or evaluate.limit, add such a source in conf/, or "
            "name a task for the rows that there are (evaluate.tasks)"
        )
    texts = {
        "domain": spread.evenly(rows or list(chats.values()), cfg.domain),
        "general": list(records.read(GENERAL))[: cfg.limit],
    }
    return Asked(rows, golden, texts, list(chats.values()), benchmark_tasks.loaded(cfg.benchmarks)), chosen


def measured(found: Evaluation, asked: Asked, chosen: Mapping[str, Sequence[Row]], cfg: Evaluate) -> Row:
    """Every metric of the variant; exits where two are of one name."""
    parts: list[Row] = [evaluation_figures.summary(found.samples, cfg.confidence, cfg.seed)]
    parts.append(evaluation_figures.frozen(found.golden, cfg.confidence, cfg.seed))
    for task in asked.texts:
        parts.append(evaluation_figures.perplexity(task, found.likelihoods, cfg.confidence, cfg.seed))
    answers = {one["id"]: Answered(one["reference"], one["output"]) for one in found.answers}
    for own in cfg.tasks:
        of = [answers[row["id"]] for row in chosen[own.name] if row["id"] in answers]
        parts.append(task_metrics.summary(own, of, cfg.confidence, cfg.seed))
    return evaluation_figures.joined([*parts, benchmark_scores.summary(found.benchmarks, cfg.confidence, cfg.seed)])


if __name__ == "__main__":
    stage.run(main, f"evaluate/{sys.argv[1]}")
