"""Score a variant on the held-out test rows with lm-evaluation-harness: exact calls, argument F1, valid JSON, abstention.

Reads   models/<variant>, data/split/test.jsonl
Writes  data/evaluate/<variant>.{jsonl,yaml} (samples, what was run), reports/evaluate/<variant>.json
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from temper import harness, intervals, metrics, params, records, stage
from temper.records import Row

TEST = Path("data/split/test.jsonl")


@dataclass
class Evaluate:
    dtype: str
    max_tokens: int
    """Of an answer."""
    confidence: float
    """Of the intervals."""
    limit: int | None
    """Rows, for small runs; null for all."""
    seed: int


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("evaluate", Evaluate)
    rows = list(records.read(TEST))[: cfg.limit]
    if not rows:
        raise SystemExit(f"{TEST}: no rows to evaluate on: raise split.test or evaluate.limit in conf/")

    found = harness.evaluate(Path("models") / variant, rows, cfg.dtype, cfg.max_tokens, cfg.seed, params.runtime())

    records.write(f"data/evaluate/{variant}.jsonl", found.samples)
    Path(f"data/evaluate/{variant}.yaml").write_text(yaml.safe_dump(found.config))
    metrics.write(f"reports/evaluate/{variant}.json", summary(found.samples, cfg.confidence, cfg.seed))


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


def rate(name: str, samples: list[Row], measure: str, confidence: float) -> dict[str, float]:
    return intervals.rate(name, [one[measure] for one in samples], confidence)


if __name__ == "__main__":
    stage.run(main, f"evaluate/{sys.argv[1]}")
