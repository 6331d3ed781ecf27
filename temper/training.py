"""What Axolotl and TRL runs share: the environment they start in, and Trainer callbacks that show progress and memory."""

import os
from typing import Any

from temper import params, progress, stage


def prepare() -> None:
    """Set threads and offline mode and silence vendors; call it before torch or a trainer is imported."""
    progress.quiet()
    os.environ |= dict.fromkeys(("AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    os.environ |= {"AXOLOTL_TEE_STDOUT": "0", "AXOLOTL_LOG_LEVEL": "WARNING", "LOG_LEVEL": "ERROR"}
    # DeepSpeed and accelerate look for an accelerator and find the CPU only when told.
    if not _has_gpu():
        os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(int(params.runtime()["threads"]))


def require_gpu(precision_of: str) -> None:
    """Exit when a GPU preset meets a machine without one, before minutes of imports."""
    if not _has_gpu():
        raise SystemExit(
            f"hardware={precision_of} needs a GPU and none was found: choose hardware=cpu, or see `make doctor`"
        )


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
    if _has_gpu():
        trainer.add_callback(_memory())


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


def _has_gpu() -> bool:
    from temper import hardware

    return bool(hardware.found().gpus)
