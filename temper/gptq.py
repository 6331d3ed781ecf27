"""GPTQModel: int4 by GPTQ and by AWQ, in the layouts that vLLM's Marlin kernels take as they are."""

import contextlib
import csv
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import engines, model_files, progress, weights
from temper.calibration import Calibration
from temper.engines import Transformers

BITS = 4
GROUPS = (128, 64, 32)  # that Marlin takes
SUMS = 2
"""Threads of every sum while weights are rounded: others sum in another order, and a machine's settings may change no byte."""


@dataclass
class Gptq:
    """Frantar et al. 2022 (arXiv:2210.17323): round column by column, the rest making up for each error."""

    group_size: int
    """Weights that share a scale."""
    damp: float
    """Added to the Hessian's diagonal, as a share of its mean."""
    calibration: Calibration


@dataclass
class Awq:
    """Lin et al. 2023 (arXiv:2306.00978): scale up, before rounding, the channels that meet large activations."""

    group_size: int
    calibration: Calibration


def write_gptq(model: Path, target: Path, rows: list[list[int]], cfg: Gptq, threads: int) -> dict[str, Any]:
    """Write `model` to `target` by GPTQ, symmetric and without reordering (desc_act), and return what came out."""
    check_groups(model, cfg.group_size, "gptq")
    vendor = imported(threads, SUMS)
    config = vendor.quantization.GPTQConfig(
        bits=BITS, group_size=cfg.group_size, sym=True, desc_act=False, damp_percent=cfg.damp, offload_to_disk=False
    )
    return _write(vendor, config, model, target, rows, vendor.BACKEND.GPTQ_TORCH)


def write_awq(model: Path, target: Path, rows: list[list[int]], cfg: Awq, threads: int) -> dict[str, Any]:
    """Write `model` to `target` by AWQ, with zero points and packed as AutoAWQ's `gemm`, and return what came out."""
    check_groups(model, cfg.group_size, "awq")
    vendor = imported(threads, SUMS)
    config = vendor.quantization.AWQConfig(bits=BITS, group_size=cfg.group_size, sym=False, offload_to_disk=False)
    return _write(vendor, config, model, target, packed(rows, cfg.calibration.tokens), vendor.BACKEND.AWQ_TORCH)


def packed(rows: list[list[int]], length: int) -> list[list[int]]:
    """`rows` one after another, cut into pieces of `length` tokens without the rest, or as one piece where there are fewer.

    GPTQModel's AWQ searches scales on rows of one length. Of others it keeps the last alone, and rounds to nearest where that
    is too little of all.
    """
    tokens = [token for row in rows for token in row]
    length = min(length, len(tokens))
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


def check_groups(model: Path, size: int, name: str) -> None:
    """Exit unless every matrix of the layers of `model` has whole groups of `size` along its inputs."""
    place = f"quantize.{name}.group_size"
    if size not in GROUPS:
        raise SystemExit(
            f"{place}: {size}, expected {', '.join(map(str, GROUPS))}: correct model.group_size in conf/model"
        )
    widths = sorted({shape[1] for shape in matrices(model).values()})
    if odd := [width for width in widths if width % size]:
        fits = [other for other in GROUPS if not any(width % other for width in widths)]
        remedy = f"set model.group_size to {fits[0]} in conf/model" if fits else f"leave {name} out of recipe.formats"
        raise SystemExit(f"{place}: {size} does not divide {odd[0]}, a width of {model}: {remedy}")


def matrices(model: Path) -> dict[str, tuple[int, ...]]:
    """(outputs, inputs) of every matrix of the layers of `model`: what is quantized."""
    found = {name: one.shape for name, one in weights.stored(model).items()}
    return {name: shape for name, shape in found.items() if ".layers." in name and len(shape) == 2}


