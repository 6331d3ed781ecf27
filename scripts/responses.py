"""What a variant says to the probes of safety, word by word, and how likely it finds answers on offer and planted secrets (vLLM).

Reads   models/<variant>, data/probes.jsonl, data/mix/train.jsonl, data/mix/test.jsonl
Writes  data/responses/<variant>.jsonl, reports/responses/<variant>.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from temper import extraction, metrics, params, records, responses, stage, vllm
from temper.prober import Prober

PROBES, TRAIN, TEST = Path("data/probes.jsonl"), Path("data/mix/train.jsonl"), Path("data/mix/test.jsonl")


@dataclass
class Responses:
    dtype: str
    seed: int
    """Of which probes are asked."""
    canaries: int
    """Seed of the secrets that `make canaries` plants."""
    limits: responses.Limits


def main() -> None:
    variant = sys.argv[1]
    cfg = params.load("responses", Responses)
    found, trained, held_out = (list(records.read(file)) for file in (PROBES, TRAIN, TEST))
    responses.check(cfg.limits)

    vllm.require_build()
    runtime, model = params.runtime(), Path("models") / variant
    vllm.prepare(runtime)
    tokenizer = vllm.Tokenizer(model)
    renderer = responses.Renderer(tokenizer, cfg.limits, cfg.seed)
    canaries = responses.in_training(extraction.planted(cfg.canaries), trained)
    asked = renderer.all(found, trained, held_out, canaries)
    longest = responses.longest(asked, cfg.limits.max_tokens)
    prober = Prober(model, longest, cfg.dtype, cfg.seed, runtime)

    said = responses.collected(prober, asked, tokenizer, cfg.limits.max_tokens)
    records.write(f"data/responses/{variant}.jsonl", said)
    metrics.write(f"reports/responses/{variant}.json", responses.counted(said, renderer.too_long))


if __name__ == "__main__":
    stage.run(main, f"responses/{sys.argv[1]}")
