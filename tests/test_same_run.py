"""The same training run otherwise: killed and resumed; what comes out is the same."""

import csv
from pathlib import Path

import pytest

from temper import metrics, records
from tests.test_methods import UNPACKED, chat, planted, ran, tensors

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
