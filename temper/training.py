"""What Axolotl and TRL runs share: what they ask of the machine, the environment they start in, and Trainer callbacks."""

import os
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from temper import base_model, hardware, params, progress, stage

# Implementations of attention that a package of their own holds; PyTorch has the others, and on a CPU trains by the first two.
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
ATTENTIONS = ("sdpa", "eager", "flex_attention", *FLASH)
ON_CPU = ATTENTIONS[:2]


def prepare() -> None:
    """Set threads and offline mode and silence vendors; call it before torch or a trainer is imported."""
    progress.quiet()
    os.environ |= dict.fromkeys(("AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    os.environ |= {"AXOLOTL_TEE_STDOUT": "0", "AXOLOTL_LOG_LEVEL": "WARNING", "LOG_LEVEL": "ERROR"}
    # DeepSpeed and accelerate look for an accelerator and find the CPU only when told.
    if not has_gpu():
        os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(int(params.runtime()["threads"]))


def require(cfg: Any, processes: int | None = None) -> None:
    """Exit when a section asks for what this machine or environment lacks, before minutes of imports.

    `processes` are those of this node, where they are not the preset's.
    """
    if cfg.hardware != "cpu":
        require_gpu(cfg.hardware, processes)
    require_attention(cfg.attention, cfg.hardware, cfg.precision)


def require_gpu(preset: str, processes: int | None = None) -> None:
    """Exit where a GPU preset finds fewer GPUs than processes, or PyTorch without CUDA; leave as many GPUs visible as processes.

    Of several that one process sees, transformers' Trainer would give each a part of the micro-batch (DataParallel).
    """
    wanted, gpus = processes or int(params.runtime()["processes"]), _gpus()
    if len(gpus) < wanted:
        raise SystemExit(
            f"hardware={preset} needs a GPU for each of hardware.runtime.processes ({wanted}), and {len(gpus) or 'none'} "
            "can be seen: choose the preset that `make doctor` names, or lower processes"
        )
    build = next((found.version for found in metadata.distributions(name="torch")), "")
    if build.endswith("+cpu"):
        raise SystemExit(
            f"hardware={preset} needs PyTorch with CUDA, and this environment has torch {build}: remove {sys.prefix} and "
            "build it again (`make setup`) without UV_TORCH_BACKEND=cpu"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[:wanted])


def require_attention(attention: str, preset: str, precision: str) -> None:
    """Exit where an implementation of attention is unknown, not installed, or none for this hardware or precision."""
    name = f"hardware.attention={attention}"
    if attention not in ATTENTIONS:
        raise SystemExit(f"{name} is unknown, expected {', '.join(ATTENTIONS)}: correct it in conf/hardware")
    if preset == "cpu" and attention not in ON_CPU:
        raise SystemExit(f"{name} is CUDA code: choose sdpa")
    if attention in FLASH and precision == "fp32":
        raise SystemExit(f"{name} computes in 16 bits, and hardware.precision is fp32: choose bf16, or attention sdpa")
    if attention in FLASH and not util.find_spec(FLASH[attention]):
        raise SystemExit(
            f"{name} wants the package {FLASH[attention]}, which this environment lacks: choose sdpa, or name it in "
            "requirements/train.in, then `make lock` and `make setup`"
        )


def require_context(key: str, tokens: int, start: Path) -> None:
    """Exit where a setting `key` asks for more tokens than the model in `start` has positions."""
    if tokens > (context := base_model.context(start)):
        raise SystemExit(f"{key} is {tokens}, and {start} has {context} positions: lower it, or set model.rope")


def accumulation(global_batch: int, micro_batch: int, processes: int, section: str) -> int:
    """Forward passes an optimizer step, so that the stated global batch comes out whatever the hardware."""
    passes, rest = divmod(global_batch, micro_batch * processes)
    if rest or not passes:
        raise SystemExit(
            f"{section}.global_batch is {global_batch}, not a multiple of micro_batch × processes = {micro_batch * processes}: "
            f"correct {section}.global_batch or hardware.micro_batch in conf/"
        )
    return passes


def quiet_callbacks(trainer: Any) -> None:
    """Off a terminal, put one line a minute in the place of the Trainer's bar, which prints every log entry there.

    On a GPU, the most memory that tensors took goes on record.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    if not progress.on_terminal():
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(_lines())
    if has_gpu():
        trainer.add_callback(_memory())


def has_gpu() -> bool:
    return bool(_gpus())


def _lines() -> Any:
    from transformers import TrainerCallback

    class Lines(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.clock, self.first = progress.Clock(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            line = self.clock.line(state.global_step, state.max_steps, self.first)
            if line:
                print(line, flush=True)

    return Lines()


def _memory() -> Any:
    from torch import cuda
    from transformers import TrainerCallback

    class Memory(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.is_world_process_zero:
                stage.measured(peak_gpu_memory_gb=round(cuda.max_memory_allocated() / 1e9, 2))

    return Memory()


def _gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them: numbers, or UUIDs."""
    every = [str(number) for number in range(len(hardware.found().gpus))]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return every if named is None or not every else [name for name in named.split(",") if name not in ("", "-1")]
