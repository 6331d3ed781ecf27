"""A policy's own answers to the prompts of rows, by vLLM in a process of its own: its end leaves the memory to a judge's model."""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from temper import params, records, stage, vllm
from temper.records import Row
from temper.vllm import Answer, Sampling


def sampled(model: Path, rows: list[Row], sampling: Sampling, dtype: str, base: int, file: Path) -> list[list[Answer]]:
    """`sampling.samples` answers to each row's prompt, its last turn left out; from `file` where an earlier try left them."""
    if not rows:
        return []
    if not file.is_file():
        with ProcessPoolExecutor(1, get_context("spawn"), stage.bind_to_parent) as apart:
            try:
                found = apart.submit(_sampled, model, rows, sampling, dtype, base).result()
            except BrokenProcessPool:
                raise SystemExit(
                    f"{model}: vLLM was killed while it sampled, mostly for want of memory: "
                    "lower hardware.runtime.serve_memory_gb in conf/hardware"
                ) from None
        records.write(file, ({"answers": [*map(list, answers)]} for answers in found))
    return [[Answer(*answer) for answer in row["answers"]] for row in records.read(file)]


def seed(name: str, base: int) -> int:
    """A seed in [0, 2³¹) for one prompt, the same whatever other prompts there are."""
    return int.from_bytes(hashlib.sha256(f"{base}/{name}".encode()).digest()[:4]) // 2


def _sampled(model: Path, rows: list[Row], sampling: Sampling, dtype: str, base: int) -> list[list[Answer]]:
    runtime = params.runtime()
    vllm.prepare(runtime)
    tokenizer = vllm.Tokenizer(model)
    prompts = [tokenizer.encode(tokenizer.render(row["messages"][:-1])) for row in rows]
    engine = vllm.engine(dtype, max(map(len, prompts)) + sampling.max_tokens, base, runtime)
    return vllm.sample(model, prompts, [seed(row["id"], base) for row in rows], sampling, engine)
