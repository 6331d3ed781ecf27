"""A killed training goes on from its last whole checkpoint, and only with the same inputs."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

from scripts import dpo, sft
from temper import adapters, axolotl, checkpoints, curves, metrics, params, preference_trainers, records, training, trl


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
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with ZipFile(made / name, "w") as archive:  # which is what torch.save writes
            archive.writestr("data.pkl", "x")
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return made


def test_the_newest_whole_checkpoint_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path, 9)
    assert checkpoints.last(tmp_path) is not None
    newest = checkpoint(tmp_path, 10)  # after 9 by number, not by name
    assert checkpoints.last(tmp_path) == newest
    assert capsys.readouterr().out.splitlines()[-1] == "resuming from step 10"


@pytest.mark.parametrize(
    "damage",
    [
        *("no state", "half a state", "half the weights", "no weights", "half a header"),
        *("no optimizer.pt", "no scheduler.pt", "no rng_state.pth", "half of optimizer.pt"),
    ],
)
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
    elif damage == "half of optimizer.pt":
        (cut / "optimizer.pt").write_bytes((cut / "optimizer.pt").read_bytes()[:50])
    elif damage.endswith((".pt", ".pth")):
        (cut / damage.removeprefix("no ")).unlink()
    else:
        weights.unlink()
    assert checkpoints.last(tmp_path) == whole
    assert not cut.exists()


def shards(made: Path, processes: int, *, weights: bool) -> list[Path]:
    """Turn a checkpoint into one of DeepSpeed; returns what each process saved, and the first for all."""
    state, folder = made / "rng_state.pth", made / "global_step2"
    folder.mkdir()
    (made / "optimizer.pt").unlink()
    names = [f"global_step2/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(processes)]
    if weights:
        names += [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(processes)]
    else:
        names.append("global_step2/mp_rank_00_model_states.pt")
    if processes > 1:
        names += [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in names:
        shutil.copyfile(state, made / name)
    if processes > 1:
        state.unlink()
    return [made / name for name in names]


@pytest.mark.parametrize("weights", [False, True], ids=["zero2", "zero3"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_process_of_deepspeed_saves_its_part(tmp_path: Path, processes: int, *, weights: bool) -> None:
    made = checkpoint(tmp_path, 2)
    parts = shards(made, processes, weights=weights)
    assert checkpoints.is_complete(made, processes)
    assert not checkpoints.is_complete(made, processes + 1)
    for part in parts:
        part.rename(tmp_path / "away")
        assert not checkpoints.is_complete(made, processes), part
        (tmp_path / "away").rename(part)


def test_every_process_saves_its_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "runtime", lambda: {"processes": 2, "nodes": 2})
    whole, cut = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    for made, ranks in ((whole, 4), (cut, 3)):
        for rank in range(ranks):
            shutil.copyfile(made / "rng_state.pth", made / f"rng_state_{rank}.pth")
    assert checkpoints.last(tmp_path) == whole
    assert not cut.exists()


def test_fsdp_resumes_from_weights_of_its_own(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 2)
    (made / "optimizer.pt").rename(made / "optimizer.bin")
    assert not checkpoints.is_complete(made)
    shutil.copyfile(made / "optimizer.bin", made / "pytorch_model_fsdp.bin")
    assert checkpoints.last(tmp_path) == made


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


def test_a_deletion_that_was_cut_short_leaves_nothing_to_resume(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        with checkpoints.scratch("dpo", Settings(0.1), []) as scratch:
            checkpoint(scratch, 3)
    with checkpoints.scratch("dpo", Settings(0.1), []) as scratch:
        assert checkpoints.last(scratch) is None
    assert list(home.iterdir()) == []


class Killed(BaseException):
    """In the place of SIGKILL."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """A tree with what sft and dpo read, and trainers that save one checkpoint; lists what each training resumed from."""
    for name in ("dvc.yaml", "params.yaml", "temper/axolotl.py", "temper/trl.py", "requirements/train.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(Path(name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "base"])
    Path("models/base").mkdir(parents=True)
    Path("models/base/config.json").write_text('{"max_position_embeddings": 8192}')
    records.write("data/audit/train.jsonl", [{"messages": []}])
    records.write("data/audit/validation.jsonl", [{"messages": []}])
    records.write("data/preferences.jsonl", [{"prompt": [], "chosen": [], "rejected": []}] * 8)
    resumed: list[Path | None] = []

    def train(_config: object, scratch: Path, checkpoint_: Path | None, *_: object) -> list[dict[str, float]]:
        resumed.append(checkpoint_)
        if not checkpoint_:
            checkpoint(scratch / "out", 4)
        return [{"step": 1, "loss": 1.0, "rewards/margins": 1.0, "rewards/accuracies": 1.0}]

    monkeypatch.setattr(training, "prepare", lambda: None)
    for trainer in (axolotl, trl):
        monkeypatch.setattr(trainer, "check", lambda *_: None)
        monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(preference_trainers, "leave_out", lambda _, rows, __: rows)
    monkeypatch.setattr(adapters, "keep", lambda *_: None)
    monkeypatch.setattr(adapters, "merge", lambda *_: {})
    return resumed


SCRIPTS = pytest.mark.parametrize("script", [sft, dpo], ids=["sft", "dpo"])


@SCRIPTS
@pytest.mark.parametrize(
    "place", [(adapters, "merge"), (curves, "write"), (metrics, "write")], ids=lambda place: place[1]
)
def test_killed_after_training_it_does_not_train_again(
    script: ModuleType, place: tuple[ModuleType, str], trainings: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*place, killed)
        script.main()
    script.main()
    first, second = trainings
    assert first is None
    assert second is not None and second.name == "checkpoint-4"


@SCRIPTS
@pytest.mark.parametrize("change", ["code", "lock", "threads", "data"])
def test_a_training_of_other_code_lock_or_threads_is_not_gone_on_with(
    script: ModuleType, change: str, trainings: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(adapters, "merge", killed)
        script.main()
    if change == "threads":
        runtime("threads", 7)
    else:
        changed = {
            "code": ("temper/axolotl.py", "temper/trl.py"),
            "lock": ("requirements/train.txt",),
            "data": ("data/audit/train.jsonl", "data/preferences.jsonl"),
        }
        for name in changed[change]:
            with Path(name).open("a") as file:
                file.write('{"prompt": [], "chosen": [], "rejected": []}\n')
    script.main()
    assert trainings == [None, None]


def test_a_training_of_other_processes_is_found_again_when_there_are_as_many(
    trainings: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for processes in (1, 2):
        runtime("processes", processes)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(adapters, "merge", killed)
            dpo.main()
    runtime("processes", 1)
    dpo.main()
    assert trainings[:2] == [None, None]
    assert trainings[2] is not None


def runtime(key: str, value: int) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(rf"\n    {key}: \d+", f"\n    {key}: {value}", text))


@SCRIPTS
def test_a_training_of_another_rendered_configuration_is_not_gone_on_with(
    script: ModuleType, trainings: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = (axolotl, "render") if script is sft else (preference_trainers, "render_dpo")
    render = getattr(*rendering)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(adapters, "merge", killed)
        patch.setattr(*rendering, lambda *given: render(*given) | {"more": 1})
        script.main()
    script.main()
    assert trainings == [None, None]


HOLD = """
import sys, time
from dataclasses import dataclass
from temper import checkpoints

