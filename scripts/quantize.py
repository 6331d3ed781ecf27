"""Quantize the release: int4 by GPTQ or AWQ for vLLM, GGUF for llama.cpp.

Reads   models/<release>, data/audit/train.jsonl (rows to calibrate on)
Writes  models/<format>, reports/quantize/<format>.json
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper import calibration, gguf, gptq, metrics, params, progress, stage

TRAIN = Path("data/audit/train.jsonl")
SCHEMAS: dict[str, type[Any]] = {"gptq": gptq.Gptq, "awq": gptq.Awq, "gguf": gguf.Gguf}
WRITERS: dict[str, Callable[..., dict[str, Any]]] = {"gptq": gptq.write_gptq, "awq": gptq.write_awq, "gguf": gguf.write}


def main() -> None:
    progress.quiet()
    name, release = sys.argv[1:]
    cfg = params.load(f"quantize.{name}", SCHEMAS[name])
    model, threads = Path("models", release), int(params.runtime()["threads"])
    tokenizer = calibration.tokenizer(model)

    drawn = cfg.calibration
    rows = calibration.token_ids(TRAIN, tokenizer, drawn, f"quantize.{name}") if drawn else []
    found = WRITERS[name](model, Path("models", name), rows, cfg, threads)
    metrics.write(f"reports/quantize/{name}.json", found)


if __name__ == "__main__":
    stage.run(main, f"quantize/{sys.argv[1]}")
