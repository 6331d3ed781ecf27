"""Checkpoints that outlive a killed run: a scratch folder outside the outs, found again by the same inputs."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from temper import envs

STATE = "trainer_state.json"  # the Hugging Face Trainer writes it last but for its own arguments


@contextmanager
def scratch(stage: str, settings: Any, inputs: Sequence[str | Path]) -> Iterator[Path]:
    """A folder for `stage`, the same for the same settings and input contents; removed when the work succeeds.

    DVC wipes a stage's outs before its command, so what a later try resumes from cannot lie there. Two runs with the same
    inputs wait for each other.
    """
    folder = _home() / f"{stage}-{key(settings, inputs)}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
        Path(guard.name).unlink(missing_ok=True)


def key(settings: Any, inputs: Sequence[str | Path]) -> str:
    """A short name for a settings dataclass and the content of files and folders."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for path in map(Path, inputs):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def last(folder: Path) -> Path | None:
    """The newest complete checkpoint-N in `folder`; one that was cut short is deleted, so that nothing resumes from it."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        if is_complete(checkpoint):
            print(f"resuming from step {step(checkpoint)}", flush=True)
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def is_complete(checkpoint: Path) -> bool:
    """Whether the trainer's state parses and every weights file is as long as its own header says."""
    try:
        json.loads((checkpoint / STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    weights = list(checkpoint.glob("*.safetensors"))
    return bool(weights) and all(_is_whole(file) for file in weights)


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


def _home() -> Path:
    return Path(os.environ.get("TEMPER_SCRATCH") or envs.cache() / "scratch")
