"""A killed training goes on from its last whole checkpoint, and only with the same inputs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from temper import checkpoints


@dataclass
class Settings:
    beta: float


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def checkpoint(folder: Path, step: int) -> Path:
    """A whole checkpoint of one float32 weight."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (made / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return made


def test_the_newest_whole_checkpoint_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path, 9)
    assert checkpoints.last(tmp_path) is not None
    newest = checkpoint(tmp_path, 10)  # after 9 by number, not by name
    assert checkpoints.last(tmp_path) == newest
    assert capsys.readouterr().out.splitlines()[-1] == "resuming from step 10"


@pytest.mark.parametrize("damage", ["no state", "half a state", "half the weights", "no weights", "half a header"])
def test_one_that_was_cut_short_is_deleted_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    whole, cut = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    state, weights = cut / "trainer_state.json", cut / "adapter_model.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "half a state":
        state.write_text(state.read_text()[:5])
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[:-2])
    elif damage == "half a header":
        weights.write_bytes(weights.read_bytes()[:20])
    else:
        weights.unlink()
    assert checkpoints.last(tmp_path) == whole
    assert not cut.exists()


def test_without_a_checkpoint_training_begins_at_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoints.last(tmp_path / "out") is None
    assert capsys.readouterr().out == ""


def test_what_failed_is_found_again_and_what_succeeded_is_gone(tmp_path: Path, home: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    with pytest.raises(KeyboardInterrupt), checkpoints.scratch("dpo", Settings(0.1), [rows]) as scratch:
        checkpoint(scratch, 3)
        raise KeyboardInterrupt
    with checkpoints.scratch("dpo", Settings(0.1), [rows]) as scratch:
        assert checkpoints.last(scratch) is not None
    assert list(home.iterdir()) == []


def test_other_settings_or_other_inputs_do_not_resume(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"one")
    first = checkpoints.key(Settings(0.1), [model])
    assert checkpoints.key(Settings(0.1), [model]) == first
    assert checkpoints.key(Settings(0.2), [model]) != first
    (model / "weights").write_bytes(b"two")
    assert checkpoints.key(Settings(0.1), [model]) != first


HOLD = """
import sys, time
from dataclasses import dataclass
from temper import checkpoints

@dataclass
class Settings:
    beta: float

with checkpoints.scratch("dpo", Settings(0.1), []) as scratch:
    print("inside", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_the_same_run_waits_and_a_killed_one_holds_nobody_up() -> None:
    def start(seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLD, str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)

    first = start(60)
    assert first.stdout and first.stdout.readline() == "inside\n"
    second = start(0)
    time.sleep(1)
    assert second.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.communicate(timeout=20)[0] == "inside\n"
    assert second.returncode == 0
