"""What llama.cpp's llama-bench does, through llama.cpp's own functions: its Python package ships the library and not that program.

python -m benchmarks.llama_bench MODEL.gguf THREADS PROMPT GENERATED DEPTH REPEATS      prints JSON

As in tools/llama-bench/llama-bench.cpp: random tokens, a warm-up, and then for each repeat, from an empty memory, PROMPT tokens in
batches (`pp`), and GENERATED tokens one at a time behind a context of DEPTH (`tg`), with no sampling in between.
"""

import json
import random
import sys
import time
from typing import Any

import llama_cpp

from temper import llama

BATCH = 512  # llama-bench's n_ubatch


def main(path: str, *numbers: str) -> None:
    threads, prompt, generated, depth, repeats = map(int, numbers)
    with llama.captured_log():
        model, context = opened(path, threads, prompt + generated + depth)
        tokens = random.Random(0).choices(range(vocabulary(model)), k=prompt + generated + depth)
        measured(context, tokens, prompt, generated, depth)
        found = [measured(context, tokens, prompt, generated, depth) for _ in range(repeats)]
    print(json.dumps({"pp": [one[0] for one in found], "tg": [one[1] for one in found]}))


def opened(path: str, threads: int, length: int) -> tuple[Any, Any]:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"{path}: llama.cpp cannot load it")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = length, BATCH, BATCH
    options.n_threads = options.n_threads_batch = threads
    return model, llama_cpp.llama_init_from_model(model, options)


def vocabulary(model: Any) -> int:
    return int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))


def measured(context: Any, tokens: list[int], prompt: int, generated: int, depth: int) -> tuple[float, float]:
    """Tokens a second of prompts, and of answers."""
    forget(context)
    started = time.perf_counter()
    decode(context, tokens[:prompt], BATCH)
    read = prompt / (time.perf_counter() - started)
    forget(context)
    decode(context, tokens[:depth], BATCH)
    started = time.perf_counter()
    decode(context, tokens[depth : depth + generated], 1)
    return read, generated / (time.perf_counter() - started)


def forget(context: Any) -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)


def decode(context: Any, tokens: list[int], at_once: int) -> None:
    for start in range(0, len(tokens), at_once):
        part = tokens[start : start + at_once]
        given = (llama_cpp.llama_token * len(part))(*part)
        if status := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(given, len(part))):
            raise SystemExit(f"llama.cpp: decode ended with status {status}")
        llama_cpp.llama_synchronize(context)


if __name__ == "__main__":
    main(*sys.argv[1:])
