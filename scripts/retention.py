"""Hold a quant against the model that it was made from: perplexity, KL divergence, greedy answers, task score; release it or not.

Reads   models/<format>, models/<release>, data/mix/test.jsonl
Writes  reports/retention/<format>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import calibration, engines, gptq, llama, metrics, params, progress, records, retention, stage
from temper.engines import Engine

TEST = Path("data/mix/test.jsonl")


@dataclass
class Retention:
    dtype: str
    """Of sums, in the model and in a quant that transformers runs."""
    texts: int
    """Rows whose next tokens are predicted."""
    positions: int
    """Of a row at most, its last ones."""
    answers: int
    """Rows that are answered."""
    max_tokens: int
    """Of an answer."""
    confidence: float
    """Of the intervals."""
    seed: int
    limits: retention.Limits


def main() -> None:
    progress.quiet()
    name, release = sys.argv[1:]
    cfg = params.load("retention", Retention)
    rows = [row for row in records.read(TEST) if "chosen" not in row]
    if not rows or min(cfg.texts, cfg.answers, cfg.positions) < 1:
        raise SystemExit(
            f"{TEST}: {len(rows)} rows for {cfg.texts} texts and {cfg.answers} answers: raise split.test, or retention.texts, "
            ".positions and .answers to 1 or more, in conf/"
        )

    model, threads = Path("models", release), int(params.runtime()["threads"])
    tokenizer = calibration.tokenizer(model)
    asked = retention.asked(rows, tokenizer, cfg.texts, cfg.positions, cfg.answers, cfg.max_tokens)

    # One after the other: two models of 8B do not fit beside each other.
    whole = retention.seen(engines.load(model, cfg.dtype, threads), asked)
    quant = retention.seen(engine(name, model, cfg.dtype, threads, asked.longest()), asked)

    found = retention.figures(asked, whole, quant, tokenizer, cfg.confidence, cfg.seed)
    if found["unjudged"]:
        print(f"{name}: cannot be judged by {found['unjudged']}", flush=True)
    metrics.write(f"reports/retention/{name}.json", found | retention.verdict(found, cfg.limits))


def engine(name: str, model: Path, dtype: str, threads: int, context: int) -> Engine:
    """The quant `name`: by llama.cpp where it is a GGUF, else with the weights that vLLM's kernels compute."""
    folder = Path("models", name)
    if name == "gguf":
        return llama.Llama(folder / llama.FILE, threads, context, engines.ends(model))
    return gptq.load(folder, dtype, threads)


if __name__ == "__main__":
    stage.run(main, f"retention/{sys.argv[1]}")
