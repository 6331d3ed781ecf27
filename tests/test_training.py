"""What a training asks of the machine: refused in one line, before minutes of imports."""

import importlib
import os
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands.compose import composed
from temper import hardware, params, training

CPU = SimpleNamespace(hardware="cpu", attention="sdpa", precision="fp32")
GPU = SimpleNamespace(hardware="gpu1", attention="sdpa", precision="bf16")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four GPUs, two processes, and PyTorch with CUDA, in the place of what is here."""
    gpus(monkeypatch, 4)
    torch(monkeypatch, "2.13.0")
    monkeypatch.setattr(params, "runtime", lambda: {"processes": 2})
    # Set first, so that what a test's call sets is taken back.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return monkeypatch


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(hardware, "found", lambda: hardware.Machine("", 2, 16.0, ("H100",) * count, 80.0))


def torch(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: [SimpleNamespace(version=version)])


def refusal(cfg: SimpleNamespace, processes: int | None = None) -> str:
    with pytest.raises(SystemExit) as error:
        training.require(cfg, processes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("found", "said"), [(0, "(2), and none can be seen"), (1, "(2), and 1 can be seen")])
def test_every_process_wants_a_gpu(machine: pytest.MonkeyPatch, found: int, said: str) -> None:
    gpus(machine, found)
    assert said in refusal(GPU)
    assert "`make doctor`" in refusal(GPU)
    training.require(CPU)


def test_a_process_sees_no_gpu_of_which_it_would_make_a_part_of_its_batch(machine: pytest.MonkeyPatch) -> None:
    training.require(GPU)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    training.require(GPU, processes=1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_gpus_that_a_scheduler_gave_are_the_ones_that_count(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "GPU-2f,3,1")
    training.require(GPU)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-2f,3"
    machine.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "1 can be seen" in refusal(GPU)
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not training.has_gpu()


def test_torch_of_a_machine_without_a_gpu_is_no_torch_for_one_with(machine: pytest.MonkeyPatch) -> None:
    torch(machine, "2.13.0+cpu")
    found = refusal(GPU)
    assert found.startswith("hardware=gpu1 needs PyTorch with CUDA, and this environment has torch 2.13.0+cpu: ")
    assert f"remove {sys.prefix}" in found
    training.require(CPU)


@pytest.mark.parametrize(
    ("cfg", "attention", "said"),
    [
        (CPU, "flash_attention_2", "hardware.attention=flash_attention_2 is CUDA code: choose sdpa"),
        (CPU, "flex_attention", "is CUDA code"),
        (
            CPU,
            "flashy",
            "hardware.attention=flashy is unknown, expected sdpa, eager, flex_attention, flash_attention_2",
        ),
        (GPU, "flash_attention_2", "wants the package flash_attn, which this environment lacks: choose sdpa"),
        (GPU, "flash_attention_3", "wants the package flash_attn_interface"),
    ],
)
def test_attention_that_cannot_be_computed_here_is_refused(
    machine: pytest.MonkeyPatch, cfg: SimpleNamespace, attention: str, said: str
) -> None:
    assert said in refusal(SimpleNamespace(**vars(cfg) | {"attention": attention}))


def test_flash_attention_that_is_installed_passes_but_not_in_32_bits(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(training.util, "find_spec", lambda name: ModuleSpec(name, None))
    flash = SimpleNamespace(**vars(GPU) | {"attention": "flash_attention_2"})
    training.require(flash)
    flash.precision = "fp32"
    assert "computes in 16 bits, and hardware.precision is fp32" in refusal(flash)


def test_no_more_tokens_than_the_model_has_positions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    training.require_context("dpo.max_length", 512, tmp_path)
    with pytest.raises(SystemExit) as error:
        training.require_context("dpo.max_length", 513, tmp_path)
    assert str(error.value) == f"dpo.max_length is 513, and {tmp_path} has 512 positions: lower it, or set model.rope"


@pytest.mark.parametrize("stage", ["dpo", "kto", "orpo", "reward", "ppo"])
def test_a_stage_asks_for_its_context_before_it_reads_a_row(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"{stage}.max_length=513"]))
    (tmp_path / "models/sft").mkdir(parents=True)
    (tmp_path / "models/sft/config.json").write_text('{"max_position_embeddings": 512}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [stage, "sft"])
    with pytest.raises(SystemExit, match=rf"^{stage}\.max_length is 513"):
        importlib.import_module(f"scripts.{stage}").main()
