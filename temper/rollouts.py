"""Rollouts by vLLM: a process of the `serve` environment samples answers with the policy's weights, as they are at each step.

TRL's own vLLM modes want vLLM in the trainer's environment, where pins keep it out, and hand weights over by NCCL. Here they go
through a file in memory, whole: vLLM fuses matrices that an adapter changes one by one. The file has no name, so that nothing
of it stays however the run ends; an engine opens it through /proc. Each process has an engine on its own device.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from temper import envs, health, rollout_engine

if TYPE_CHECKING:
    from torch import Tensor

MEMORY = Path("/dev/shm")
LAST_LINES = 15
# What torchrun tells its workers would have vLLM join their group, or wait for the store of their agent.
TORCHRUN = re.compile(r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")
# How far apart, in nats a token on average, two engines are with equal weights: by the order of their sums in float32, by 8
# significant bits in bf16.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


class Engine:
    """vLLM over the model in `settings["model"]`, loading from the start; ends with this process, however it ends."""

    def __init__(self, settings: dict[str, Any]) -> None:
        command = [str(envs.python("serve")), "-m", rollout_engine.__name__, json.dumps(settings)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
        self._process = subprocess.Popen(command, env=alone(os.environ), **pipes)

    def load(self, weights: str) -> None:
        """Take the weights in this file, and forget what was computed with others."""
        self._ask({"weights": weights})

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> dict[str, Any]:
        """One answer to each prompt (token ids), drawn with its seed: `completion_ids`, their `logprobs` when drawn, and the
        `digest` of the weights that they come from."""
        return self._ask({"prompts": prompts, "seeds": seeds})

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"grpo: the vLLM engine ended with status {self._process.wait()}: {self._last_lines()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _last_lines(self) -> str:
        self._log.seek(0)
        return "\n".join(["its last lines:", *self._log.read().decode(errors="replace").splitlines()[-LAST_LINES:]])


class Rollouts:
    """TRL's `rollout_func`: the prompts of a step to answers of an engine that has the weights of that step."""

    def __init__(self, engine: Engine, dtype: str, tolerance: float, seed: int) -> None:
        self.engine, self.dtype, self.tolerance, self.seed = engine, dtype, tolerance, seed
        self.step, self.digest = -1, ""  # of the weights that were handed over last

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        step = trainer.state.global_step
        if step != self.step:
            self.sync(trainer)
            self.step = step
        ids, *_ = trainer._tokenize_prompts(prompts)
        first = trainer.accelerator.process_index * len(prompts)
        seeds = [seed(self.seed, step, first + number) for number in range(len(prompts))]
        answers = self.engine.sample(ids, seeds)
        if (found := answers.pop("digest")) != self.digest:
            raise out_of_sync(trainer, f"their SHA-256 is {found}, not {self.digest}")
        return {"prompt_ids": ids, **answers}

    def sync(self, trainer: Any) -> None:
        """Give the engine the policy's weights, which the first process of a machine writes for all."""
        from accelerate.utils import gather_object

        spread = trainer.accelerator
        file, offer = None, ("", "")
        if spread.is_local_main_process:
            file, digest = offered(spread.unwrap_model(trainer.model), self.dtype)
            offer = f"/proc/{os.getpid()}/fd/{file.fileno()}", digest
        weights, self.digest = gather_object([offer])[spread.process_index - spread.local_process_index]
        self.engine.load(weights)
        spread.wait_for_everyone()
        if file:
            file.close()


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """What an engine inherits from one of torchrun's workers: its device, and nothing of the others."""
    kept = {name: value for name, value in environment.items() if not TORCHRUN.fullmatch(name)}
    local, listed = int(environment.get("LOCAL_RANK", 0)), environment.get("CUDA_VISIBLE_DEVICES")
    own = str(local) if listed is None else ",".join(listed.split(",")[local : local + 1])
    return kept | {"CUDA_VISIBLE_DEVICES": own}


def out_of_sync(trainer: Any, found: str) -> SystemExit:
    """What ends a run whose sampler has other weights than its policy."""
    reason = (
        f"grpo: step {trainer.state.global_step + 1}: the sampler's weights are not the policy's: {found}: resume from the last "
        "checkpoint with grpo.rollouts=transformers, and report it"
    )
    if trainer.accelerator.num_processes > 1:
        health.STOPPED.parent.mkdir(exist_ok=True)
        health.STOPPED.write_text(reason)
    return SystemExit(reason)


def seed(base: int, step: int, number: int) -> int:
    """A seed in [0, 2³¹) for one answer, the same in a resumed run."""
    return int.from_bytes(hashlib.sha256(f"{base}/{step}/{number}".encode()).digest()[:4]) // 2


def offered(model: Any, dtype: str) -> "tuple[IO[bytes], str]":
    """A file with a model's merged weights, and their digest."""
    import torch

    weights = merged(model, getattr(torch, dtype))
    file = unnamed(sum(tensor.nbytes for tensor in weights.values()))
    # Not as safetensors, which writes under another name first.
    torch.save(weights, file)
    file.flush()
    return file, rollout_engine.digest(weights)


def unnamed(size: int) -> IO[bytes]:
    """A file in memory, or on disk where memory is not mounted or has no room for `size` bytes twice."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * size
    return tempfile.TemporaryFile(dir=MEMORY if in_memory else None)


def merged(model: Any, dtype: Any) -> "dict[str, Tensor]":
    """A model's weights under their names in a checkpoint, its adapter summed in in float32; the model stays as it is."""
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return _plain(model.state_dict(), model, dtype)
    base = model.get_base_model()
    kept = {name: tensor for name, tensor in base.state_dict().items() if not _is_adapter(name)}
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in kept.items()}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            with torch.no_grad():
                # At once: in float32 all of them together may not fit beside the policy.
                weights[f"{name}.weight"] = _summed(module).to("cpu", dtype)
    return _plain(weights, base, dtype)


def _summed(layer: Any) -> "Tensor":
    """PEFT's own merge of one layer, which works in place, over a copy: merging and unmerging would not give the same bits back."""
    import torch

    weight = layer.get_base_layer().weight
    original = weight.data
    weight.data = original.to(torch.float32, copy=True)
    layer.merge()
    merged, weight.data = weight.data, original
    layer.merged_adapters.clear()
    return merged


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _plain(weights: "dict[str, Tensor]", model: Any, dtype: Any) -> "dict[str, Tensor]":
    """Each weight once: one that is tied to another is not in a checkpoint."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items() if name not in tied}
