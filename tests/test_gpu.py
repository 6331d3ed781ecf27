"""What only a machine with a GPU can run: both trainers on its preset, and what of SFT is CUDA code, on tiny models."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper import hardware, metrics
from tests import test_trl
from tests.test_methods import UNPACKED, evals, in_env, planted, ran, shapes

GPUS = len(hardware.found().gpus)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU on this machine")]
SEVERAL = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")


@pytest.mark.skipif(
    "\nvllm-cpu==" in Path("requirements/serve.txt").read_text(), reason="requirements/serve.txt locks vLLM's CPU build"
)
def test_both_trainers_run_on_the_gpu_preset(tmp_path: Path, clone_to: Callable[[Path], Path]) -> None:
    root = tmp_path / "tree"
    clone_to(root)
    overrides = ["experiment=smoke", "hardware=gpu1"]
    for command in (["commands.compose", *overrides], ["dvc", "repro", "dpo"]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert metrics.read(root / "reports/training/dpo.json")["steps"] == 4
    assert metrics.read(root / "reports/timing/training/sft.json")["hardware"].count("×") == 1
    assert metrics.read(root / "reports/timing/training/sft.json")["peak_gpu_memory_gb"] > 0


def test_preference_stages_reward_model_and_ppo_run_in_bf16(tmp_path: Path) -> None:
    found = test_trl.every_stage(tmp_path, "hardware=gpu1")
    for stage in test_trl.STAGES:
        assert found[stage]["metrics"]["steps"] == 4, stage
        assert "resuming from step 2" in found[stage]["said"] or stage == "ppo"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return planted(tmp_path)


def lowers_its_loss(root: Path, name: str, overrides: list[str]) -> Path:
    """Run the SFT stage for a preset of one GPU or more; returns where its outs are."""
    ran(root, {name: [*overrides, "sft.epochs=4", "sft.learning_rate=5.0e-3"]})
    losses = evals(root / name)
    assert losses[-1] < losses[0] - 0.05, losses
    return root / name


@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "unsloth", "full", "hft"])
def test_sft_trains_by_each_method_on_one_gpu(tree: Path, method: str) -> None:
    made = lowers_its_loss(tree, method, [f"sft={method}", "hardware=gpu1"])
    assert shapes(made / "models/sft") == shapes(tree / "models/base")


@pytest.mark.parametrize(("version", "package"), [(2, "flash_attn"), (3, "flash_attn_interface")])
def test_sft_trains_packed_by_flash_attention(tree: Path, version: int, package: str) -> None:
    find = f"import importlib.util; print(importlib.util.find_spec('{package}') is not None)"
    if "False" in in_env(tree, "-c", find):
        pytest.skip(f"{package} is not in the training environment: requirements/train.txt does not hold it")
    flash = f"hardware.attention=flash_attention_{version}"
    lowers_its_loss(tree, "flash", ["sft=lora", "hardware=gpu1", flash])


def test_sft_trains_in_fp8(tree: Path) -> None:
    if "True" not in in_env(tree, "-c", "import torch; print(torch.cuda.get_device_capability() >= (9, 0))"):
        pytest.skip("fp8 needs compute capability 9.0 (H100)")
    several = [f"hardware.runtime.processes={GPUS}", f"sft.global_batch={GPUS}"]
    lowers_its_loss(tree, "fp8", ["sft=full-fp8", "hardware=gpu8-fsdp2", *several])


@SEVERAL
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "sharding",
    ["deepspeed=zero1", "deepspeed=zero2", "deepspeed=zero3", "deepspeed=zero3-offload", "fsdp=shard", "fsdp=offload"],
)
def test_sft_trains_over_nccl(tree: Path, method: str, sharding: str) -> None:
    two = ["hardware=gpu8", "hardware.deepspeed=null", f"hardware.{sharding}", "hardware.runtime.processes=2", UNPACKED]
    made = lowers_its_loss(tree, "sharded", [f"sft={method}", *two])
    assert shapes(made / "models/sft") == shapes(tree / "models/base")
