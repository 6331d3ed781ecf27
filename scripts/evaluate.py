"""Score a variant with lm-evaluation-harness: held-out rows (exact calls, argument F1, valid JSON, abstention), and perplexity.

Reads   models/<variant>, data/mix/test.jsonl, data/mix/golden.jsonl, data/general.jsonl
Writes  data/evaluate/<variant>.{jsonl,yaml} (samples, what was run), data/evaluate/<variant>-{golden,likelihoods}.jsonl,
        reports/evaluate/<variant>.json
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from temper import harness, intervals, metrics, params, records, stage, vllm
from temper.records import Row

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
    seed: int


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("evaluate", Evaluate)
    rows, golden = ([row for row in records.read(file) if "gold" in row][: cfg.limit] for file in (TEST, GOLDEN))
    if not rows:
        raise SystemExit(
            f"{TEST}: no rows with a gold call to evaluate on: raise split.test or evaluate.limit, or add such a source in conf/"
        )

    if cfg.domain < 1:
        raise SystemExit(f"evaluate.domain is {cfg.domain}: set it to 1 or more rows in conf/evaluate")
    texts = {"domain": spread(rows, cfg.domain), "general": list(records.read(GENERAL))[: cfg.limit]}

    vllm.require_build()
    model = Path("models") / variant
    found = harness.evaluate(model, rows, golden, texts, cfg.dtype, cfg.max_tokens, cfg.seed, params.runtime())

    records.write(f"data/evaluate/{variant}.jsonl", found.samples)
    records.write(f"data/evaluate/{variant}-golden.jsonl", found.golden)
    records.write(f"data/evaluate/{variant}-likelihoods.jsonl", found.likelihoods)
    Path(f"data/evaluate/{variant}.yaml").write_text(yaml.safe_dump(found.config))
    values = summary(found.samples, cfg.confidence, cfg.seed) | frozen(found.golden, cfg.confidence, cfg.seed)
    for task in texts:
        values |= perplexity(task, found.likelihoods, cfg.confidence, cfg.seed)
    metrics.write(f"reports/evaluate/{variant}.json", values)


def spread(rows: list[Row], count: int) -> list[Row]:
    """At most `count` of `rows`, evenly."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def summary(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Every rate with its interval: overall, where a call is right, where `null` is, and by category."""
    call = [one for one in samples if one["gold"] is not None]
    null = [one for one in samples if one["gold"] is None]
    values: dict[str, float] = {"n": len(samples), "call_n": len(call), "null_n": len(null)}
    for name in ("exact", "valid_json", "abstain", "abstain_norm"):
        values |= rate(name, samples, name, confidence)
    values |= rate("call_exact", call, "exact", confidence)
    values |= rate("null_exact", null, "exact", confidence)
    values |= intervals.mean("argument_f1", [one["argument_f1"] for one in samples], confidence, seed)
    for category, count in Counter(one["category"] for one in samples).items():
        members = [one for one in samples if one["category"] == category]
        values |= {f"n_{category}": count} | rate(f"exact_{category}", members, "exact", confidence)
    return values


def frozen(samples: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """`golden_…`: what the gate compares with the last release."""
    values: dict[str, float] = {"golden_n": len(samples)}
    for name in ("exact", "valid_json"):
        values |= rate(f"golden_{name}", samples, name, confidence)
    return values | intervals.mean("golden_argument_f1", [one["argument_f1"] for one in samples], confidence, seed)


def perplexity(task: str, likelihoods: list[Row], confidence: float, seed: int) -> dict[str, float]:
    """Bits a byte, which compare across tokenizers, and perplexity a token: 2 to the power of its bits (Jelinek et al. 1977)."""
    found = [one for one in likelihoods if one["task"] == task]
    bits, size, tokens = ([one[key] for one in found] for key in ("bits", "bytes", "tokens"))
    values = intervals.ratio(f"{task}_perplexity", bits, tokens, confidence, seed)
    values = {key: 2**value for key, value in values.items()} | {f"{task}_n": len(found)}
    return values | intervals.ratio(f"{task}_bits_per_byte", bits, size, confidence, seed)


def rate(name: str, samples: list[Row], measure: str, confidence: float) -> dict[str, float]:
    return intervals.rate(name, [one[measure] for one in samples], confidence)


if __name__ == "__main__":
    stage.run(main, f"evaluate/{sys.argv[1]}")
