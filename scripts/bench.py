"""Measure a served variant of the release under load: rates, latencies, queue, memory, and what its draft is worth.

Reads   models/<model of bench.<variant>>, data/mix/test.jsonl, data/general.jsonl
Writes  reports/bench/<variant>.json
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from temper import levels, load, lossless, metrics, params, progress, speculation, stage, variants, vllm
from temper.levels import Load
from temper.load import Chat
from temper.variants import Served

TEST, GENERAL = Path("data/mix/test.jsonl"), Path("data/general.jsonl")


@dataclass
class Bench(Served):
    load: Load
    seed: int


def main() -> None:
    progress.quiet()
    variant, folder, release = sys.argv[1], *(Path("models", name) for name in sys.argv[2:])
    place = f"bench.{variant}"
    cfg = params.load(f"bench.{variant}", Bench)
    variants.check(cfg, place)
    cfg.load.loops(place)
    vllm.require_build()
    rows = load.rows(TEST)

    model = variants.weights(cfg, folder, release).name
    with variants.endpoint(cfg, folder, release, cfg.seed, params.runtime()) as server:
        figures = levels.measured(server.url, model, rows, cfg.load, cfg.seed, place)
        if draft := cfg.speculation:
            asked: dict[str, Sequence[Chat | str]] = {}
            asked[speculation.DOMAIN] = load.prompts(rows, draft.checked, cfg.seed)
            asked[speculation.GENERIC] = load.beginnings(GENERAL, draft.generic, cfg.seed)
            held = lossless.held(server.url, model, asked, draft.max_tokens, draft.tie)
            lossless.require(held, draft.tie, place)
            figures |= held | speculation.contrast(held)
        figures |= {"start_seconds": server.start_seconds, "peak_memory_gb": server.peak_memory_gb()}
    metrics.write(f"reports/bench/{variant}.json", figures)


if __name__ == "__main__":
    stage.run(main, f"bench/{sys.argv[1]}")
