"""A GGUF file as llama.cpp runs it: loaded, asked, and as an engine whose logits are compared."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.gguf"


def load(path: Path, threads: int, context: int, *, all_logits: bool = False) -> Any:
    """A llama.cpp model with room for `context` tokens, which keeps the logits of all positions or of the last; exits when the
    file cannot be loaded."""
    import llama_cpp

    try:
        return llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            seed=0,
            flash_attn=True,  # which llama.cpp would choose by itself, and its Python package turns off
            logits_all=all_logits,
            verbose=False,
        )
    except ValueError as error:
        raise SystemExit(f"{path}: llama.cpp cannot load it ({error}): write it again with `make quantize`") from None


def reply(model: Any, messages: list[dict[str, str]], max_tokens: int) -> Iterator[str]:
    """The greedy answer to a chat, piece by piece, by the template inside the file."""
    chunks = model.create_chat_completion(messages, temperature=0.0, max_tokens=max_tokens, stream=True)
    for chunk in chunks:
        yield chunk["choices"][0]["delta"].get("content") or ""


class Llama:
    """A GGUF file as temper.engines.Engine."""

    def __init__(self, path: Path, threads: int, context: int, ends: set[int]) -> None:
        self.model, self.ends = load(path, threads, context, all_logits=True), ends

    def log_probs(self, ids: list[int], count: int) -> "Tensor":
        import torch

        self.model.reset()
        self.model.eval(ids)
        logits = self.model.scores[len(ids) - 1 - count : len(ids) - 1]
        return torch.tensor(logits, dtype=torch.float32).log_softmax(-1)

    def answers(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def _answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        self.model.reset()
        # Temperature 0 is llama.cpp's greedy sampler.
        made = islice(self.model.generate(prompt, temp=0.0, repeat_penalty=1.0), max_tokens)
        return list(takewhile(lambda token: token not in self.ends, made))


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect llama.cpp's log lines instead of printing them."""
    import llama_cpp
    from llama_cpp import _logger

    lines: list[str] = []

    def collect(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    # ctypes keeps no reference to a callback: this one must live as long as the block.
    callback = llama_cpp.llama_log_callback(collect)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))
