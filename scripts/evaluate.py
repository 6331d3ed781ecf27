"""Score a variant with lm-evaluation-harness: held-out rows (calls, choices, abstention, own tasks), benchmarks, perplexity.

Reads   models/<variant>, data/mix/test.jsonl, data/mix/golden.jsonl, data/general.jsonl, public benchmarks (evaluate.benchmarks)
Writes  data/evaluate/<variant>.{jsonl,yaml} (samples, what was run), data/evaluate/<variant>-{golden,likelihoods,tasks,
        benchmarks}.jsonl, reports/evaluate/<variant>.json
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from temper import (
    benchmark_scores,
    benchmark_tasks,
    harness,
    intervals,
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
    found = harness.evaluate(model, asked, cfg.dtype, cfg.max_tokens, cfg.length, cfg.seed, params.runtime())

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
    parts: list[Row] = [summary(found.samples, cfg.confidence, cfg.seed)]
    parts.append(frozen(found.golden, cfg.confidence, cfg.seed))
    parts += [perplexity(task, found.likelihoods, cfg.confidence, cfg.seed) for task in asked.texts]
    answers = {one["id"]: Answered(one["reference"], one["output"]) for one in found.answers}
    for own in cfg.tasks:
        of = [answers[row["id"]] for row in chosen[own.name] if row["id"] in answers]
        parts.append(task_metrics.summary(own, of, cfg.confidence, cfg.seed))
    return joined([*parts, benchmark_scores.summary(found.benchmarks, cfg.confidence, cfg.seed)])


def joined(parts: Sequence[Row]) -> Row:
    """All of them; exits naming a metric that two of them have, such as `call_n` of a task named call."""
    values: Row = {}
    for part in parts:
        if shared := sorted(values.keys() & part.keys()):
            raise SystemExit(
                f"evaluate: two metrics are named {shared[0]}: rename the task or the benchmark that has it (conf/evaluate)"
            )
        values |= part
    return values


def summary(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Every rate with its interval: overall, where a call is right, where `null` is, among several tools, and by category.

    A category's name, which is the user's, stands last (`exact_in_low`, `exact_low_in_low`), so that none takes another's place.
    """
    call = [one for one in samples if one["gold"] is not None]
    null = [one for one in samples if one["gold"] is None]
    values: dict[str, float] = {"n": len(samples), "call_n": len(call), "null_n": len(null)}
    several = [one for one in samples if "choose" in one]
    for name in ("exact", "valid_json", "abstain"):
        values |= rate(name, samples, name, confidence)
    values |= rate("call_exact", call, "exact", confidence) | rate("call_abstain", call, "abstain", confidence)
    values |= rate("null_exact", null, "exact", confidence) | rate("null_abstain", null, "abstain", confidence)
    for name in ("choose", "choose_norm"):
        values |= {"choose_n": len(several)} | rate(name, several, name, confidence)
    values |= share("argument_f1", samples, "argument_f1", confidence, seed)
    for category, count in Counter(one["category"] for one in samples).items():
        members = [one for one in samples if one["category"] == category]
        found = rate("exact", members, "exact", confidence)
        values |= {f"{name}_in_{category}": value for name, value in ({"n": count} | found).items()}
    return values


def frozen(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """`golden_…`: what the gate compares with the last release."""
    values: dict[str, float] = {"golden_n": len(samples)}
    for name in ("exact", "valid_json"):
        values |= rate(f"golden_{name}", samples, name, confidence)
    return values | share("golden_argument_f1", samples, "argument_f1", confidence, seed)


def perplexity(task: str, likelihoods: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Bits a byte, which compare across tokenizers, and perplexity a token: 2 to the power of its bits (Jelinek et al. 1977)."""
    found = [one for one in likelihoods if one["task"] == task]
    bits, size, tokens = ([one[key] for one in found] for key in ("bits", "bytes", "tokens"))
    values = intervals.ratio(f"{task}_perplexity", bits, tokens, confidence, seed)
    values = {key: 2**value for key, value in values.items()} | {f"{task}_n": len(found)}
    return values | intervals.ratio(f"{task}_bits_per_byte", bits, size, confidence, seed)


def rate(name: str, samples: list[Row], measure: str, confidence: float) -> dict[str, float]:
    return intervals.rate(name, [one[measure] for one in samples], confidence)


def share(name: str, samples: list[Row], measure: str, confidence: float, seed: int) -> dict[str, float]:
    """The mean of scores in [0, 1]: of all or nothing Wilson's interval, for where all are alike a bootstrap finds no spread."""
    scores = [float(one[measure]) for one in samples]
    if set(scores) <= {0.0, 1.0}:
        return intervals.rate(name, [score == 1 for score in scores], confidence)
    return intervals.mean(name, scores, confidence, seed)


if __name__ == "__main__":
    stage.run(main, f"evaluate/{sys.argv[1]}")