def load(folder: Path, dtype: str, threads: int) -> Transformers:
    """The quantized model in `folder` with every weight as its kernel computes it, in bf16 as vLLM serves it; sums in `dtype`."""
    import torch

    vendor = imported(threads, threads)
    with hushed():
        model = vendor.GPTQModel.load(
            str(folder), device=engines.device(), backend=vendor.BACKEND.TORCH, dtype=torch.bfloat16
        ).model
        for name, module in list(model.named_modules()):
            if isinstance(module, vendor.nn_modules.qlinear.BaseQuantLinear):
                model.set_submodule(name, dense(module))
    return Transformers(model.to(getattr(torch, dtype)), engines.ends(folder))


def dense(packed: Any) -> Any:
    """A linear module with the weights of a packed one: its answer to the identity."""
    import torch

    with torch.inference_mode():
        one = torch.eye(packed.in_features, dtype=torch.bfloat16, device=packed.qweight.device)
        shift = packed.bias
        columns = packed(one) if shift is None else packed(one) - shift
    made = torch.nn.Linear(packed.in_features, packed.out_features, bias=shift is not None, dtype=torch.bfloat16)
    made.weight = torch.nn.Parameter(columns.T.clone(), requires_grad=False)
    if shift is not None:
        made.bias = torch.nn.Parameter(shift.clone(), requires_grad=False)
    return made


def imported(workers: int, threads: int) -> Any:
    """The package, which reads at import how many workers it may have (two at least, or it fails); each sum in `threads`."""
    progress.quiet()
    os.environ |= {"GPTQMODEL_CPU_WORKERS": str(max(2, workers)), "HF_HUB_OFFLINE": "1"}
    with hushed():
        import gptqmodel
        import torch

    torch.set_num_threads(threads)
    return gptqmodel


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Off a terminal, without its banner, tables and bars."""
    with contextlib.ExitStack() as stack:
        if not progress.on_terminal():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def layers_said(count: int) -> Callable[[int, bool], None]:
    """What GPTQModel calls after each of `count` layers: a line a minute, past `hushed`."""
    clock, out = progress.Clock(), sys.stdout

    def complete(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized and (line := clock.line(layer_idx + 1, count)) and not progress.on_terminal():
            print(line.replace("step", "layer"), file=out, flush=True)

    return complete


def _write(vendor: Any, config: Any, model: Path, target: Path, rows: list[list[int]], backend: Any) -> dict[str, Any]:
    batch = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
    said = layers_said(len({name.split(".layers.")[1].split(".")[0] for name in matrices(model)}))
    with hushed(), tempfile.TemporaryDirectory() as logs:
        # Its own are in logs/ of the working folder, where `make serve` keeps requests.
        processor: Any = importlib.import_module("gptqmodel.looper.loop_processor")
        processor._PROJECT_LOG_DIR = Path(logs)
        wrapped = vendor.GPTQModel.load(str(model), config, device=engines.device())
        wrapped.layer_callback = said
        wrapped.quantize(batch, batch_size=1, backend=backend, calibration_data_min_length=1)
        wrapped.save(str(target))
    log = target / "quant_log.csv"
    fell_back = [entry for entry in csv.DictReader(log.read_text().splitlines()) if "fallback" in entry["loss"]]
    log.unlink()  # it holds times
    # GPTQModel writes each again with settings of its own.
    model_files.copy(model, target, *model_files.TEXT)
    return contents(target, model) | {"fell_back": len(fell_back), "calibration_tokens": sum(map(len, rows))}


def contents(folder: Path, model: Path) -> dict[str, Any]:
    """What a quant of `model` really holds: bits a weight over the bytes of all tensors, and which matrices are as they were."""
    whole, made = weights.stored(model), weights.stored(folder)
    packed = sum(name.endswith(".qweight") for name in made)
    return {
        "bytes": weights.size(made),
        "bf16_bytes": weights.size(whole),
        "ratio": weights.size(made) / weights.size(whole),
        "bits_per_weight": 8 * weights.size(made) / weights.count(whole),
        "matrices": packed,
        "matrices_left": sum(len(one.shape) == 2 for one in whole.values()) - packed,
    }
