"""What only a machine with a GPU can run: both trainers on the GPU preset, on the tiny model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper import hardware, metrics

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not hardware.found().gpus, reason="no GPU on this machine")
def test_both_trainers_run_on_the_gpu_preset(tmp_path: Path, clone_to: Callable[[Path], Path]) -> None:
    root = tmp_path / "tree"
    clone_to(root)
    overrides = ["experiment=smoke", "hardware=gpu1", "hardware.attention=sdpa"]
    for command in (["commands.compose", *overrides], ["dvc", "repro", "dpo"]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert metrics.read(root / "reports/dpo.json")["steps"] == 4
    assert metrics.read(root / "reports/timing/sft.json")["hardware"].count("×") == 1
