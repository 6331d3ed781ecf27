"""Measure the served model under load: tokens a second, time to first token and inter-token latency, level by level.

Reads   models/<release>, data/mix/test.jsonl
Writes  reports/bench/<variant>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import load, metrics, params, progress, records, stage, vllm
from temper.server import Server

TEST = Path("data/mix/test.jsonl")


@dataclass
class Bench:
    dtype: str
    concurrency: list[int]
    requests: list[int]
    max_tokens: int
    warmup: int
    seed: int


def main() -> None:
    progress.quiet()
    variant, release = sys.argv[1:]
    cfg = params.load(f"bench.{variant}", Bench)
    levels = paired(cfg, variant)
    vllm.require_build()
    rows = [row for row in records.read(TEST) if row.get("kind", "call") in ("call", "chat")]
    if not rows:
        raise SystemExit(f"{TEST}: no rows, expected at least one to send: raise split.test or ingest.limit")
    figures: dict[str, float] = {}
    with Server(Path("models", release), cfg.dtype, cfg.seed, params.runtime()) as server:
        for concurrency, count in levels:
            chats = load.prompts(rows, count, cfg.seed)
            limits = {"concurrency": concurrency, "max_tokens": cfg.max_tokens, "warmup": cfg.warmup}
            result = load.run(server.url, server.name, chats, **limits)
            figures |= load.figures(result, concurrency, cfg.max_tokens)
            print(f"concurrency {concurrency}: {figures[f'c{concurrency}_tokens_per_second']:.0f} tokens/s", flush=True)
        figures |= {"start_seconds": server.start_seconds, "peak_memory_gb": server.peak_memory_gb()}
    metrics.write(f"reports/bench/{variant}.json", figures)


def paired(cfg: Bench, variant: str) -> list[tuple[int, int]]:
    """(concurrency, requests) a level; exits when the two lists cannot be paired or a level is not full once."""
    place = f"bench.{variant}"
    if len(cfg.concurrency) != len(cfg.requests) or not cfg.concurrency:
        found = f"{len(cfg.requests)} requests for {len(cfg.concurrency)} concurrency levels"
        raise SystemExit(f"{place}: {found}, expected one each: correct conf/bench")
    for concurrency, requests in zip(cfg.concurrency, cfg.requests, strict=True):
        if not 0 < concurrency <= requests:
            raise SystemExit(
                f"{place}: {requests} requests at concurrency {concurrency}, expected at least as many: correct conf/bench"
            )
    return list(zip(cfg.concurrency, cfg.requests, strict=True))


if __name__ == "__main__":
    stage.run(main, f"bench/{sys.argv[1]}")
