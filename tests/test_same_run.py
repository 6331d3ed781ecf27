"""The same training run otherwise: killed and resumed, on two processes, in bf16; what comes out is the same, or nearly."""

import csv
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from temper import envs, metrics, records
from tests.test_methods import ROOT, UNPACKED, chat, dtypes, evals, planted, ran, tensors

pytestmark = pytest.mark.engine

# Checkpoints often enough for the last quarter, which is what is resumed, to begin in the second of two epochs.
TWICE = ["sft.epochs=2", "sft.saves=8"]
PACKED = ["sft=lora", *TWICE]
HALVES = ["sft=hft", UNPACKED, *TWICE]
CASES = {
    "hft": HALVES,
    "hft-resumed": HALVES,
    "packed": PACKED,
    "packed-resumed": PACKED,
    "bf16": [*PACKED, "hardware=cpu-bf16"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage left in each of CASES."""
    root = planted(tmp_path_factory.mktemp("same"))
    records.write(root / "rows/chat/train.jsonl", map(chat, range(32)))
    ran(root, CASES)
    return root


def curve(run: Path) -> list[dict[str, str]]:
    with (run / "reports/plots/sft.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", ["hft", "packed"])
def test_a_run_resumed_in_its_second_epoch_ends_in_the_same_weights(runs: Path, case: str) -> None:
    steps, epochs = (metrics.read(runs / case / "reports/training/sft.json")[key] for key in ("steps", "epochs"))
    said = (runs / f"{case}-resumed/said.txt").read_text()
    resumed = int(said.partition("resuming from step ")[2].split()[0])
    assert epochs == 2
    assert steps / 2 < resumed < steps - 1
    assert tensors(runs / f"{case}-resumed/models/sft") == tensors(runs / case / "models/sft")
    assert curve(runs / f"{case}-resumed") == curve(runs / case)


@pytest.mark.exhaustive
def test_packs_on_two_processes_are_those_of_one(runs: Path) -> None:
    ran(runs, {"two": [*PACKED, "hardware.runtime.processes=2"]})
    for one, two in zip(curve(runs / "packed"), curve(runs / "two"), strict=True):
        assert one["step"] == two["step"]
        for key in ("loss", "eval_loss"):
            assert bool(one[key]) == bool(two[key])
            if one[key]:
                assert float(two[key]) == pytest.approx(float(one[key]), abs=2e-4)


def test_bf16_on_a_cpu_is_float32_but_for_its_rounding(runs: Path) -> None:
    losses, exact = evals(runs / "bf16"), evals(runs / "packed")
    assert losses[-1] < losses[0] - 0.05
    assert dtypes(runs / "bf16/models/sft") == {"BF16"}
    assert dtypes(runs / "bf16/models/sft-adapter") == {"F32"}
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.01)
    first, first_exact = (
        metrics.read(runs / case / "reports/training/sft.json")["first_loss"] for case in ("bf16", "packed")
    )
    assert first == pytest.approx(first_exact, rel=0.01)


EPOCHS = """
import json, os, sys
from types import SimpleNamespace
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import RandomSampler
from temper import axolotl_plugin

lengths = [5 + 7 * row % 40 for row in range(101)]
found = []
for processes, batch_size in json.loads(sys.argv[1]):
    os.environ["WORLD_SIZE"] = str(processes)
    axolotl = {"batch_size": batch_size, "batch_max_len": 64, "bin_size": 64, "group_size": 1000, "drop_last": True}
    trainer = SimpleNamespace(
        _create_multipack_sampler=lambda rows, _: MultipackBatchSampler(rows, lengths=lengths, **axolotl),
        train_dataset=lengths, args=SimpleNamespace(max_steps=1, warmup_steps=0),
    )
    cfg = SimpleNamespace(seed=17, max_steps=None, num_epochs=3, gradient_accumulation_steps=2, warmup_ratio=0.2)
    axolotl_plugin.keep_packs(trainer, cfg)
    packs = trainer._create_multipack_sampler(RandomSampler(lengths), lengths)
    epochs = []
    for epoch in range(3):
        packs.sampler.set_epoch(epoch)
        epochs.append(list(packs))
    assert len(packs) == len(epochs[0])
    found.append([epochs, lengths, vars(trainer.args)])
print(json.dumps(found))
"""
SIZES = ((1, 1), (2, 1), (4, 1), (1, 2))
"""Processes, and packs in a batch."""


@pytest.fixture(scope="module")
def packings() -> dict[tuple[int, int], Any]:
    """By SIZES: the packs of three epochs, the rows' lengths, and what the trainer was told."""
    command = [str(envs.python("train")), "-c", EPOCHS, json.dumps(SIZES)]
    told = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    return dict(zip(SIZES, json.loads(told.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("processes", "batch_size"), SIZES)
def test_each_epoch_has_every_row_and_as_many_packs_for_each_process(
    packings: dict[tuple[int, int], Any], processes: int, batch_size: int
) -> None:
    epochs, lengths, arguments = packings[processes, batch_size]
    assert epochs[0] != epochs[1] != epochs[2]
    for batches in epochs:
        assert len(batches) == len(epochs[0])
        assert len(batches) % processes == 0
        packs = [tuple(pack) for batch in batches for pack in batch]
        assert all(sum(lengths[row] for row in pack) <= 64 for pack in packs)
        distinct = set(packs)
        assert sorted(row for pack in distinct for row in pack) == list(range(len(lengths)))
        assert len(packs) - len(distinct) < processes * batch_size
    # All of them are trained on, whatever Axolotl counted.
    steps = 3 * math.ceil(len(epochs[0]) / processes / 2)
    assert arguments == {"max_steps": steps, "warmup_steps": int(0.2 * steps)}
