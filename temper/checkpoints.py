"""Checkpoints that outlive a killed run: a scratch folder outside the outs, found again by the same inputs."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from zipfile import is_zipfile

import yaml
from omegaconf import OmegaConf

from temper import envs, params

STATE = "trainer_state.json"  # the Hugging Face Trainer writes it last but for its own arguments
DELETED = "deleted-"


@contextmanager
def scratch(stage: str, settings: Any, inputs: Sequence[str | Path], **runtime: Any) -> Iterator[Path]:
    """A folder for `stage`, the same for the same settings, input contents and `runtime`; removed when the work succeeds.

    DVC wipes a stage's outs before its command, so what a later try resumes from cannot lie there. Two runs with the same
    inputs wait for each other.
    """
    folder = _home() / f"{stage}-{key(settings, inputs, **runtime)}"
    with _alone(folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(exist_ok=True)
        yield folder
        _remove(folder)


def deps(stage: str) -> list[Path]:
    """What dvc.yaml says that a training stage depends on: code, lock and data. tests/test_graph.py holds it complete."""
    named: list[str] = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]["deps"]
    policy = str(params.value(f"recipe.{stage}")[0])
    return [Path(dep) for dep in OmegaConf.merge(params.tree(), {"item": {"policy": policy}, "deps": named}).deps]


def key(settings: Any, inputs: Sequence[str | Path], **runtime: Any) -> str:
    """A short name for a settings dataclass, the content of files and folders, and what else can change a number."""
    digest = hashlib.sha256(json.dumps([asdict(settings), runtime], sort_keys=True).encode())
    for path in map(Path, inputs):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def last(folder: Path) -> Path | None:
    """The newest checkpoint-N in `folder` that is complete for as many processes as params.yaml has.

    One that was cut short is deleted, so that nothing resumes from it.
    """
    runtime = params.runtime()
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        if is_complete(checkpoint, runtime["processes"] * runtime["nodes"]):
            print(f"resuming from step {step(checkpoint)}", flush=True)
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def is_complete(checkpoint: Path, processes: int = 1) -> bool:
    """Whether all that a Trainer resumes from is there and whole; without one of these it goes on with a fresh one, silently."""
    try:
        json.loads((checkpoint / STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    weights = list(checkpoint.glob("*.safetensors"))
    expected = _expected(checkpoint, processes)
    parts = {pattern: list(checkpoint.glob(pattern)) for pattern in expected}
    return (
        bool(weights)
        and all(_is_whole(file) for file in weights)
        and all(len(files) == expected[pattern] for pattern, files in parts.items())
        # torch.save writes ZIP archives, their directory last.
        and all(is_zipfile(file) for files in parts.values() for file in files)
    )


def _expected(checkpoint: Path, processes: int) -> dict[str, int]:
    """How many files of each name hold the state of `processes` beside the weights: optimizer, schedule, random numbers."""
    each = {"scheduler.pt": 1, "rng_state.pth" if processes == 1 else "rng_state_*.pth": processes}
    if any(checkpoint.glob("global_step*")):
        # DeepSpeed: the optimizer is sharded from ZeRO-1 on, the weights in ZeRO-3.
        sharded = "global_step*/zero_pp_rank_*_model_states.pt"
        model = {sharded: processes} if any(checkpoint.glob(sharded)) else {"global_step*/mp_rank_*_model_states.pt": 1}
        return each | {"global_step*/*optim_states.pt": processes} | model
    if (checkpoint / "optimizer.bin").is_file():
        # FSDP resumes from weights of its own.
        return each | {"optimizer.bin": 1, "pytorch_model_fsdp.bin": 1}
    return each | {"optimizer.pt": 1}


def _is_whole(file: Path) -> bool:
    """safetensors: 8 bytes little-endian header length, a JSON header with data offsets, the data."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError, MemoryError, OverflowError):
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + length + max(ends, default=0)


@contextmanager
def _alone(guard: Path) -> Iterator[None]:
    """Hold `guard`, which is removed afterwards; the kernel releases it however this process ends."""
    guard.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with guard.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it before may have removed it, and others lock a new file of that name.
            if _is_at(guard, handle):
                yield
                guard.unlink()
                return


def _is_at(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    """Delete `folder`, under a name from which nothing resumes, with what deletions that were cut short left behind."""
    folder.rename(tempfile.mkdtemp(prefix=DELETED, dir=folder.parent))
    for left in folder.parent.glob(f"{DELETED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _home() -> Path:
    return Path(os.environ.get("TEMPER_SCRATCH") or envs.cache() / "scratch")
