"""vLLM: an offline engine in this process, whose answers depend on its inputs alone, and a server for load tests."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from temper import progress, supervisor
from temper.records import Row

Chat = list[Row]
# What shapes a batch decides the last bits of a sum, so it is fixed here and is no setting of a machine.
SEQUENCES = 128
BATCHED_TOKENS = 8192
BLOCK = 32  # tokens; the CPU default of 128 is longer than most prompts here, so none would share a prefix
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Sampling:
    samples: int
    temperature: float
    top_p: float
    max_tokens: int


def sample(
    model: Path, prompts: list[list[int]], seeds: list[int], sampling: Sampling, engine: dict[str, Any]
) -> list[list[str]]:
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
    return [[answer.text for answer in output.outputs] for output in outputs]


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


class Server:
    """An OpenAI-compatible vLLM server on a loopback port, for the time of a `with` block; it cannot outlive this process."""

    def __init__(self, model: Path, engine: dict[str, Any], port: int | None = None, timeout: float = 900.0) -> None:
        self.model, self.engine, self.timeout = model, engine, timeout
        self.port = free_port() if port is None else checked_port(port)
        self.url = f"http://{HOST}:{self.port}"
        self.start_seconds = 0.0

    def __enter__(self) -> "Server":
        started = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="temper-server-")
        self.log = Path(self._folder.name) / "server.log"
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        self.process = supervisor.start(self._command(), self.log, environment)
        try:
            self._await_health()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        supervisor.stop(self.process)
        self._folder.cleanup()

    def peak_memory_gb(self) -> float:
        """Sum of the peak resident memory of the server's processes so far, in GB."""
        statuses = (Path(f"/proc/{pid}/status") for pid in _group(self.process.pid))
        peaks = (re.search(r"VmHWM:\s+(\d+) kB", path.read_text()) for path in statuses)
        return sum(int(peak[1]) for peak in peaks if peak) * 1024 / 1e9

    def _command(self) -> list[str]:
        # `vllm serve` looks for package metadata under the name vllm, which the CPU build does not have.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "temper", "--host", HOST, "--port", str(self.port)]
        command += ["--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
        return command + [flag for key, value in self.engine.items() for flag in _flag(key, value)]

    def _await_health(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"vLLM server for {self.model} ended while starting: {self._last_words()}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise SystemExit(
            f"vLLM server for {self.model} was not ready after {self.timeout:.0f} s: free memory or cores and repeat "
            f"({self._last_words()})"
        )

    def _last_words(self) -> str:
        """The log's last error, or its last lines, in one line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\w(Error|Exception): ", line)]
        return " | ".join(errors[-1:] or lines[-3:])[-600:] or "it printed nothing"


def load(server: Server, requests: list[tuple[Chat, int]], concurrency: int, max_tokens: int, warmup: int) -> Row:
    """Drive `server` with streaming chats, `concurrency` at a time, by vLLM's own benchmark client; its raw figures.

    Every answer has `max_tokens` tokens. A request is a chat and its length in tokens.
    """
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    inputs = [SampleRequest("", length, max_tokens, chat_messages=chat) for chat, length in requests]
    run = benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai-chat",
        api_url=f"{server.url}/v1/chat/completions",
        base_url=server.url,
        model_id="temper",
        model_name="temper",
        tokenizer=Tokenizer(server.model).wrapped,
        input_requests=inputs,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=not progress.on_terminal(),
        num_warmups=warmup,
        profile=False,
        selected_percentile_metrics=["ttft", "itl"],
        selected_percentiles=[50.0, 99.0],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=concurrency,
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0.0},
        ready_check_timeout_sec=0,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # a page of figures, which the metrics hold too
        return dict(asyncio.run(run))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def checked_port(port: int) -> int:
    """`port` if nothing listens there; else exits with the remedy."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SystemExit(
                f"port {port} on {HOST}: {error.strerror}: set hardware.runtime.port to another one, "
                "or to null for any that is free"
            ) from None
    return port


def _flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def _group(leader: int) -> Iterator[int]:
    """Ids of the live processes in the process group of `leader`."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(folder.name)) == leader:
                    yield int(folder.name)


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Keep the handlers of the stage: an engine in this process replaces them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