@dataclass
class Settings:
    beta: float

with checkpoints.scratch("dpo", Settings(0.1), []) as scratch:
    print("inside", flush=True)
    sys.stdin.readline()
"""


def hold() -> "subprocess.Popen[str]":
    """A process that is in the scratch folder until it gets a line."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe, text=True, env=os.environ)


def is_inside(process: "subprocess.Popen[str]", seconds: float) -> bool:
    assert process.stdout
    return bool(select.select([process.stdout], [], [], seconds)[0]) and process.stdout.readline() == "inside\n"


def test_the_same_run_waits_and_a_killed_one_holds_nobody_up() -> None:
    first = hold()
    assert is_inside(first, 20)
    second = hold()
    assert not is_inside(second, 1)
    first.kill()
    first.wait()
    assert is_inside(second, 20)
    second.communicate("\n", timeout=20)
    assert second.returncode == 0


def test_of_three_that_come_one_by_one_no_two_are_inside(home: Path) -> None:
    first = hold()
    assert is_inside(first, 20)
    second = hold()
    assert not is_inside(second, 1)  # it waits for the file that the first holds, and removes as it leaves
    first.communicate("\n", timeout=20)
    assert is_inside(second, 20)
    third = hold()
    assert not is_inside(third, 1)
    second.communicate("\n", timeout=20)
    assert is_inside(third, 20)
    third.communicate("\n", timeout=20)
    assert list(home.iterdir()) == []
